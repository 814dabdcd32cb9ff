"""Rank, alpha and learning rate by module pattern, rsLoRA, and sets of targets: in the model, the file and a run."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from iclora_train.adapters import lora
from iclora_train.config import Config, ConfigError, Lora, Model
from iclora_train.config.lora import TARGET_SETS, matches
from iclora_train.core.fingerprint import comparable_model, config_hash, plain
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime.activation_offload import ActivationOffload
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks
from iclora_train.training.optimizer import create_optimizer, learning_rate
from scripts.synthetic.random_base import RandomBase
from tests.command import read_csv, run, start
from tests.test_compiled import scene, step
from tests.test_lora_linear import fuse
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents

QUERY, TEXT_QUERY, FF = (f"transformer_blocks.1.{name}" for name in ("attn1.to_q", "attn2.to_q", "ff.net.2"))
UNEQUAL = Lora(rank=4, alpha=8, rank_pattern={"attn1.to_k": 2, "attn2.to_v": 7, "ff.net.2": 3, "*.0.attn1.to_q": 1})


def network(settings: Lora, fp8: bool = False) -> Transformer:
    """A tiny transformer with an adapter. B is not zero."""
    net = RandomBase("2.3", "tiny").transformer(fp8=fp8)
    for seed, parameter in enumerate(lora.attach(net, settings)):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(seed))
    return net.train()


def scale_of(net: Transformer, name: str) -> float:
    layer = dict(lora.layers(net))[name]
    return float(layer.scaling["default"])


@pytest.mark.parametrize(
    ("pattern", "linear", "expected"),
    [
        ("attn2", TEXT_QUERY, True),
        ("attn2.*", TEXT_QUERY, True),
        ("to_q", TEXT_QUERY, True),
        ("attn1.to_q", TEXT_QUERY, False),
        ("attn", TEXT_QUERY, False),  # part of a part
        ("transformer_blocks.1", TEXT_QUERY, True),
        ("transformer_blocks.1", "transformer_blocks.11.attn2.to_q", False),
        ("transformer_blocks.[0-3].*", TEXT_QUERY, True),
        ("transformer_blocks.[2-3]", TEXT_QUERY, False),
        ("net.2", FF, True),
        ("netx2", FF, False),  # a dot of the name is only a dot
        ("net?2", FF, True),
    ],
)
def test_a_pattern_fits_whole_parts_of_a_name(pattern: str, linear: str, expected: bool) -> None:
    assert matches(pattern, linear) is expected


def test_the_first_pattern_that_matches_sets_rank_and_alpha() -> None:
    settings = Lora(
        rank=4,
        alpha=8,
        rank_pattern={"transformer_blocks.0.attn1": 2, "attn1": 6, "*": 3},
        alpha_pattern={"attn2": 1.5},
    )
    net = network(settings)
    ranks = dict(lora.ranks(net))
    assert [ranks[name] for name in (QUERY.replace("1", "0", 1), QUERY, TEXT_QUERY, FF)] == [2, 6, 3, 3]
    assert [scale_of(net, name) for name in (QUERY, TEXT_QUERY, FF)] == pytest.approx([8 / 6, 1.5 / 3, 8 / 3])
    assert scale_of(network(Lora(rank=4, rank_pattern={"attn1": 2})), QUERY) == 1  # alpha null: alpha = rank


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            Lora(rank_pattern={"attn3.to_q": 8}),
            "model.lora.rank_pattern: 'attn3.to_q' matches no linear with LoRA; there are attn2.to_q, attn1.to_q",
        ),
        (Lora(lr_pattern={"atn2": 0.5}), "model.lora.lr_pattern: 'atn2' matches no linear with LoRA; there are attn2"),
        (
            Lora(alpha_pattern={"attn2": 8}, targets=["attn1.to_q"]),
            "model.lora.alpha_pattern: 'attn2' matches only linears without LoRA: add them to model.lora.targets",
        ),
        (Lora(rank=4, rank_pattern={"ff": 49}), "model.lora.rank_pattern=49 is above 48, the smaller side of"),
        (Lora(targets=["text"]), "model.lora.targets: no linear 'text' in the base; it has attn1.to_gate_logits"),
    ],
)
def test_patterns_that_the_base_does_not_fit_are_refused(settings: Lora, message: str) -> None:
    from tests.test_lora import TRANSFORMER, TransformerConfig  # noqa: PLC0415

    with pytest.raises(ConfigError) as caught:
        lora.attach(Transformer(TransformerConfig.from_metadata(TRANSFORMER)), settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank_pattern": {"attn2": 0}}, "model.lora.rank_pattern: attn2: 0 must be at least 1"),
        ({"alpha_pattern": {"attn2": -1.0}}, "model.lora.alpha_pattern: attn2: -1.0 must be a finite number above 0"),
        ({"lr_pattern": {"attn2": math.inf}}, "model.lora.lr_pattern: attn2: inf must be a finite number above 0"),
        ({"rslora": True}, "model.lora.rslora=true needs model.lora.alpha: .* model.lora.alpha=5.66, the root"),
    ],
)
def test_values_out_of_bounds_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Lora(**values)  # type: ignore[arg-type]


def test_sets_of_targets_are_short_forms() -> None:
    assert Lora().targets == Lora(targets=["video"]).targets == TARGET_SETS["video"]
    names = [name for name, _ in lora.ranks(network(Lora(rank=2, targets=["text_attention", "ff.net.2"])))]
    ends = {name.split(".", 2)[2] for name in names}
    assert ends == {"attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.net.2"}
    first_blocks = [name for name, _ in lora.ranks(network(Lora(rank=2, targets=["transformer_blocks.0.attn1.to_?"])))]
    assert first_blocks == [f"transformer_blocks.0.attn1.to_{c}" for c in "qkv"]


def test_rslora_divides_alpha_by_the_root_of_the_rank() -> None:
    """The scale alpha / sqrt(rank) of arXiv 2312.03732, in the model and multiplied into B of the file."""
    settings = Lora(rank=4, alpha=3, rslora=True, rank_pattern={"attn2": 9})
    net = network(settings)
    assert [scale_of(net, name) for name in (QUERY, TEXT_QUERY)] == pytest.approx([3 / 2, 3 / 3])
    layer = dict(lora.layers(net))[QUERY]
    b = layer.lora_B["default"].weight  # type: ignore[union-attr]
    torch.testing.assert_close(lora.adapter_weights(net)[QUERY][1], 1.5 * b.detach())  # type: ignore[operator]


@pytest.mark.parametrize("settings", [UNEQUAL, Lora(rank=4, alpha=3, rslora=True)], ids=["ranks", "rslora"])
def test_a_file_with_several_ranks_gives_the_same_model(settings: Lora, tmp_path: Path) -> None:
    net, tokens = network(settings), scene(8)
    path = tmp_path / "a.safetensors"
    lora.save(path, lora.Adapter(lora.adapter_weights(net), {"reference_downscale_factor": "1"}))
    loaded = RandomBase("2.3", "tiny").transformer()
    lora.load_adapter(loaded, lora.read(path))
    assert lora.ranks(loaded) == lora.ranks(net)
    text = torch.randn(1, 5, net.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens, text), net(tokens, text))


@pytest.mark.parametrize("fp8", [False, True])
def test_fused_linears_with_several_ranks_give_the_step_of_separate_ones(fp8: bool) -> None:
    tokens = scene(8)
    separate, fused = network(UNEQUAL, fp8), fuse(network(UNEQUAL, fp8))
    for expected, result in zip(step(separate, tokens), step(fused, tokens), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch.compile's own warnings
def test_compiled_blocks_with_several_ranks_give_the_eager_step() -> None:
    tokens, eager, compiled = scene(8), network(UNEQUAL), network(UNEQUAL)
    compile_blocks(compiled, backend="aot_eager")
    for expected, result in zip(step(eager, tokens), step(compiled, tokens), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch.compile's own warnings
@pytest.mark.parametrize("way", ["checkpointing", "activation offload", "compiled"])
@pytest.mark.parametrize("block", [0, 1])
def test_an_adapter_on_some_blocks_trains_in_every_way_alike(block: int, way: str) -> None:
    """Blocks before the first adapter need no gradients."""
    settings, tokens = Lora(rank=4, targets=[f"transformer_blocks.{block}.attn2.to_[qkv]"]), scene(8)
    plain, other = network(settings), network(settings)
    if way == "compiled":
        compile_blocks(other, backend="aot_eager")
    elif way == "checkpointing":
        runner_of(other).activation_checkpointing = True
    else:
        runner_of(other).activation_offload = ActivationOffload(1.0)
    for expected, result in zip(step(plain, tokens), step(other, tokens), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_each_group_of_linears_has_its_learning_rate() -> None:
    settings = Lora(rank=2, lr_pattern={"attn2": 0.5, "ff.net.2": 3})
    net = network(settings)
    groups = lora.parameter_groups(net, settings)
    assert {factor: len(group) for factor, group in groups.items()} == {1: 2 * 2 * 5, 0.5: 2 * 2 * 4, 3: 2 * 2 * 1}
    optimizer = create_optimizer({"_target_": "torch.optim.SGD", "lr": 0.1}, groups)
    before = {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            factor = 0.5 if ".attn2." in name else 3 if ".ff.net.2." in name else 1
            torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * factor)
    assert learning_rate(optimizer) == pytest.approx(0.1)


def test_without_factors_the_optimizer_has_one_group() -> None:
    net = network(Lora(rank=2))
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = create_optimizer({"_target_": "torch.optim.AdamW", "lr": 1e-3}, lora.parameter_groups(net, Lora()))
    assert [group.keys() & {"lr_factor"} for group in optimizer.param_groups] == [set()]
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], trained, strict=True))


def test_unset_patterns_leave_the_records_of_earlier_versions() -> None:
    lora_section = comparable_model(plain(Model().__dict__ | {"lora": Lora().__dict__}))["lora"]
    assert lora_section.keys() == {"rank", "alpha", "targets"}
    changed = Config(model=Model(name="x", lora=Lora(lr_pattern={"attn2": 0.5})))
    assert config_hash(changed) != config_hash(Config(model=Model(name="x")))


def test_a_run_with_patterns_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    overrides = ["conf=deblur", f"model.checkpoint={base}", f"data.root={tmp_path}/shards", "trainer.accelerator=cpu"]
    overrides += [*SETTINGS, "model.lora.rank=4", "optim=adamw", "trainer.max_steps=12", "run=run", "logger=csv"]
    overrides += ["eval.after_training=false", "sample.steps=2", "validation.checkpoint_every=2"]
    overrides += ["validation.windows=4", "validation.sigmas=[0.5]", "validation.dry_run=true"]
    overrides += ["model.lora.rank_pattern={attn2.*: 2, ff.net.2: 6}", "model.lora.lr_pattern={attn2: 0.5}"]
    overrides += ["model.lora.alpha=8", "model.lora.rslora=true"]
    write_tiny_latents(tmp_path / "shards" / "latents", base, composed(*overrides[:8]))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole", "iclora_train", *overrides)
    assert whole.code == 0, whole.err
    process = start(tmp_path / "killed", "iclora_train", *overrides)
    log, deadline = tmp_path / "killed/runs/run/metrics.csv", time.monotonic() + 120
    while not log.exists() or log.read_bytes().count(b"\n") < 6:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.join()
    assert run(tmp_path / "killed", "iclora_train", *overrides).code == 0
    killed, whole_file = (tmp_path / name / "runs/run/adapter.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole_file.read_bytes()
    adapter = lora.read(whole_file)
    assert adapter.metadata["rank"] == "2 to 6"
    assert {len(a) for name, (a, _) in adapter.weights.items() if ".attn2." in name} == {2}
    assert "2 to 6" in whole_file.with_name("adapter.md").read_text()
    rates = [float(row["lr"]) for row in read_csv(tmp_path / "whole/runs/run/metrics.csv")[1:]]
    assert rates == [float(row["lr"]) for row in read_csv(log)[1:]]
    other = run(tmp_path / "whole", "iclora_train", *overrides, "model.lora.lr_pattern={attn2: 0.25}")
    assert other.code == 2
    assert "model.lora.lr_pattern.attn2: 0.5 -> 0.25" in other.err

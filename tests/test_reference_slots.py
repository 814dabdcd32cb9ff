"""task.reference_slots: a learned vector per reference, in the model, in the optimizer and in adapter files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.adapters.__main__ import main
from iclora_train.adapters.algebra import combine
from iclora_train.adapters.base_spec import BaseSpec
from iclora_train.adapters.card import card_text
from iclora_train.adapters.check import check
from iclora_train.adapters.convert import import_adapter
from iclora_train.adapters.file import Adapter, read, save
from iclora_train.adapters.fuse import fuse
from iclora_train.adapters.loaders import loader_limits
from iclora_train.adapters.merge_files import merge
from iclora_train.adapters.slots import KEY
from iclora_train.config import ConfigError, Lora, Task
from iclora_train.config.references import MoreReference
from iclora_train.core.fingerprint import comparable_task, content_settings
from iclora_train.core.types import Tokens
from iclora_train.diffusion.reference import append_reference
from iclora_train.diffusion.sampler import Reference, SamplerSettings, sample
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks
from iclora_train.training.optimizer import create_optimizer, learning_rate
from scripts.synthetic.published import transformer_arguments
from scripts.synthetic.random_base import RandomBase
from tests.adapter_files import VIDEO, adapter_for
from tests.test_audio_transformer import sound_of
from tests.test_compiled import network, scene
from tests.test_transformer import Case, inputs_of
from tests.tiny import composed

SECOND = MoreReference("second", "edit.frame")
MORE = {"more_references": json.dumps([SECOND.layout()])}
TWO = {"reference_downscale_factor": "1", **MORE}
CHANNELS, TEXT = 8, torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))


def latents(count: int) -> list[Tensor]:
    return list(torch.randn(count, 1, CHANNELS, 2, 4, 4, generator=torch.Generator().manual_seed(3)))


def two_references(first: Tensor, second: Tensor) -> Tokens:
    """Tokens of one target with two references of equal layout."""
    tokens = scene(CHANNELS)
    target = replace(
        tokens,
        **{name: getattr(tokens, name)[:, :32] for name in ("latent", "level", "loss_mask", "keyframe")},
        position=tokens.position[:, :, :32],
        group=tokens.group[:32],
    )
    return append_reference(append_reference(target, first), second)


def with_slots(net: Transformer, count: int = 2) -> Transformer:
    """The network with random slots."""
    slots = lora.attach_slots(net, count)
    torch.nn.init.normal_(slots, generator=torch.Generator().manual_seed(count))
    return net


def velocity(net: Transformer, tokens: Tokens) -> Tensor:
    """Of the target's tokens."""
    with torch.no_grad():
        return net(tokens, TEXT, num_outputs=32)


# ---- settings


def test_slots_need_several_references() -> None:
    with pytest.raises(ConfigError, match="reference_slots=true learns to tell several references apart"):
        Task(name="x", maker="control.canny", reference_slots=True)
    task = Task(name="x", maker="control.canny", more_references=[SECOND], reference_slots=True)
    assert [part.reference_slots for part in task.for_references()] == [False, False]


def test_shards_do_not_depend_on_slots_and_older_tasks_keep_their_hash() -> None:
    plain, learned = (composed("conf=canny_still", f"task.reference_slots={value}") for value in ("false", "true"))
    assert content_settings(plain) == content_settings(learned)
    assert "reference_slots" not in comparable_task(asdict(plain.task))
    assert comparable_task(asdict(learned.task))["reference_slots"] is True
    assert comparable_task({"conditions": [], "reference_frame": 0}) == {"reference_frame": 0}


# ---- the model


def test_swapped_references_of_equal_layout_change_the_output_only_with_slots() -> None:
    net, (a, b) = network(), latents(2)
    in_order, swapped = two_references(a, b), two_references(b, a)
    plain = velocity(net, in_order)
    torch.testing.assert_close(velocity(net, swapped), plain, rtol=1e-4, atol=1e-5)
    lora.attach_slots(net, 2)
    assert torch.equal(velocity(net, in_order), plain)  # as the base, until the slots have learned something
    with_slots(net)
    assert (velocity(net, swapped) - velocity(net, in_order)).abs().max() > 0.01


def test_a_slot_belongs_to_the_number_of_its_reference() -> None:
    """The target has none, and a reference keeps its own when the one before it is left out."""
    net, (a, b) = with_slots(network()), latents(2)
    slots = lora.slots_in(net)
    assert slots is not None
    added = slots(torch.tensor([0, 1, 2, 2]))
    assert torch.equal(added, torch.stack([torch.zeros_like(added[0]), slots.weight[0], *slots.weight[[1, 1]]]))
    alone = two_references(a, b).group[:64]
    assert alone.unique().tolist() == [0, 1]

    def sampled(number: int | None) -> Tensor:
        settings = SamplerSettings([1.0, 0.5, 0.0])
        references = [Reference(a, number=number)]
        return sample(net, TEXT, (2, 4, 4), scene(CHANNELS).geometry, 24.0, settings, [0], references)

    assert torch.equal(sampled(None), sampled(0))
    assert not torch.equal(sampled(0), sampled(1))


def test_slots_are_switched_off_with_the_adapter_and_scaled_with_it() -> None:
    net, tokens = network(), two_references(*latents(2))
    with lora.adapter_off(net):
        base = velocity(net, tokens)
    with_slots(net)
    with lora.adapter_off(net):
        assert torch.equal(velocity(net, tokens), base)
    lora.set_strength(net, 0)
    assert torch.equal(velocity(net, tokens), base)
    lora.set_strength(net, 0.5)
    slots = lora.slots_in(net)
    assert slots is not None
    torch.testing.assert_close(slots(torch.tensor([2]))[0], 0.5 * slots.weight[1])


@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
@pytest.mark.parametrize("kind", ["checkpointing", "compiled"])
def test_slots_get_the_same_gradient_from_every_runner(kind: str) -> None:
    """tests/test_graphs.py: also from CUDA graphs."""
    tokens, gradients = two_references(*latents(2)), []
    for changed in (False, True):
        torch._dynamo.reset()
        net = with_slots(network())
        if changed and kind == "compiled":
            compile_blocks(net, 1.0, "aot_eager")
        runner_of(net).activation_checkpointing = changed and kind == "checkpointing"
        net(tokens, TEXT).square().mean().backward()
        slots = lora.slots_in(net)
        assert slots is not None
        assert slots.weight.grad is not None
        gradients.append(slots.weight.grad)
    torch._dynamo.reset()
    assert gradients[0].abs().min(1).values.gt(0).all()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_slots_of_a_transformer_with_its_audio_half_get_the_same_gradient_with_checkpointing(official: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        net = BaseModel.open(str(official)).transformer(audio=True).train()
        (tokens, text), sound = inputs_of(Case(), net), sound_of(net)
        before = net(tokens, text, audio=sound)
        slots = lora.attach_slots(net, int(tokens.group.max()))
        runner_of(net).activation_checkpointing = checkpointing
        video, heard = net(tokens, text, audio=sound)
        assert torch.equal(video, before[0])
        (video.square().mean() + heard.square().mean()).backward()
        assert slots.grad is not None
        gradients.append(slots.grad)
    assert gradients[0].abs().amax(1).gt(0).all()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_slots_have_no_weight_decay() -> None:
    net = network()
    slots = lora.attach_slots(net, 2)
    groups = lora.parameter_groups(net, Lora(rank=4, lr_pattern={"attn1": 0.5}))
    optimizer = create_optimizer({"_target_": "torch.optim.AdamW", "lr": 0.1, "weight_decay": 0.3}, groups, [slots])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0]
    assert optimizer.param_groups[-1]["params"] == [slots]
    assert learning_rate(optimizer) == pytest.approx(0.1)
    assert optimizer.param_groups[-1]["lr"] == 0.1


# ---- adapter files


def slotted(spec: BaseSpec, seed: int = 0, count: int = 2) -> Adapter:
    """A random adapter with several references and a slot for each."""
    layouts = [{"name": f"more{i}"} for i in range(1, count)]
    adapter = adapter_for(spec, VIDEO, seed=seed, reference_downscale_factor="1", more_references=json.dumps(layouts))
    width = spec.linears["patchify_proj"][0]
    return replace(adapter, slots=torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def test_a_file_with_slots_is_read_as_it_was_written(tmp_path: Path, spec: BaseSpec) -> None:
    path, adapter = tmp_path / "a.safetensors", slotted(spec)
    save(path, adapter)
    for loaded in (read(path), import_adapter(path, spec)):
        assert loaded.slots is not None
        assert torch.equal(loaded.slots, adapter.slots)
    assert check(path, spec) == []
    assert load_file(path).keys() - {KEY} == {
        f"diffusion_model.{name}.lora_{side}.weight" for name in VIDEO for side in "AB"
    }


def without_more(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key != "more_references"}


BAD: list[tuple[Callable[[Adapter], Adapter], str]] = [
    (lambda a: replace(a, slots=torch.ones(3, 32)), r"reference_slots has the shape \(3, 32\), not \(2, width\)"),
    (lambda a: replace(a, slots=torch.ones(64)), r"reference_slots has the shape \(64,\), not \(2, width\)"),
    (lambda a: replace(a, slots=torch.ones(2, 32).int()), "reference_slots is stored as torch.int32; save it as"),
    (lambda a: replace(a, slots=torch.full((2, 32), torch.nan)), "reference_slots holds NaN or infinity"),
    (lambda a: replace(a, metadata=without_more(a.metadata)), "and the metadata name 1: export the adapter"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_malformed_slots_are_findings(
    tmp_path: Path, spec: BaseSpec, change: Callable[[Adapter], Adapter], message: str
) -> None:
    path, adapter = tmp_path / "a.safetensors", change(slotted(spec))
    save(path, slotted(spec))
    assert adapter.slots is not None
    save_file({**load_file(path), KEY: adapter.slots}, path, adapter.metadata)
    for read_file in (read, import_adapter):
        with pytest.raises(ConfigError, match=message):
            read_file(path)
    assert len(check(path)) == 1


def test_slots_of_another_width_do_not_fit_the_base(tmp_path: Path, spec: BaseSpec, official: Path) -> None:
    path, adapter = tmp_path / "a.safetensors", replace(slotted(spec), slots=torch.ones(2, 7))
    save(path, adapter)
    (finding,) = check(path, spec)
    assert finding.startswith("reference_slots: the learned slots have 7 channels, the base has 32")
    with pytest.raises(ConfigError, match="7 channels"):
        import_adapter(path, spec)


def test_convert_keeps_slots_or_leaves_them_out(
    tmp_path: Path, spec: BaseSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a.safetensors", slotted(spec))
    for options, kept in (([], True), (["--no-slots"], False)):
        with pytest.raises(SystemExit) as ending:
            main(
                ["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--dtype=fp32", *options]
            )
        assert ending.value.code == 0
        written = read(tmp_path / "b.safetensors")
        assert (written.slots is not None) is kept
        assert len(written.references) == 2
        assert ("with learned slots, which other programs ignore" in capsys.readouterr().out) is kept


def test_combined_slots_are_the_weighted_sum(spec: BaseSpec) -> None:
    """Of an adapter with more references, of one without slots, and of one without further references."""
    two, three, one = slotted(spec), slotted(spec, 1, 3), adapter_for(spec, VIDEO, reference_downscale_factor="1")
    three = replace(
        three, metadata={**three.metadata, "more_references": json.dumps([{"name": n} for n in ("more1", "c")])}
    )
    combined = combine([(two, 0.5), (three, -2.0), (one, 1.0)])
    assert combined.slots is not None
    assert two.slots is not None
    assert three.slots is not None
    expected = -2 * three.slots
    expected[:2] += 0.5 * two.slots
    torch.testing.assert_close(combined.slots, expected)
    assert combine([(one, 1.0)]).slots is None
    with pytest.raises(ConfigError, match=r"learned slots of different widths \[7, 32\]"):
        combine([(two, 1.0), (replace(two, slots=torch.ones(2, 7)), 1.0)])


def test_fused_and_separate_adapters_compute_the_same() -> None:
    trained, tokens = with_slots(network()), two_references(*latents(2))
    slots = lora.slots_in(trained)
    assert slots is not None
    adapter = Adapter(lora.adapter_weights(trained), TWO, slots.weight.detach().clone())
    plain = replace(adapter, slots=None)
    expected = velocity(trained, tokens)
    separate, fused, without = (fresh() for _ in range(3))
    lora.load_adapter(separate, adapter)
    fuse(fused, [(adapter, 0.5), (adapter, 0.5)])
    lora.load_adapter(without, plain)
    for net in (separate, fused):
        torch.testing.assert_close(velocity(net, tokens), expected, rtol=1e-4, atol=1e-5)
        assert not any(parameter.requires_grad for parameter in net.parameters())
    assert (velocity(without, tokens) - expected).abs().max() > 0.01
    with pytest.raises(ConfigError, match="7 channels"):
        fuse(fresh(), [(replace(adapter, slots=torch.ones(2, 7)), 1.0)])


def fresh() -> Transformer:
    return RandomBase("2.3", "tiny").transformer().train()


def test_an_adapter_with_slots_cannot_be_merged_into_the_files_of_a_base(
    tmp_path: Path, spec: BaseSpec, official: Path
) -> None:
    with pytest.raises(ConfigError, match="learned slots of its references, which the files of a base have no place"):
        merge(str(official), [(slotted(spec), 1.0)], tmp_path / "out.safetensors")
    assert list(tmp_path.glob("out*")) == []


def test_card_and_notes_say_that_other_programs_leave_the_slots_out(spec: BaseSpec) -> None:
    adapter = slotted(spec)
    (line,) = loader_limits(adapter)
    assert line.startswith("ComfyUI, ltx-pipelines and diffusers leave out the learned slots of the references")
    assert list(loader_limits(replace(adapter, slots=None))) == []
    card = card_text("a.safetensors", adapter)
    assert "| order of the references | learned" in card
    assert line in card
    assert "slots" not in card_text("a.safetensors", replace(adapter, slots=None))


def test_diffusers_loads_the_file_without_a_message_and_refuses_a_key_with_the_prefix(
    tmp_path: Path, spec: BaseSpec, official: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason why the key of the slots has no prefix."""
    save(tmp_path / "a.safetensors", slotted(spec))
    with safe_open(official, framework="pt") as opened:
        section = json.loads(opened.metadata()["config"])["transformer"]
    transformer = LTX2VideoTransformer3DModel(**transformer_arguments(section))
    parts = ("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "connectors", "vocoder")
    pipeline = LTX2Pipeline(**dict.fromkeys(parts), transformer=transformer)
    pipeline.load_lora_weights(str(tmp_path / "a.safetensors"))
    assert caplog.records == []
    assert sum(name.endswith("lora_A") for name, _ in transformer.named_modules()) == len(VIDEO)
    tensors = load_file(tmp_path / "a.safetensors")
    save_file({**tensors, f"diffusion_model.{KEY}": tensors[KEY].clone()}, tmp_path / "prefixed.safetensors")
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipeline.load_lora_weights(str(tmp_path / "prefixed.safetensors"), adapter_name="other")

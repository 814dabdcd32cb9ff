"""Strength, attention strength, mask and noise of each reference: settings, draws, tokens, gradients, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.adapters.algebra import combined_metadata
from iclora_train.adapters.card import card_text
from iclora_train.adapters.comfyui_settings import WITHOUT_SLOTS, WorkflowSettings
from iclora_train.adapters.comfyui_workflow import build_workflow
from iclora_train.adapters.convert import ReferenceFactors, with_factors
from iclora_train.adapters.file import Adapter
from iclora_train.adapters.loaders import loader_limits
from iclora_train.adapters.metadata import metadata_findings
from iclora_train.adapters.references import USE, references_metadata, use_metadata
from iclora_train.config import ConfigError, Flow, Task
from iclora_train.config.reference_use import KEYS, TASK_KEYS, ReferenceUse
from iclora_train.config.references import MoreReference
from iclora_train.core.fingerprint import comparable_task, content_settings
from iclora_train.core.types import Geometry, Tokens
from iclora_train.data.batch import Batch
from iclora_train.diffusion.loss import loss_at, training_losses
from iclora_train.diffusion.random_draws import RandomDraws, draw_random, step_generator
from iclora_train.diffusion.reference import to_tokens
from iclora_train.diffusion.sampler import Reference, clip_tokens
from iclora_train.diffusion.training_inputs import build_tokens
from iclora_train.generate.guides import with_trained_strengths
from iclora_train.generate.settings import GenerateSettings
from iclora_train.ltx2.model import attention, transformer
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks, set_cuda_graphs
from iclora_train.ltx2.runtime.cuda_graphs import CudaGraphs
from iclora_train.training.checkpointing import _with_new_settings
from tests.command import run
from tests.test_compiled import network
from tests.test_graphs import FakeCapture
from tests.test_train_references import settings_of
from tests.test_weighted import dense_bias
from tests.tiny import composed, write_tiny_base

GEOMETRY = Geometry(8, 32, 8)
GENERATOR = torch.Generator().manual_seed(0)
TARGET, FIRST, SECOND = torch.randn(3, 4, 8, 2, 4, 4, generator=GENERATOR)
BATCH = Batch(
    TARGET,
    [FIRST, SECOND],
    text=torch.randn(4, 5, 32, generator=GENERATOR),
    fps=torch.full((4,), 24.0),
    keys=list("abcd"),
    captions=[""] * 4,
)
COUNT = 32  # tokens of the target, and of each reference
OF_TARGET, OF_FIRST, OF_SECOND = (slice(i * COUNT, (i + 1) * COUNT) for i in range(3))
METADATA = {"base_model_family": "ltx", "base_model_version": "2.3", "size": "768x384x49", "fps": "24.0"}


def task_of(first: dict[str, Any] | None = None, **second: Any) -> Task:
    """A task with two references of equal layout."""
    more = [MoreReference("still", "edit.frame", **second)]
    return Task(name="x", maker="control.canny", more_references=more, **(first or {}))


def drawn(task: Task, flow: Flow | None = None, step: int = 0) -> RandomDraws:
    generator = step_generator(0, step, 0)
    return draw_random(TARGET, flow or Flow(), generator, None, task.more_references, None, task.reference_uses)


def tokens_of(task: Task, flow: Flow | None = None, step: int = 0) -> Tokens:
    return build_tokens(BATCH, drawn(task, flow, step), task, GEOMETRY)[0]


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 1.5}, r"strength=1.5 must be a number in \[0, 1\], or \[low, high\] within it"),
        ({"strength": [0.9, 0.5]}, r"strength=\[0.9, 0.5\] must be a number in"),
        ({"strength": True}, "strength=True must be a number in"),
        ({"strength": 0}, "strength=0 switches the reference off in every clip: leave the reference out"),
        ({"attention_strength": [0.5]}, r"attention_strength=\[0.5\] must be a number in"),
        ({"attention_strength_p": 2.0}, r"attention_strength_p=2.0 must lie in \[0, 1\], or be null"),
        ({"region_mask_p": -1.0}, r"region_mask_p=-1.0 must lie in \[0, 1\]"),
        ({"noise": "much"}, "noise='much' must be a number in"),
        ({"noise_p": 0.5}, "noise_p=0.5 is the probability of noise that is not set: set noise too"),
    ],
)
def test_a_wrong_value_is_named_with_its_entry_and_its_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^task\.more_references\[0\]\." + message):
        task_of(**settings)
    with pytest.raises(ConfigError, match=r"^task\.reference_" + message):
        task_of({f"reference_{key}": value for key, value in settings.items()})


def test_a_task_without_a_reference_has_no_use_of_one() -> None:
    with pytest.raises(ConfigError, match=r"task\.reference_strength=0.5: task\.maker=none has no reference"):
        Task(name="x", family="style", maker="none", reference_strength=0.5)


def test_each_reference_of_a_task_keeps_its_own_settings() -> None:
    task = task_of({"reference_noise": 0.2}, strength=[0.5, 1], attention_strength=0.4)
    assert [part.reference_use for part in task.for_references()] == task.reference_uses
    assert task.reference_uses[1].as_dict() == {"strength": [0.5, 1], "attention_strength": 0.4}
    assert task.reference_uses[1].usual == (1, 0.4)
    assert ReferenceUse(attention_strength=0.4, attention_strength_p=0.5).usual == (1, 1)


def test_unset_keys_change_neither_hash_nor_shards_nor_the_settings_of_an_older_run() -> None:
    plain = composed("conf=canny_still")
    changed = composed("conf=canny_still", "task.reference_strength=[0.5,1]", "task.reference_noise=0.1")
    assert content_settings(plain) == content_settings(changed)
    section = comparable_task(asdict(plain.task))
    assert not set(section) & set(TASK_KEYS)
    assert not set(section["more_references"][0]) & set(KEYS)
    assert comparable_task(asdict(changed.task))["reference_strength"] == [0.5, 1]
    now = {"task": json.loads(json.dumps(asdict(plain.task)))}
    older = {"task": {key: value for key, value in now["task"].items() if key not in TASK_KEYS}}
    older["task"]["more_references"] = [
        {key: value for key, value in entry.items() if key not in KEYS} for entry in now["task"]["more_references"]
    ]
    assert _with_new_settings(older, now) == now


# ---- draws and tokens


def test_without_settings_every_value_is_that_of_earlier_versions() -> None:
    flow = Flow(attention_strength_p=0.5, region_mask_p=0.5, reference_noise=0.3)
    with_uses, without = (
        draw_random(TARGET, flow, step_generator(0, 1, 0), uses=uses) for uses in (task_of().reference_uses, ())
    )
    assert with_uses.of_references == ()
    for name, value in vars(without).items():
        same = torch.equal if isinstance(value, Tensor) else lambda a, b: a == b
        assert same(value, getattr(with_uses, name)), name
    assert tokens_of(task_of()).weight is None


def test_settings_of_a_reference_change_no_other_draw() -> None:
    flow = Flow(attention_strength_p=0.5, caption_dropout_p=0.5)
    plain, own = drawn(task_of(), flow, 2), drawn(task_of(strength=[0, 1], noise=0.5, region_mask_p=0.5), flow, 2)
    for name in ("sigma", "noise", "clean_first_frame", "use_references", "attention_strength", "drop_caption"):
        assert torch.equal(getattr(plain, name), getattr(own, name)), name


def test_weights_of_the_second_reference_lie_on_its_tokens_only() -> None:
    tokens = tokens_of(task_of(attention_strength=[0.2, 0.4]))
    assert tokens.weight is not None
    assert (tokens.weight[:, : 2 * COUNT] == 1).all()
    of_clips = tokens.weight[:, OF_SECOND]
    assert (of_clips == of_clips[:, :1]).all()
    assert of_clips.min() >= 0.2
    assert of_clips.max() <= 0.4
    assert len(of_clips[:, 0].unique()) == 4


def test_a_region_of_the_second_reference_hides_its_tokens_only() -> None:
    tokens = tokens_of(task_of(region_mask_p=1.0))
    assert tokens.weight is not None
    assert (tokens.weight[:, : 2 * COUNT] == 1).all()
    assert (tokens.weight[:, OF_SECOND] == 0).any()
    assert (tokens.weight[:, OF_SECOND] < 1).any(1).all()
    assert (tokens.weight[:, OF_SECOND] > 0).any(1).all()


def test_noise_of_a_reference_changes_its_latents_only_and_not_its_level() -> None:
    plain, noisy = tokens_of(task_of()), tokens_of(task_of({"reference_noise": [0.3, 0.5], "reference_noise_p": 1.0}))
    change = (noisy.latent - plain.latent).abs()
    assert change[:, OF_FIRST].amax((1, 2)).min() > 0.1
    assert not change[:, OF_TARGET].any()
    assert not change[:, OF_SECOND].any()
    assert torch.equal(noisy.sigma, plain.sigma)
    assert torch.equal(noisy.level, plain.level)


def test_strength_is_the_noise_level_of_the_tokens_of_one_reference() -> None:
    """x_m = (1 - m sigma) x + m sigma noise at level m sigma, m = 1 - strength: as the sampler gives it."""
    task = task_of(strength=[0.2, 0.6])
    draws, tokens, plain = drawn(task), tokens_of(task), tokens_of(task_of())
    strength = draws.of_reference(1).strength
    assert strength is not None
    assert 0.2 <= strength.min() < strength.max() <= 0.6
    assert tokens.sigma.shape == (4, 3)
    levels = tokens.sigma.gather(1, tokens.level)
    torch.testing.assert_close(levels[:, OF_SECOND], ((1 - strength) * draws.sigma)[:, None].expand(-1, COUNT))
    assert torch.equal(levels[:, : 2 * COUNT], plain.sigma.gather(1, plain.level)[:, : 2 * COUNT])
    assert torch.equal(tokens.latent[:, : 2 * COUNT], plain.latent[:, : 2 * COUNT])
    level = levels[:, OF_SECOND, None]
    noise = (tokens.latent[:, OF_SECOND] - (1 - level) * to_tokens(SECOND)) / level
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(1, abs=0.1)
    references = [
        Reference.of_task(latent, part) for latent, part in zip(BATCH.references, task.for_references(), strict=True)
    ]
    assert [reference.strength for reference in references] == [1, 0.6]
    sampled = clip_tokens(TARGET, None, GEOMETRY, 24.0, references)
    assert torch.equal(sampled.level, tokens.level)
    assert sampled.sigma[0].tolist() == [1, 0, pytest.approx(0.4)]


def test_the_number_of_noise_levels_is_the_same_in_every_step() -> None:
    """A constant strength of 1 needs no level of its own, any other setting always has one."""
    assert {tokens_of(task_of(strength=[0.9, 1.0]), step=step).sigma.shape[1] for step in range(20)} == {3}
    assert tokens_of(task_of(strength=1.0)).sigma.shape[1] == 2
    both = tokens_of(task_of({"reference_strength": 0.5}, strength=0.7))
    assert both.sigma.shape[1] == 4
    torch.testing.assert_close(both.sigma[:, 2:], both.sigma[:, :1] * torch.tensor([0.5, 0.3]))


def test_flow_holds_for_references_that_do_not_say_otherwise() -> None:
    flow = Flow(attention_strength_p=1.0, region_mask_p=1.0, reference_noise=0.5)
    shared = drawn(task_of(), flow)
    own = drawn(task_of(attention_strength_p=0.0, region_mask_p=0.0, noise=0.0), flow)
    first, second = own.of_reference(0), own.of_reference(1)
    assert (second.attention_strength, second.region, second.noise) == (None, None, None)
    for mine, of_all in ((first.attention_strength, shared.attention_strength), (first.region, shared.region)):
        assert mine is not None
        assert of_all is not None
        assert torch.equal(mine, of_all)
    only_mask = drawn(task_of(region_mask_p=0.0), flow).of_reference(1)
    assert only_mask.region is None
    assert only_mask.attention_strength is not None
    assert only_mask.noise is not None


def test_a_probability_is_that_of_its_own_reference() -> None:
    """Alone it is that of strengths from 0 to 1, as flow.attention_strength_p."""
    task = task_of({"reference_attention_strength_p": 0.5}, attention_strength=0.3, attention_strength_p=0.25)
    first, second = [], []
    for step in range(200):
        weight = tokens_of(task, step=step).weight
        weight = torch.ones(4, 3 * COUNT) if weight is None else weight
        first += weight[:, COUNT].tolist()
        second += weight[:, 2 * COUNT].tolist()
    assert {round(value, 6) for value in second} == {0.3, 1.0}
    assert sum(value < 1 for value in second) / 800 == pytest.approx(0.25, abs=0.04)
    assert sum(value < 1 for value in first) / 800 == pytest.approx(0.5, abs=0.05)
    assert min(first) < 0.1


def test_a_reference_that_is_not_seen_keeps_weight_0() -> None:
    tokens = tokens_of(task_of(attention_strength=0.5, p=0.5), Flow(reference_p=0.7), step=3)
    assert tokens.weight is not None
    assert set(tokens.weight[:, 2 * COUNT].tolist()) == {0.0, 0.5}
    assert set(tokens.weight[:, COUNT].tolist()) <= {0.0, 1.0}


# ---- the model


def loss_of(net: Transformer, task: Task, draws: RandomDraws | None = None, batch: Batch = BATCH) -> Tensor:
    return training_losses(net, batch, draws or drawn(task), task, GEOMETRY).flow


def test_only_the_weighted_reference_loses_its_influence() -> None:
    """With attention weight 0 on reference 2, its content does not reach the loss, and that of reference 1 does.

    References do not see one another here, or reference 2 would reach the target through reference 1.
    """
    task: Task = task_of(attention_strength=0.5)
    net: Any = partial(network(), between="ltx")
    draws = drawn(task)
    of_references = tuple(
        replace(of, attention_strength=None if number == 0 else torch.zeros(4))
        for number, of in enumerate(draws.of_references)
    )
    off = replace(draws, of_references=of_references)
    first, second = ([FIRST + 1, SECOND], [FIRST, SECOND + 1])
    with torch.no_grad():
        loss = loss_of(net, task, off)
        assert torch.equal(loss_of(net, task, off, replace(BATCH, references=second)), loss)
        assert (loss_of(net, task, off, replace(BATCH, references=first)) != loss).all()
        half = loss_of(net, task, draws)
        assert (loss_of(net, task, draws, replace(BATCH, references=second)) != half).all()
        assert (half != loss).all()


def test_a_reference_that_is_left_out_has_no_influence_through_the_others() -> None:
    """As in use, where its tokens are not in the sequence."""
    net, task = network(), task_of(p=0.5)
    draws = drawn(task, step=1)
    assert draws.use_more is not None
    left_out = ~draws.use_more[:, 0]
    assert 0 < left_out.sum() < 4
    with torch.no_grad():
        loss = loss_of(net, task, draws)
        changed = loss_of(net, task, draws, replace(BATCH, references=[FIRST, SECOND + 1]))
        alone = loss_of(net, task.of_reference(0), draws, replace(BATCH, references=[FIRST]))
    assert ((changed == loss) == left_out).all()
    torch.testing.assert_close(loss[left_out], alone[left_out], rtol=1e-5, atol=1e-6)


def gradients(net: Transformer, task: Task) -> list[Tensor]:
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(loss_of(net, task).mean(), parameters))


WEIGHTED = task_of({"reference_attention_strength": [0.3, 0.9]}, strength=[0.1, 0.9], region_mask_p=1.0)
LEFT_OUT, STRENGTH = task_of(p=0.5), task_of(strength=[0.1, 0.9])


def test_gradients_of_weighted_references_are_those_of_a_dense_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    def dense(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return (logits if bias is None else logits + bias[:, None]).softmax(-1) @ v

    net = network()
    values = gradients(net, WEIGHTED)
    monkeypatch.setattr(attention, "attend", dense)
    monkeypatch.setattr(
        transformer, "AttentionBias", lambda weight, group, between, _: dense_bias(weight, group, between)
    )
    for value, expected in zip(values, gradients(net, WEIGHTED), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)
    assert all(value.any() for value in values)


@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
@pytest.mark.parametrize("kind", ["checkpointing", "compiled", "graphs"])
@pytest.mark.parametrize("task", [WEIGHTED, STRENGTH], ids=["weighted", "strength"])
def test_every_runner_gives_the_same_gradients(kind: str, task: Task) -> None:
    torch._dynamo.reset()
    expected, net = gradients(network(), task), network()
    if kind == "compiled":
        compile_blocks(net, 1.0, "aot_eager")
    if kind == "graphs":
        runner_of(net).cuda_graphs = CudaGraphs(FakeCapture)
    runner_of(net).activation_checkpointing = kind == "checkpointing"
    for _ in range(3):  # a graph is captured in the second step of a shape, and replayed in the third
        for value, of_plain in zip(gradients(net, task), expected, strict=True):
            torch.testing.assert_close(value, of_plain, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("task", [WEIGHTED, LEFT_OUT, STRENGTH], ids=["weighted", "left out", "strength"])
def test_graphs_of_several_references_on_a_gpu(task: Task, slots: bool) -> None:
    """A replay takes the strengths that are drawn for its step; a step with attention weights is not captured."""
    torch._dynamo.reset()
    batch, (plain, graphed) = BATCH.to(torch.device("cuda")), (network().cuda() for _ in range(2))
    for net in (plain, graphed):
        if slots:
            torch.nn.init.normal_(lora.attach_slots(net, 1), generator=torch.Generator("cuda").manual_seed(0))
        compile_blocks(net, 1.0)
    set_cuda_graphs(graphed, True)
    for step in range(5):
        for net in (plain, graphed):
            loss_of(net, task, drawn(task, step=step), batch).mean().backward()
        for value, expected in zip(graphed.parameters(), plain.parameters(), strict=True):
            if expected.requires_grad:
                assert value.grad is not None
                assert expected.grad is not None
                torch.testing.assert_close(value.grad, expected.grad, rtol=1e-2, atol=1e-4)
            value.grad = expected.grad = None
    graphs = runner_of(graphed).cuda_graphs
    assert graphs is not None
    assert bool(graphs.captured) == (task is STRENGTH)
    torch._dynamo.reset()


def test_held_out_losses_use_what_every_clip_of_training_had() -> None:
    net, noise = network(), torch.randn(TARGET.shape, generator=torch.Generator().manual_seed(1))

    def loss(task: Task, seed: int = 0) -> Tensor:
        with torch.no_grad():
            return loss_at(net, BATCH, noise, 0.6, task, GEOMETRY, seed)

    plain = loss(task_of())
    for varied in ({"strength": [0.5, 1]}, {"attention_strength_p": 0.9}, {"noise": 0.5}, {"region_mask_p": 0.9}):
        assert torch.equal(loss(task_of(**varied)), plain)
    weak = task_of(strength=0.5, attention_strength=[0.1, 0.3])
    assert (loss(weak) != plain).all()
    assert torch.equal(loss(weak), loss(weak))
    assert not torch.equal(loss(weak), loss(weak, 1))
    reference = Reference.of_task(SECOND, weak.of_reference(1), 0.5)
    assert (reference.strength, reference.attention_strength) == (0.5, 0.15)


# ---- a run


def test_a_run_resumes_with_the_same_draws_and_its_file_says_how_it_was_trained(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    still = "{name: still, maker: edit.frame, frame: 0, p: 0.9, strength: [0.3, 0.8], attention_strength_p: 0.5}"
    use = (f"task.more_references=[{still}]", "task.reference_region_mask_p=0.5", "task.reference_noise=0.2")
    steps = ("trainer.max_steps=4", "validation.checkpoint_every=2", "validation.loss_every=2")
    command = settings_of(tmp_path, base, *use, *steps)
    result = run(tmp_path, "iclora_train", *command)
    assert (result.code, result.err) == (0, "")
    path = tmp_path / "runs/run/adapter.safetensors"
    trained, metrics = path.read_bytes(), path.with_name("metrics.csv").read_bytes()
    card = path.with_suffix(".md").read_text()
    assert "| reference 2, still in training | strength 0.3 to 0.8, attention strength 0 to 1 (in 50% of the" in card
    path.unlink()
    (tmp_path / "runs/run/checkpoints/step-00000004.ckpt").unlink()
    result = run(tmp_path, "iclora_train", *command)
    assert "resuming from step 2" in result.out
    assert path.read_bytes() == trained
    assert path.with_name("metrics.csv").read_bytes() == metrics
    result = run(tmp_path, "iclora_train", *command, "task.reference_noise=0.3")
    assert result.code == 2
    assert "task.reference_noise: 0.2 -> 0.3" in result.err


# ---- adapter files and programs


def metadata_of(task: Task, **more: str) -> dict[str, str]:
    entries = {**use_metadata(task.reference_use), **references_metadata(task.more_references)}
    return {**METADATA, "reference_downscale_factor": "1", **entries, **more}


def test_the_file_keeps_the_settings_of_every_reference() -> None:
    task = task_of({"reference_strength": 0.8}, strength=[0.5, 1.0], region_mask_p=0.5, noise=0.1)
    metadata = metadata_of(task)
    assert metadata_findings(metadata) == []
    assert [layout.use for layout in Adapter({}, metadata).references] == task.reference_uses
    assert USE not in metadata_of(task_of())
    assert combined_metadata([(Adapter({}, metadata), 1.0), (Adapter({}, metadata), 1.0)])[USE] == metadata[USE]


def test_a_file_that_is_made_a_plain_lora_names_no_use_of_a_reference() -> None:
    metadata = metadata_of(task_of({"reference_strength": 0.8}, noise=0.1))
    plain = with_factors(metadata, ReferenceFactors(reference=False))
    assert not {USE, "more_references"} & plain.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({USE: "[1]"}, "does not hold the settings of a reference"),
        ({USE: '{"strength": 7}'}, "does not hold the settings of a reference"),
        ({USE: '{"volume": 1}'}, "does not hold the settings of a reference"),
        ({"more_references": '[{"name": "a", "noise": [2, 3]}]'}, "[0] has noise='[2, 3]', which training cannot set"),
    ],
)
def test_a_malformed_entry_is_a_finding(change: dict[str, str], message: str) -> None:
    (finding,) = metadata_findings({**METADATA, "reference_downscale_factor": "1", **change})
    assert message in finding
    assert {layout.use for layout in Adapter({}, {**METADATA, **change}).references} == {ReferenceUse()}


LIMITS: list[tuple[Callable[[], Task], dict[str, str]]] = [
    (lambda: task_of(strength=0.8), {"ComfyUI": "one strength, which sets", "diffusers": "samples in another way"}),
    (
        lambda: task_of(attention_strength=0.5),
        {"ltx-pipelines": "one attention strength for all", "ComfyUI": "one strength", "diffusers": "acts as 0"},
    ),
    (
        lambda: task_of({"reference_strength": 0.5, "reference_attention_strength": 0.5}),
        {"ltx-pipelines": "one attention strength for all", "diffusers": "acts as 0"},
    ),
    (
        lambda: task_of(region_mask_p=0.3),
        {"ltx-pipelines": "one attention mask for all", "ComfyUI": "ComfyUI-LTXVideo", "diffusers": "act as 0"},
    ),
    (lambda: task_of(strength=[0.5, 1]), {"ComfyUI": "ComfyUI-LTXVideo have both", "diffusers": "other results"}),
    (lambda: task_of(noise=0.3), {}),
]


@pytest.mark.parametrize(("make", "expected"), LIMITS)
def test_programs_that_cannot_give_the_strengths_are_named_at_once(
    make: Callable[[], Task], expected: dict[str, str]
) -> None:
    lines = list(loader_limits(Adapter({}, metadata_of(make()))))
    assert {line.split()[0] for line in lines} == expected.keys()
    assert len({(line.split()[0], line.split(":")[0]) for line in lines}) == len(lines) == len(expected)
    for program, words in expected.items():
        assert any(line.startswith(program) and words in line for line in lines)


def test_the_card_gives_commands_with_the_strengths_of_training() -> None:
    task = task_of({"reference_strength": 0.7, "reference_attention_strength": 0.5}, attention_strength=0.5)
    text = card_text("a.safetensors", Adapter({}, metadata_of(task)))
    assert "--video-conditioning reference.mp4 0.7 --video-conditioning still.mp4 1.0" in text
    assert "--conditioning-attention-mask white.mp4 0.5" in text
    assert "| reference 1, first in training | strength 0.7, attention strength 0.5 |" in text


def test_the_workflow_has_the_guide_node_that_can_give_the_strengths() -> None:
    def guide(task: Task) -> tuple[str, dict[str, Any]]:
        settings = WorkflowSettings.from_metadata(Path("a.safetensors"), metadata_of(task))
        node = build_workflow(settings)["guide: still"]
        keys = ("strength", "attention_strength", "latent_downscale_factor")
        return node.class_type, {key: node.inputs[key] for key in keys if key in node.inputs}

    assert guide(task_of(strength=[0.2, 1])) == ("LTXVAddGuide", {})
    assert guide(task_of(strength=0.5, attention_strength=0.5)) == ("LTXVAddGuide", {"strength": 0.5})
    own = {"strength": 0.5, "latent_downscale_factor": 1.0}
    assert guide(task_of(strength=0.5)) == ("LTXAddVideoICLoRAGuide", own)
    both = {"strength": 0.5, "attention_strength": 0.25, "latent_downscale_factor": 1.0}
    assert guide(task_of(strength=0.5, attention_strength=0.25)) == ("LTXAddVideoICLoRAGuideAdvanced", both)
    path, task = Path("a.safetensors"), task_of(strength=0.5)
    notes = WorkflowSettings.from_metadata(path, metadata_of(task)).notes()
    assert "guide: still: in training strength 0.5." in notes
    assert any("needs the custom nodes of ComfyUI-LTXVideo for still" in note for note in notes)
    assert WITHOUT_SLOTS not in notes
    assert WITHOUT_SLOTS in WorkflowSettings.from_metadata(path, metadata_of(task), slots=True).notes()


def test_generate_uses_the_strengths_of_training_unless_they_are_set() -> None:
    task = task_of({"reference_strength": [0.2, 0.7]}, attention_strength=0.5)
    adapter = Adapter({}, metadata_of(task))

    def strengths(**changes: Any) -> tuple[list[float], list[float]]:
        paths = {"adapter": "a", "reference": ["a.mp4", "b.mp4"], "out": "o.mp4", "cache": "c"}
        settings = with_trained_strengths(GenerateSettings(**(paths | changes)), adapter)
        return settings.reference_strength, settings.attention_strength

    assert strengths() == ([0.7, 1.0], [1.0, 0.5])
    assert strengths(reference_strength=1.0, attention_strength=[None, 0.9]) == ([1.0, 1.0], [1.0, 0.9])
    adapter = Adapter({}, {**METADATA, "reference_downscale_factor": "1"})
    assert strengths() == ([1.0, 1.0], [1.0, 1.0])

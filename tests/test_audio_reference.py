"""task.audio_reference and task.video_given: tokens, times, losses and gradients equal those of the published code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.config import ConfigError, Flow, Lora, Task
from iclora_train.config.audio_reference import AudioReference
from iclora_train.core.fingerprint import content_settings
from iclora_train.core.types import AudioGeometry, StreamTokens
from iclora_train.data.batch import Batch
from iclora_train.diffusion.audio_inputs import build_sound, require_audio_reference
from iclora_train.diffusion.joint_sampler import AudioStream, sample_with_sound
from iclora_train.diffusion.loss import joint_losses, losses_at
from iclora_train.diffusion.random_draws import RandomDraws, draw_audio_reference
from iclora_train.diffusion.sampler import SamplerSettings
from iclora_train.diffusion.training_inputs import build_tokens
from iclora_train.ltx2.audio.codec import audio_geometry
from iclora_train.ltx2.base_model import BaseModel
from scripts.synthetic.published import TRANSFORMER, renamed
from scripts.synthetic_checkpoint import write_checkpoint
from tests.test_audio_transformer import diffusers_model, published, relative_error
from tests.test_train_audio import random_batch
from tests.tiny import composed

LTX = AudioGeometry(channels=8, bins=16, sample_rate=16000, hop=160)
# Printed by the published code for 5 latent frames of target and of reference, noise levels 0.3 and 0.8: the strategy
# `flexible` of ltx-trainer with a reference in both modalities (it puts the reference first), and
# `patchify_dubit_audio_reference_latent` with `AudioConditionByReferenceLatent` of ltx-pipelines and ltx-core.
TARGET_TIMES = [[0.0, 0.01], [0.01, 0.05], [0.05, 0.09], [0.09, 0.13], [0.13, 0.17]]
REFERENCE_TIMES = {
    "av2av": TARGET_TIMES,
    "dubit": [[-0.21, -0.2], [-0.2, -0.16], [-0.16, -0.12], [-0.12, -0.08], [-0.08, -0.04]],
}
TIMESTEPS = [[0.3] * 5 + [0.0] * 5, [0.8] * 5 + [0.0] * 5]
# its loss where the video's velocity is off by 0.25, and the sound's by 0.5 in one clip and 1.5 in the other
OFFICIAL_LOSS = [0.3125, 2.3125]
OFFICIAL_LOSS_OF_GIVEN_VIDEO = [0.25, 2.25]  # with `is_generated: false` for the video


def task_with(placement: str, p: float = 1.0) -> Task:
    return Task(name="x", maker="given", audio_reference=AudioReference("reference", placement, p))


GIVEN = Task(name="foley", maker="none", family="style", video_given=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), "2.3")


def referenced_batch(base: BaseModel, clips: int = 2, reference: int = 6) -> tuple[Batch, RandomDraws]:
    """`random_batch` with audio references of `reference` latent frames."""
    batch, draws = random_batch(base, [True] * clips)
    assert batch.audio is not None
    channels, _, bins = batch.audio.shape[1:]
    sound = torch.randn(clips, channels, reference, bins, generator=torch.Generator().manual_seed(8))
    return replace(batch, audio_reference=sound), draws


def levels(tokens: StreamTokens) -> Tensor:
    """The noise level of each token (B,N)."""
    return tokens.sigma.gather(1, tokens.level)


@pytest.mark.parametrize("placement", ["av2av", "dubit"])
def test_tokens_times_and_levels_are_those_of_the_published_code(placement: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    audio, reference = normal(2, 8, 5, 16), normal(2, 8, 5, 16)
    batch = Batch(
        normal(2, 128, 2, 2, 2), [], normal(2, 1, 1), torch.full((2,), 25.0), ["a", "b"], audio=audio,
        audio_text=normal(2, 1, 1), heard=torch.tensor([True, True]), audio_reference=reference,
    )  # fmt: skip
    draws = RandomDraws(
        torch.tensor([0.3, 0.8]), batch.target, torch.zeros(2).bool(), torch.ones(2).bool(), audio_noise=audio
    )
    sound = build_sound(batch, draws, task_with(placement), LTX)
    tokens = sound.input.tokens
    times = torch.tensor(TARGET_TIMES + REFERENCE_TIMES[placement])
    assert tokens.position.shape == (2, 1, 10, 2)
    assert torch.allclose(tokens.position[1, 0], times, atol=1e-6)
    assert torch.allclose(levels(tokens), torch.tensor(TIMESTEPS))
    assert tokens.sigma[:, 0].tolist() == pytest.approx([0.3, 0.8])  # what the video stream sees
    assert tokens.loss_mask.tolist() == [[True] * 5 + [False] * 5] * 2
    assert tokens.group.tolist() == [0] * 5 + [1] * 5
    assert torch.equal(tokens.latent[:, 5:], reference.permute(0, 2, 1, 3).flatten(2))
    assert sound.velocity.shape == (2, 5, 128)
    again = build_sound(batch, draws, task_with(placement), LTX)
    assert again.input.tokens.position is tokens.position  # the RoPE tables of a size are computed once


@pytest.mark.parametrize(
    ("task", "expected"), [(task_with("av2av"), OFFICIAL_LOSS), (GIVEN, OFFICIAL_LOSS_OF_GIVEN_VIDEO)]
)
def test_the_loss_is_that_of_the_published_trainer(checkpoint: Path, task: Task, expected: list[float]) -> None:
    """A transformer that is off by known amounts on the target's tokens, and far off on all others."""
    base = BaseModel.open(str(checkpoint))
    (batch, draws), audio = referenced_batch(base), audio_geometry(base.checkpoint)
    if task.video_given:
        batch = replace(batch, references=[], audio_reference=None)
    _, target = build_tokens(batch, draws, task, base.geometry)
    sound = build_sound(batch, draws, task, audio)

    def off(tokens: StreamTokens, text: Tensor, num_outputs: int, audio: object) -> tuple[Tensor, Tensor]:
        return target + 0.25, sound.velocity + torch.tensor([0.5, 1.5])[:, None, None]

    losses = joint_losses(off, batch, draws, task, base.geometry, audio)  # type: ignore[arg-type]
    assert losses.audio is not None
    assert (losses.flow + losses.audio).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_given_video_is_clean_at_level_0_and_has_no_loss(checkpoint: Path) -> None:
    base = BaseModel.open(str(checkpoint))
    batch, draws = random_batch(base, [True, True])
    batch = replace(batch, references=[])
    tokens, _ = build_tokens(batch, draws, GIVEN, base.geometry)
    assert torch.equal(tokens.latent, batch.target.flatten(2).transpose(1, 2))
    assert not levels(tokens).any()
    assert not tokens.sigma[:, 0].any()  # what the audio stream sees
    assert not tokens.loss_mask.any()
    net, audio = base.transformer(audio=True), audio_geometry(base.checkpoint)
    losses = joint_losses(net, batch, draws, GIVEN, base.geometry, audio)
    assert losses.flow.tolist() == [0, 0]
    assert losses.audio is not None
    assert losses.total(Flow()) == losses.audio.mean()
    assert draws.audio_noise is not None
    of_video, of_sound = losses_at(net, batch, (draws.noise, draws.audio_noise), 0.5, GIVEN, base.geometry, audio)
    assert of_video.isnan().all()
    assert of_sound.isfinite().all()


@pytest.mark.parametrize("placement", ["av2av", "dubit"])
def test_gradients_equal_autograd_through_the_published_model(checkpoint: Path, placement: str) -> None:
    base, task = BaseModel.open(str(checkpoint)), task_with(placement)
    (batch, draws), audio = referenced_batch(base), audio_geometry(base.checkpoint)
    net = base.transformer(audio=True).train()
    lora.attach(net, Lora(rank=2, targets=["video", "audio"]))
    losses = joint_losses(net, batch, draws, task, base.geometry, audio)
    losses.total(Flow()).backward()
    reference = diffusers_model(checkpoint)
    (tokens, target), sound = build_tokens(batch, draws, task, base.geometry), build_sound(batch, draws, task, audio)
    video, heard = published(reference, tokens, batch.text, sound.input)
    of_video = (video[:, : target.shape[1]] - target).square().mean((1, 2))
    of_sound = (heard[:, : sound.velocity.shape[1]] - sound.velocity).square().mean((1, 2))
    assert torch.allclose(losses.flow, of_video, rtol=1e-4)
    assert losses.audio is not None
    assert torch.allclose(losses.audio, of_sound, rtol=1e-4)
    (of_video.mean() + of_sound.mean()).backward()
    names = set()
    for name, layer in lora.layers(net):
        weight = reference.get_submodule(renamed(name, TRANSFORMER)).weight
        a, b = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        assert relative_error(b.grad, weight.grad @ a.detach().T) < 1e-4, name
        names.add(name.split(".")[2])
    assert names >= {"attn1", "audio_attn1", "audio_ff", "audio_to_video_attn", "video_to_audio_attn"}


def losses_of(net: object, batch: Batch, draws: RandomDraws, task: Task, base: BaseModel) -> tuple[Tensor, Tensor]:
    losses = joint_losses(net, batch, draws, task, base.geometry, audio_geometry(base.checkpoint))  # type: ignore[arg-type]
    assert losses.audio is not None
    return losses.flow, losses.audio


@torch.no_grad()
def test_the_placement_and_the_reference_change_both_streams(checkpoint: Path) -> None:
    base = BaseModel.open(str(checkpoint))
    net, (batch, draws) = base.transformer(audio=True), referenced_batch(base)
    assert batch.audio_reference is not None
    results = [
        losses_of(net, batch, draws, task_with("av2av"), base),
        losses_of(net, batch, draws, task_with("dubit"), base),
        losses_of(net, replace(batch, audio_reference=batch.audio_reference.flip(0)), draws, task_with("dubit"), base),
        losses_of(net, replace(batch, audio_reference=None), draws, task_with("dubit"), base),
    ]
    for i, (video, sound) in enumerate(results):
        for other_video, other_sound in results[i + 1 :]:
            assert (video - other_video).abs().min() > 1e-6
            assert (sound - other_sound).abs().min() > 1e-6


@torch.no_grad()
def test_a_clip_that_is_trained_without_its_reference_has_no_tokens_of_it(checkpoint: Path) -> None:
    """Clips with and without a reference share a batch, and have the losses that they have alone."""
    base, task = BaseModel.open(str(checkpoint)), task_with("dubit", 0.5)
    net, (batch, draws) = base.transformer(audio=True), referenced_batch(base, clips=3)
    used = torch.tensor([False, True, False])
    mixed = losses_of(net, batch, replace(draws, use_audio=used), task, base)
    with_all = losses_of(net, batch, draws, task, base)
    with_none = losses_of(net, replace(batch, audio_reference=None), draws, task, base)
    for losses, having, lacking in zip(mixed, with_all, with_none, strict=True):
        assert torch.allclose(losses, torch.where(used, having, lacking), rtol=1e-4)
        assert not torch.allclose(having, lacking, rtol=1e-4)
    none = losses_of(net, batch, replace(draws, use_audio=torch.zeros(3).bool()), task, base)
    assert all(torch.allclose(one, other, rtol=1e-4) for one, other in zip(none, with_none, strict=True))


def test_the_share_of_clips_with_a_reference_is_p_of_those_that_see_references() -> None:
    generator, seen = torch.Generator().manual_seed(0), torch.arange(4000) % 2 == 0
    drawn = draw_audio_reference(seen, AudioReference("target", p=0.25), generator)
    assert drawn is not None
    assert not drawn[~seen].any()
    assert 0.2 < drawn[seen].float().mean() < 0.3
    before = generator.get_state()
    assert draw_audio_reference(torch.ones(3).bool(), AudioReference("target"), generator) is None
    assert draw_audio_reference(seen, None, generator) is None
    assert torch.equal(generator.get_state(), before)  # p = 1 draws nothing


@torch.no_grad()
@pytest.mark.parametrize("placement", ["av2av", "dubit"])
def test_a_sampled_sound_follows_a_reference_that_stays_clean(checkpoint: Path, placement: str) -> None:
    base = BaseModel.open(str(checkpoint))
    net, (batch, _) = base.transformer(audio=True), referenced_batch(base, clips=1)
    assert batch.audio is not None
    assert batch.audio_text is not None
    seen = []

    def watched(tokens: StreamTokens, *args: object, audio: object, **options: object) -> object:
        seen.append(audio.tokens)  # type: ignore[attr-defined]
        return net(tokens, *args, audio=audio, **options)  # type: ignore[call-overload]

    stream = AudioStream(audio_geometry(base.checkpoint), batch.audio.shape[2], batch.audio_text)
    given = (batch.text, (2, 2, 2), base.geometry, 25.0, SamplerSettings([1.0, 0.6, 0.0]), [3])
    plain = sample_with_sound(net, *given, stream)
    stream = replace(stream, reference=batch.audio_reference, placement=placement)
    video, sound = sample_with_sound(watched, *given, stream)  # type: ignore[arg-type]
    assert sound.shape == plain[1].shape == batch.audio.shape
    assert (sound - plain[1]).abs().max() > 1e-4
    assert (video - plain[0]).abs().max() > 1e-4
    assert batch.audio_reference is not None
    clean = batch.audio_reference.transpose(1, 2).flatten(2)
    count = batch.audio.shape[2]
    assert [round(float(tokens.sigma[0, 0]), 4) for tokens in seen] == [1.0, 0.6]
    for tokens in seen:
        assert torch.equal(tokens.latent[:, count:], clean)
        assert not levels(tokens)[:, count:].any()
        assert (tokens.position[0, 0, count:].max() < 0) == (placement == "dubit")


def test_a_clip_without_a_prepared_reference_is_refused(checkpoint: Path) -> None:
    batch, _ = random_batch(BaseModel.open(str(checkpoint)), [True])
    with pytest.raises(ConfigError, match=r"task.audio_reference: clip clip0 or another of its batch has none"):
        require_audio_reference(batch, task_with("dubit"))
    require_audio_reference(batch, Task(name="x", maker="given"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task.audio_reference.source=tape"], r"task.audio_reference.source='tape' is not one of target"),
        (["task.audio_reference.placement=before"], r"placement='before' is not one of av2av, dubit"),
        (["task.audio_reference.source=target", "task.audio_reference.p=0"], r"reference.p=0.0 must lie in \(0, 1\]"),
        (["task.audio_reference.source=target", "data.sound=null"], r"makes sound .* set data.sound=required"),
        (["task.video_given=true"], r"task.maker=degrade.defocus: task.video_given=true .* task.maker=none"),
        (["conf=style", "task.audio_reference.source=reference"],
         r"task.maker=none has no reference video: set source to target or column"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*([] if "conf=style" in settings else ["conf=deblur"]), "data.sound=required", *settings)


def test_shards_depend_on_the_source_alone_and_old_hashes_stay() -> None:
    def content(*settings: str) -> object:
        return content_settings(composed("conf=deblur", "data.sound=required", *settings))["task"]

    plain = content()
    assert "audio_reference" not in plain  # type: ignore[operator]
    one = content("task.audio_reference.source=target")
    assert one == {**plain, "audio_reference": {"source": "target"}}  # type: ignore[dict-item]
    assert one == content(
        "task.audio_reference.source=target", "task.audio_reference.placement=dubit", "task.audio_reference.p=0.5"
    )
    assert one != content("task.audio_reference.source=reference")

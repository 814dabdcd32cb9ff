"""model.audio=on in training: both streams in one pass, the loss of each, and adapters of both."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.config import ConfigError, Flow, Lora, Task
from iclora_train.data.batch import Batch
from iclora_train.diffusion.audio_inputs import build_sound
from iclora_train.diffusion.loss import ClipLosses, joint_losses
from iclora_train.diffusion.random_draws import RandomDraws
from iclora_train.diffusion.training_inputs import build_tokens
from iclora_train.ltx2.audio.codec import audio_geometry
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.shard_clip import encode_clip
from iclora_train.media.sound import read_sound
from iclora_train.training.metrics_table import read_metrics
from scripts.synthetic.gemma import gemma_for
from scripts.synthetic.published import TRANSFORMER, renamed
from scripts.synthetic_checkpoint import write_checkpoint
from tests.clips import moving
from tests.command import run
from tests.test_audio_transformer import diffusers_model, published, relative_error
from tests.test_data_sound import FPS, noise
from tests.test_real_bases import SMALL

TASK = Task(name="x", maker="degrade.defocus")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), "2.3")


def random_batch(base: BaseModel, heard: list[bool]) -> tuple[Batch, RandomDraws]:
    """Clips of 9 frames of 64x64 with a reference and sound, and the random values of a step."""
    generator, count = torch.Generator().manual_seed(0), len(heard)
    net, audio = base.transformer(audio=True).config, audio_geometry(base.checkpoint)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    size, sound = (net.in_channels, 2, 2, 2), (audio.channels, audio.latent_frames(9, 25), audio.bins)
    batch = Batch(
        normal(count, *size), [normal(count, *size)], normal(count, 4, net.text_width), torch.full((count,), 25.0),
        [f"clip{i}" for i in range(count)], audio=normal(count, *sound),
        audio_text=normal(count, 4, net.audio_text_width), heard=torch.tensor(heard),
    )  # fmt: skip
    no, sigma = torch.zeros(count, dtype=torch.bool), torch.linspace(0.3, 0.8, count)
    return batch, RandomDraws(sigma, normal(count, *size), no, ~no, audio_noise=normal(count, *sound))


def test_gradients_of_the_joint_loss_equal_autograd_through_the_published_model(checkpoint: Path) -> None:
    """The gradient of a weight W = W0 + B A is G; that of B is G A^T. One clip of two has no sound of its own."""
    base = BaseModel.open(str(checkpoint))
    (batch, draws), audio = random_batch(base, [True, False]), audio_geometry(base.checkpoint)
    net, flow = base.transformer(audio=True).train(), Flow(audio_weight=0.7)
    lora.attach(net, Lora(rank=2, targets=["video", "audio"]))
    losses = joint_losses(net, batch, draws, TASK, base.geometry, audio)
    losses.total(flow).backward()
    reference = diffusers_model(checkpoint)
    (tokens, target), sound = build_tokens(batch, draws, TASK, base.geometry), build_sound(batch, draws, TASK, audio)
    video, heard = published(reference, tokens, batch.text, sound.input)
    of_video = (video[:, : target.shape[1]] - target).square().mean((1, 2))
    of_sound = (heard - sound.velocity).square().mean((1, 2))
    assert torch.allclose(losses.flow, of_video, rtol=1e-4)
    assert losses.audio is not None
    assert torch.allclose(losses.audio, of_sound * torch.tensor([1.0, 0.0]), rtol=1e-4)
    (of_video.mean() + 0.7 * of_sound[0] / 2).backward()
    compared = set()
    for name, layer in lora.layers(net):
        weight = reference.get_submodule(renamed(name, TRANSFORMER)).weight
        a, b = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        assert relative_error(b.grad, weight.grad @ a.detach().T) < 1e-4, name
        compared.add(name.split(".")[2])
    assert compared >= {"attn1", "audio_attn1", "audio_attn2", "audio_ff", "audio_to_video_attn", "video_to_audio_attn"}


def test_clips_without_sound_do_not_count_and_the_weight_scales_the_rest(checkpoint: Path) -> None:
    base = BaseModel.open(str(checkpoint))
    (batch, draws), audio = random_batch(base, [False, True]), audio_geometry(base.checkpoint)
    net = base.transformer(audio=True)
    losses = joint_losses(net, batch, draws, TASK, base.geometry, audio)
    assert losses.audio is not None
    assert losses.audio[0] == 0 < losses.audio[1]
    assert losses.audio_of_heard().isnan().tolist() == [True, False]
    total = losses.total(Flow(audio_weight=2.0))
    assert torch.allclose(total, losses.flow.mean() + losses.audio[1])
    assert torch.allclose(losses.total(Flow(audio_weight=0.0)), losses.flow.mean())
    assert ClipLosses(draws.sigma, losses.flow, None).audio_of_heard().isnan().all()


def test_a_batch_without_sound_is_refused(checkpoint: Path) -> None:
    base = BaseModel.open(str(checkpoint))
    (batch, draws), audio = random_batch(base, [True]), audio_geometry(base.checkpoint)
    with pytest.raises(ConfigError, match="clip0 or another of its batch has no sound"):
        build_sound(replace(batch, audio=None), draws, TASK, audio)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(6):
        data = encode_clip(moving(32, 96, 96, i), FPS, lossless=False, sound=noise(1.3, i))
        (folder / f"clip{i}.mp4").write_bytes(data)
        (folder / f"clip{i}.txt").write_text(f"coloured squares {i}")
    return folder


def assert_resumed_exactly(folder: Path, settings: list[str]) -> None:
    """The run `whole` of three steps, interrupted after its second step, goes on there: it ends with the weights and
    the rows of the uninterrupted run. With other weights in the checkpoint of that step it ends with others."""
    ended = folder / "runs/whole"
    uninterrupted = {name: (ended / name).read_bytes() for name in ("adapter.safetensors", "metrics.csv")}
    (ended / "adapter.safetensors").unlink()
    (ended / "checkpoints/step-00000003.ckpt").unlink()
    path = ended / "checkpoints/step-00000002.ckpt"
    stored = path.read_bytes()
    again = run(folder, "iclora_train", *settings, "run=whole")
    assert again.code == 0, again.err
    assert "resuming from step 2" in again.out
    assert {name: (ended / name).read_bytes() for name in uninterrupted} == uninterrupted
    (ended / "adapter.safetensors").unlink()
    (ended / "checkpoints/step-00000003.ckpt").unlink()
    checkpoint = torch.load(io.BytesIO(stored), weights_only=True)
    names = [name for name in checkpoint["state_dict"] if "audio_attn1" in name and "lora_B" in name]
    assert names
    for name in names:
        checkpoint["state_dict"][name] += 1.0
    torch.save(checkpoint, path)
    changed = run(folder, "iclora_train", *settings, "run=whole")
    assert changed.code == 0, changed.err
    assert (ended / "adapter.safetensors").read_bytes() != uninterrupted["adapter.safetensors"]


def test_a_run_trains_both_streams_and_resumes_exactly(checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    settings = ["conf=deblur", "model=ltx2_3", f"model.checkpoint={checkpoint}", f"data.clips={clips}",
                f"data.root={tmp_path / 'shards'}", "data.sound=required"]  # fmt: skip
    encoder = f"model.text_encoder={gemma_for('2.3', tmp_path / 'gemma')}"
    prepared = run(tmp_path, "data_prep", *settings, *SMALL, encoder)
    assert prepared.code == 0, prepared.err
    small = [setting for setting in SMALL if setting != "logger=none"]
    both = (
        *small,
        "logger=csv",
        "model.audio=on",
        "model.lora.targets=[video,audio]",
        "data.batch_size=2",
        "trainer.max_steps=3",
    )
    whole = run(tmp_path, "iclora_train", *settings, *both, "run=whole")
    assert whole.code == 0, whole.err
    clips_of_step = sorted((tmp_path / "runs/whole/samples").glob("step-00000003-*.mp4"))
    assert clips_of_step
    for path in clips_of_step:
        assert read_sound(path).samples.std() > 1e-3  # that was made
        assert abs(read_sound(path).seconds - 9 / FPS) < 0.05
    adapter = lora.read(tmp_path / "runs/whole/adapter.safetensors")
    assert any("audio_to_video_attn" in name for name in adapter.weights)
    table = read_metrics(tmp_path / "runs/whole/metrics.csv")
    for column in ("loss", "loss_audio", "val_correct_0.3", "val_audio_correct_0.3", "val_audio_base_0.9"):
        values = [float(row[column]) for row in table.rows if row[column]]
        assert values, column
        assert min(values) > 0, column
    assert_resumed_exactly(tmp_path, [*settings, *both])
    refused = run(tmp_path, "iclora_train", *settings, *SMALL, "run=whole", "model.audio=off")
    assert refused.code == 2

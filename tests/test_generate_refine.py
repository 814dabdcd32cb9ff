"""The second stage: references and adapters in it, or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iclora_train.config import ConfigError, Model
from iclora_train.diffusion.sampler import sample
from iclora_train.generate import run, stages
from iclora_train.generate.kept import encode_frames
from iclora_train.ltx2.base_model import BaseModel
from scripts.synthetic.gemma import gemma_for
from scripts.synthetic.upsampler import write_upsampler
from scripts.synthetic_checkpoint import write_checkpoint
from tests.clips import write_clip
from tests.test_generate import generate_pixels, settings_for, write_adapter
from tests.test_generate_windows import frames_of

Call = tuple[tuple[Any, ...], Tensor]


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a video of 64x64x9 in two stages, with a synthetic base."""
    folder = tmp_path_factory.mktemp("two")
    checkpoint = write_checkpoint(folder / "base", "2.3")
    upsampler = write_upsampler(folder / "up.safetensors", in_channels=8, mid_channels=32, num_blocks_per_stage=1)
    encoder = gemma_for("2.3", folder / "gemma")
    return {
        "adapter": str(write_adapter(folder / "adapter.safetensors", checkpoint)),
        "reference": str(write_clip(folder / "clip.mp4", frames=9, height=64, width=64)),
        "model": Model(
            name="ltx", checkpoint=str(checkpoint), text_encoder=str(encoder), precision="fp32", audio="off"
        ),
        "upsampler": str(upsampler),
        "cache": str(folder / "cache"),
        **{"width": 64, "height": 64, "frames": 9},
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Arguments and result of every call of the sampler."""
    calls: list[Call] = []

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        calls.append((arguments, sample(*arguments, **options)))
        return calls[-1][1]

    monkeypatch.setattr(stages, "sample", recorded)
    return calls


def test_the_adapter_has_its_own_strength_in_the_second_stage(
    changes: dict[str, Any], tmp_path: Path, calls: list[Call]
) -> None:
    for strength in (1.0, 0.0, 0.5):
        generate_pixels(tmp_path, tmp_path / str(strength), **changes, refine_strength=strength)
    first, second = [result for _, result in calls[::2]], calls[1::2]
    assert all(torch.allclose(result, first[0], atol=1e-4) for result in first)
    base = BaseModel.open(changes["model"].checkpoint).transformer()
    for (arguments, result), strength in zip(second, (1.0, 0.0, 0.5), strict=True):
        without = sample(base, *arguments[1:])
        assert torch.allclose(result, without, atol=1e-4) == (strength == 0)
    assert not torch.allclose(second[0][1], second[2][1], atol=1e-4)


def test_the_second_stage_sees_the_references_at_its_size_if_it_is_told_to(
    changes: dict[str, Any], tmp_path: Path, calls: list[Call]
) -> None:
    for again in (False, True):
        generate_pixels(tmp_path, tmp_path / str(again), **changes, refine_reference=again, reference_strength=0.5)
    assert calls[1][0][7] == ()
    (reference,) = calls[3][0][7]
    vae = BaseModel.open(changes["model"].checkpoint).vae()
    assert torch.equal(reference.latent, encode_frames(frames_of(Path(changes["reference"])), vae))
    assert reference.strength == 0.5
    assert torch.equal(calls[0][1], calls[2][1])
    assert not torch.allclose(calls[1][1], calls[3][1], atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"upsampler": None, "refine_strength": 0.0}, "refine_strength is for the second stage: set upsampler=FILE"),
        ({"upsampler": None, "refine_reference": True}, "refine_reference is for the second stage: set upsampler=FI"),
        ({"refine_strength": float("nan")}, "refine_strength=nan must be below 1000"),
    ],
)
def test_settings_without_a_second_stage_are_refused(
    wrong: dict[str, Any], message: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run.generate(settings_for(tmp_path, tmp_path / "out", **changes | wrong))

"""Videos that continue a clip, lead to one, or change a part of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.core.types import VideoShape
from iclora_train.generate import run, video
from iclora_train.generate.inputs import Inputs
from iclora_train.generate.kept import encode_frames, encode_kept
from iclora_train.generate.windows import Window
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.clip import read_clip
from tests.clips import write_clip
from tests.test_generate import assets, settings_for

__all__ = ["assets"]  # the fixture
SHAPE = VideoShape(width=32, height=32, frames=13, fps=25.0)  # four latent frames


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 32x32 that are not resized, and a mask of the left half."""
    folder = tmp_path_factory.mktemp("media")
    for name, frames in (("short", 4), ("six", 6), ("long", 16)):
        write_clip(folder / f"{name}.mp4", frames=frames, height=32, width=32, seed=frames)
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    cv2.imwrite(str(folder / "left.png"), mask)
    cv2.imwrite(str(folder / "black.png"), mask * 0)
    return folder


def kept_of(
    assets: Path, shape: VideoShape = SHAPE, window: Window | None = None, **changes: Any
) -> tuple[Tensor, Tensor, Any]:
    """Latents (1,C,f,h,w), mask (f,h,w) and VAE of a video of 32x32x13, or of a window of it."""
    settings = settings_for(assets, assets, frames=shape.frames, **changes)
    vae = BaseModel.open(str(assets / "base")).vae()
    inputs = Inputs.open(settings).kept
    inputs.check(settings, shape, vae.temporal)
    kept = encode_kept(inputs, settings, shape, window or Window(0, shape.frames), vae)
    assert kept is not None
    return kept.latent, kept.mask[0], vae


def encoded(vae: Any, clip: Path, start: int, end: int) -> Tensor:
    latent: Tensor = encode_frames(np.stack(list(read_clip(clip))[start:end]), vae)
    return latent


def test_a_prefix_ends_with_the_last_frame_of_its_clip(assets: Path, media: Path) -> None:
    latent, mask, vae = kept_of(assets, prefix=str(media / "six.mp4"))
    assert mask.flatten(1).all(1).tolist() == [True, True, False, False]
    assert mask.flatten(1).any(1).tolist() == [True, True, False, False]
    assert torch.equal(latent[:, :, :2], encoded(vae, media / "six.mp4", 1, 6))  # 5 of 6 frames


def test_a_suffix_begins_after_the_first_frame_of_its_clip(assets: Path, media: Path) -> None:
    latent, mask, vae = kept_of(assets, suffix=str(media / "six.mp4"))
    assert mask.flatten(1).all(1).tolist() == [False, False, False, True]
    assert torch.equal(latent[:, :, 3:], encoded(vae, media / "six.mp4", 0, 5)[:, :, 1:])


def test_only_the_white_part_of_the_frames_is_made_anew(assets: Path, media: Path) -> None:
    part = {"regenerate": str(media / "left.png"), "regenerate_frames": [5, 9]}
    latent, mask, vae = kept_of(assets, source=str(media / "long.mp4"), **part)
    assert mask.flatten(1).all(1).tolist() == [True, True, False, True]
    half = mask.shape[2] // 2
    assert not mask[2, :, :half].any()
    assert mask[2, :, half:].all()
    source = encoded(vae, media / "long.mp4", 0, 13)
    assert torch.equal(latent[:, :, 1], source[:, :, 1])


def test_the_video_begins_with_its_prefix_and_ends_with_its_suffix(
    assets: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents: list[Tensor] = []
    decode = video.to_frames
    monkeypatch.setattr(video, "to_frames", lambda vae, latent: latents.append(latent) or decode(vae, latent))
    clips = {"prefix": str(media / "six.mp4"), "suffix": str(media / "long.mp4")}
    run.generate(settings_for(assets, tmp_path, frames=25, **clips))
    vae = BaseModel.open(str(assets / "base")).vae()
    assert torch.equal(latents[0][:, :, :2], encoded(vae, media / "six.mp4", 1, 6))
    assert torch.equal(latents[0][:, :, 4:], encoded(vae, media / "long.mp4", 0, 13)[:, :, 1:])
    record = (tmp_path / "video.json").read_text()
    assert "six.mp4" in record
    assert "long.mp4" in record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix": "no.mp4"}, "prefix=no.mp4 does not exist"),
        ({"prefix": "six.mp4", "first_frame": "left.png"}, "first_frame and prefix both say how the video begins"),
        ({"prefix": "long.mp4"}, "long.mp4 fill the video of 5 frames: set frames=17 or more"),
        ({"prefix": "six.mp4", "suffix": "six.mp4", "frames": 9}, "six.mp4 and .*six.mp4 fill .* set frames=13 or"),
        ({"suffix": "short.mp4"}, r"suffix=.*short.mp4 has 4 frames at 25 fps: it needs 5"),
        ({"regenerate": "left.png"}, "regenerate is a part of source: set source=CLIP too"),
        ({"source": "long.mp4"}, r"set what is made anew, regenerate=MASK or regenerate_frames=\[from,to\]"),
        ({"source": "six.mp4", "frames": 9, "regenerate": "left.png"}, "six.mp4 has 6 frames .* set frames=5 or less"),
        ({"source": "six.mp4", "regenerate": "black.png"}, "covers no part of the video: white is made anew"),
        ({"source": "six.mp4", "regenerate_frames": [3, 2]}, r"regenerate_frames=\[3, 2\] must be two frame numbers"),
        ({"source": "six.mp4", "regenerate_frames": 3}, "regenerate_frames=3 must be two frame numbers"),
        ({"source": "six.mp4", "regenerate_frames": [3, 6]}, r"must lie within the 5 frames of the video"),
        ({"source": "six.mp4", "regenerate": "left.png", "regenerate_mode": "most"}, "regenerate_mode='most'"),
    ],
)
def test_parts_that_do_not_fit_are_named_before_anything_is_written(
    changes: dict[str, Any], message: str, assets: Path, media: Path, tmp_path: Path
) -> None:
    is_file = {key: (media / str(value)).is_file() for key, value in changes.items()}
    paths = {key: str(media / value) if is_file[key] else value for key, value in changes.items()}
    with pytest.raises(ConfigError, match=message):
        run.generate(settings_for(assets, tmp_path / "out", **paths))
    assert not (tmp_path / "out").exists()

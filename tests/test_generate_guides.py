"""References that begin at a frame of the video (`reference_frame`): latents, places, masks, windows, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from iclora_train.adapters.file import Adapter
from iclora_train.config import ConfigError, Model
from iclora_train.core.types import VideoShape
from iclora_train.diffusion.sampler import Reference, clip_tokens
from iclora_train.generate.guides import reference_layouts
from iclora_train.generate.inputs import Inputs, encode_references
from iclora_train.generate.kept import encode_frames
from iclora_train.generate.run import generate
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.windows import Window
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.vae.video_vae import VideoVAE
from iclora_train.media.clip import read_clip
from tests.clips import write_clip
from tests.test_generate import write_adapter
from tests.tiny import write_tiny_base

SHAPE = VideoShape(17, 32, 32, 25.0)
WHOLE = Window(0, 17)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base (four frames per latent frame), an adapter, a clip of 25 frames and a picture."""
    folder = tmp_path_factory.mktemp("assets")
    write_adapter(folder / "adapter.safetensors", write_tiny_base(folder / "base"))
    write_adapter(folder / "last.safetensors", folder / "base", reference_frame=-1, size="32x32x9", fps=24.0)
    write_clip(folder / "clip.mp4", frames=25, height=32, width=32)
    cv2.imwrite(str(folder / "picture.png"), next(read_clip(folder / "clip.mp4"))[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def vae(assets: Path) -> VideoVAE:
    return BaseModel.open(str(assets / "base")).vae()


def settings_for(assets: Path, reference: Any = "clip.mp4", **changes: Any) -> GenerateSettings:
    names = reference if isinstance(reference, list) else [reference]
    paths = [str(assets / name) for name in names]
    model = Model(name="tiny", checkpoint=str(assets / "base"), precision="fp32")
    defaults = {"adapter": str(assets / "adapter.safetensors"), "reference": paths, "out": "video.mp4", "model": model}
    return GenerateSettings(**(defaults | {"prompt": "a dog", "cache": str(assets / "cache")} | changes))


def encoded(assets: Path, vae: VideoVAE, window: Window = WHOLE, **changes: Any) -> list[Reference]:
    settings = settings_for(assets, **changes)
    return encode_references(Inputs.open(settings), settings, SHAPE, window, Adapter({}), vae)


def frames_of(assets: Path) -> np.ndarray:
    return np.stack(list(read_clip(assets / "clip.mp4")))


@pytest.mark.parametrize(("frame", "start"), [(-1, 16), (16, 16), (0, 0), (7, 7)])
def test_a_picture_stands_at_its_frame(assets: Path, vae: VideoVAE, frame: int, start: int) -> None:
    (reference,) = encoded(assets, vae, reference="picture.png", reference_frame=frame)
    assert reference.frame == start
    assert torch.equal(reference.latent, encode_frames(frames_of(assets)[:1], vae))


@pytest.mark.parametrize(
    ("frame", "start", "count"),
    [(0, 0, 17), (1, 1, 16), (7, 5, 12), (-5, 9, 8), (13, 13, 4), (16, 13, 4)],
)
def test_a_clip_begins_with_a_latent_frame_and_ends_with_the_video(
    assets: Path, vae: VideoVAE, frame: int, start: int, count: int
) -> None:
    (reference,) = encoded(assets, vae, reference_frame=frame)
    assert reference.frame == start
    clip = frames_of(assets)
    if start == 0:
        assert torch.equal(reference.latent, encode_frames(clip[:count], vae))
    else:  # no latent frame for the first frame alone
        doubled = np.concatenate([clip[:1], clip[:count]])
        assert torch.equal(reference.latent, encode_frames(doubled, vae)[:, :, 1:])
        assert reference.latent.shape[2] == count // 4
    latent = torch.zeros(1, vae.channels, 5, 4, 4)
    tokens = clip_tokens(latent, None, vae.geometry, SHAPE.fps, [reference])
    frames = tokens.position[0, 0, 80:] * SHAPE.fps  # of the video
    assert (frames.min().item(), frames.max().item()) == pytest.approx((start, start + count))


def test_each_reference_has_its_own_frame(assets: Path, vae: VideoVAE) -> None:
    names = ["clip.mp4", "picture.png", "picture.png"]
    references = encoded(assets, vae, reference=names, reference_frame=[None, -1, 4])
    assert [reference.frame for reference in references] == [0, 16, 4]
    assert [reference.latent.shape[2] for reference in references] == [5, 1, 1]


def test_a_reference_belongs_to_the_windows_with_its_frame(assets: Path, vae: VideoVAE) -> None:
    windows = [Window(0, 9), Window(4, 9, 5), Window(8, 9, 5)]
    places = [
        [reference.frame for reference in encoded(assets, vae, w, reference="picture.png", reference_frame=7)]
        for w in windows
    ]
    assert places == [[7], [3], []]


def test_a_clip_that_begins_before_a_window_goes_on_in_it(assets: Path, vae: VideoVAE) -> None:
    clip, window = frames_of(assets), Window(8, 9, 1)
    (reference,) = encoded(assets, vae, window, reference_frame=6)  # it snaps down to frame 5
    assert reference.frame == 0
    assert torch.equal(reference.latent, encode_frames(clip[3:12], vae))
    (first,) = encoded(assets, vae, Window(0, 9), reference_frame=6)
    assert first.frame == 5
    assert torch.equal(first.latent, encode_frames(clip[[0, 0, 1, 2, 3]], vae)[:, :, 1:])
    write_clip(assets / "two.mp4", frames=2, height=32, width=32)
    assert encoded(assets, vae, window, reference="two.mp4", reference_frame=7) == []


def test_a_mask_follows_the_latent_frames_of_a_clip(assets: Path, vae: VideoVAE, tmp_path: Path) -> None:
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((32, 32), 10 * i, np.uint8))
    (reference,) = encoded(assets, vae, reference_frame=9, attention_mask=str(tmp_path))
    assert reference.attention_mask is not None
    assert (reference.attention_mask[0, :, 0, 0] * 255).tolist() == pytest.approx([15, 55])  # means of four frames


def test_the_adapter_says_where_its_reference_stands(assets: Path) -> None:
    adapter = Adapter({}, {"reference_frame": "-1"})
    for setting, frame in ((None, -1), (3, 3), ([None], None)):
        (layout,) = reference_layouts(settings_for(assets, reference_frame=setting), adapter)
        assert layout.frame == frame


def test_a_video_towards_a_last_frame(assets: Path, tmp_path: Path) -> None:
    """Length and rate come from the adapter's training clips: a picture has neither."""
    settings = settings_for(
        assets,
        "picture.png",
        adapter=str(assets / "last.safetensors"),
        first_frame=str(assets / "picture.png"),
        out=str(tmp_path / "video.mp4"),
    )
    settings.sample.steps = 2
    generate(settings)
    assert len(list(read_clip(tmp_path / "video.mp4"))) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_frame": 1.5}, r"reference_frame=1\.5 must be the number of a frame"),
        ({"reference_frame": "last"}, r"reference_frame=last must be the number of a frame"),
        ({"reference_frame": [1, 2]}, r"reference_frame=\[1, 2\] has 2 frames, and reference has 1"),
    ],
)
def test_a_wrong_frame_is_named(assets: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_for(assets, **changes)


@pytest.mark.parametrize("frame", [17, -18])
def test_a_frame_outside_the_video_is_refused(assets: Path, vae: VideoVAE, frame: int) -> None:
    with pytest.raises(ConfigError, match=rf"reference_frame={frame} does not exist in a clip of 17 frames: .* -17 to"):
        encoded(assets, vae, reference="picture.png", reference_frame=frame)

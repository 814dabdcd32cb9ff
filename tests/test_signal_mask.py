"""`iclora_train.signal mask`: people, boxes, sides and painted shapes as masks that other commands read exactly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data

from data_prep.signal.mask import make_mask
from data_prep.signal.mask_settings import MaskSettings
from iclora_train.config import ConfigError
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.kept import read_mask
from iclora_train.media.clip import read_clip
from iclora_train.media.shard_clip import encode_clip
from iclora_train.signals import blazepose
from iclora_train.signals.mask_shapes import interpolated
from tests.clips import write_clip

Run = Callable[..., np.ndarray]
SIZE = {"width": 32, "height": 24}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Make a mask and read it as `generate` does: (F,H,W) in [0, 1]."""

    def start(**settings: Any) -> np.ndarray:
        path = make_mask(MaskSettings(**{"out": str(tmp_path / "mask.mp4"), "overwrite": True, **settings}))
        media = InputMedia.open("attention_mask", str(path))
        fps = media.fps or 24.0
        frames = len(media.frame_numbers(fps))
        return read_mask(media, fps, 1, 0, frames, (media.height, media.width), "crop")[0].numpy()

    return start


@pytest.mark.parametrize(
    ("region", "part"),
    [
        ("left", np.s_[:, :8]),
        ("right", np.s_[:, 24:]),
        ("top", np.s_[:6]),
        ("bottom", np.s_[18:]),
        ("all", np.s_[:]),
    ],
)
def test_sides_cover_their_share(region: str, part: Any, run: Run) -> None:
    mask = run(region=region, share=0.25, **SIZE)
    expected = np.zeros((24, 32))
    expected[part] = 1
    assert (mask == expected[None]).all()


def test_a_box_is_in_pixels_of_the_clip(run: Run, tmp_path: Path) -> None:
    """The clip of 64x48 pixels becomes a video of 32x32: its middle, at two thirds of the size."""
    clip = str(write_clip(tmp_path / "clip.mp4", 5, 48, 64))
    whole = run(region="box", box=[10, 6, 20, 30], clip=clip)
    assert whole.shape == (5, 48, 64)
    expected = np.zeros((48, 64))
    expected[6:36, 10:30] = 1
    assert (whole == expected[None]).all()
    part = run(region="box", box=[0, 0, 32, 48], clip=clip, width=32, height=32)[0]
    assert (part[:, :15] == 1).all()
    assert (part[:, 17:] == 0).all()
    with pytest.raises(ConfigError, match="lies outside of the clip, which has 64x48 pixels"):
        run(region="box", box=[70, 0, 5, 5], clip=clip)


def test_a_ramp_fades_in_over_its_frames_and_a_negative_one_out(run: Run) -> None:
    rising = run(region="all", frames=9, ramp=5, **SIZE)[:, 0, 0]
    np.testing.assert_allclose(rising, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1], atol=0.5 / 255)
    falling = run(region="all", frames=9, ramp=-3, inside=0.8, outside=0.4, **SIZE)[:, 0, 0]
    np.testing.assert_allclose(falling, [*[0.8] * 7, 0.6, 0.4], atol=0.5 / 255)
    with pytest.raises(ConfigError, match="ramp=12: the mask has 9 frames"):
        run(region="all", frames=9, ramp=12, **SIZE)


def test_weights_growth_and_a_soft_edge(run: Run) -> None:
    box = {"region": "box", "box": [8, 8, 8, 8], **SIZE}
    assert set(np.unique(np.rint(run(**box, inside=1.0, outside=0.2) * 255))) == {51, 255}
    areas = [int(run(**box, grow=pixels).sum()) for pixels in (-2, 0, 3)]
    assert areas[0] < areas[1] == 64 < areas[2]
    soft = run(**box, feather=8.0)[0]
    assert len(np.unique(soft)) > 10
    assert soft.sum() == pytest.approx(64, abs=1)


def paint(path: Path, rows: slice, columns: slice) -> str:
    picture = np.zeros((24, 32, 3), np.uint8)
    picture[rows, columns] = 255
    cv2.imwrite(str(path), picture)
    return str(path)


def test_a_shape_moves_from_one_painted_picture_to_the_next(run: Run, tmp_path: Path) -> None:
    first = paint(tmp_path / "a.png", np.s_[4:20], np.s_[2:12])
    second = paint(tmp_path / "b.png", np.s_[4:20], np.s_[2:22])
    mask = run(region="painted", painted=[first, second], painted_frames=[2, 6], frames=9, **SIZE)
    widths = mask[:, 12].sum(axis=1)
    assert (mask[0] == mask[2]).all()
    assert (mask[6] == mask[8]).all()
    assert widths[2] == 10
    assert widths[6] == 20
    assert (np.diff(widths[2:7]) > 0).all()
    still = run(region="painted", painted=first, **SIZE)
    assert still.shape == (1, 24, 32)


def test_distant_shapes_are_interpolated_without_an_empty_frame_where_they_overlap() -> None:
    a, b = np.zeros((2, 20, 40), np.float32)
    a[5:15, 5:20] = 1
    b[5:15, 10:30] = 1
    between = interpolated([a, b], [0, 4], 5)
    assert between.reshape(5, -1).any(1).all()
    assert (between[0] == a).all()
    assert (between[4] == b).all()


def astronaut(folder: Path, frames: int = 5) -> str:
    """A clip in which a picture of a woman slides to the right on grey."""
    small = cv2.resize(skimage.data.astronaut(), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    clip = np.full((frames, 256, 288, 3), 128, np.uint8)
    for number, frame in enumerate(clip):
        frame[:, 3 * number : 3 * number + 256] = small
    path = folder / "person.mp4"
    path.write_bytes(encode_clip(clip, 25.0))
    return str(path)


def test_a_person_is_outlined_and_followed(run: Run, tmp_path: Path) -> None:
    mask = run(region="person", clip=astronaut(tmp_path))
    assert mask.shape == (5, 256, 288)
    face, flag, background = (115, 112), (60, 20), (20, 180)  # row, column in frame 0
    assert mask[0][face] == 1
    assert mask[0][flag] == 0
    assert mask[0][background] == 0
    assert 0.15 < mask[0].mean() < 0.6
    centres = [np.nonzero(frame)[1].mean() for frame in mask]
    assert np.polyfit(range(5), centres, 1)[0] == pytest.approx(3, abs=1.2)


def test_people_are_found_in_the_whole_picture_and_cut_with_the_video(run: Run, tmp_path: Path) -> None:
    """A video of the middle 128 columns of 288: the mask is the middle of the whole clip's."""
    clip = astronaut(tmp_path, 2)
    whole, part = run(region="person", clip=clip), run(region="person", clip=clip, width=128, height=256)
    assert part.shape == (2, 256, 128)
    assert (part == whole[:, :, 80:208]).all()


def test_a_clip_without_people_is_an_error_with_remedies(run: Run, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 3, 64, 64)
    with pytest.raises(ConfigError, match=r"no person was found in it: .*tiles=2, or mask them with region=box"):
        run(region="person", clip=str(clip))
    assert not (tmp_path / "mask.mp4").exists()


def test_a_pasted_square_lies_where_it_was_cut() -> None:
    square = blazepose.Square(30.0, 20.0, 24.0, 0.3)
    picture = np.zeros((48, 64, 3), np.uint8)
    cv2.circle(picture, (30, 20), 6, (255, 255, 255), -1)
    cut = square.crop(picture, 96, cv2.BORDER_CONSTANT)[..., 0].astype(np.float32) / 255
    back = square.paste(cut, (48, 64))
    assert np.abs(back - picture[..., 0] / 255).mean() < 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region": "middle"}, r"region='middle' is not one of person, box"),
        ({"region": "left"}, r"width and height: set them, or clip=FILE"),
        ({"region": "person", **SIZE}, r"clip is not set: people are found in a clip"),
        ({"region": "box", **SIZE}, r"box=None must be \[left,top,width,height\]"),
        ({"region": "left", "box": [0, 0, 1, 1], **SIZE}, r"box is for region=box, and region=left"),
        ({"region": "painted", **SIZE}, r"painted is not set"),
        ({"region": "painted", "painted": "no.png", **SIZE}, r"painted=no\.png is not a picture"),
        ({"region": "painted", "painted": ["a.png", "b.png"], **SIZE}, r"painted_frames is not set"),
        ({"region": "left", "share": 1.5, **SIZE}, r"share=1\.5 must lie in \(0, 1\)"),
        ({"region": "left", "clip": "missing.mp4"}, r"clip=missing\.mp4 does not exist"),
        ({"region": "left", "inside": 2, **SIZE}, r"inside=2.* must lie in \[0, 1\]"),
    ],
)
def test_what_cannot_be_masked_is_refused_with_a_remedy(
    settings: dict[str, Any], message: str, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(**settings)
    assert not list(tmp_path.glob("mask*"))


def test_a_black_painting_is_refused(run: Run, tmp_path: Path) -> None:
    black = paint(tmp_path / "black.png", np.s_[:0], np.s_[:0])
    with pytest.raises(ConfigError, match=r"black\.png is black: paint the region white"):
        run(region="painted", painted=black, **SIZE)


def test_the_command_writes_a_picture_or_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "iclora_train.signal", "mask", "region=left", "width=32", "height=24"]
    for words in (["out=mask.png"], ["out=frames", "frames=3", "ramp=3"]):
        result = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    assert next(read_clip(tmp_path / "mask.png"))[0, 0].tolist() == [255, 255, 255]
    assert [path.name for path in sorted((tmp_path / "frames").iterdir())] == [f"frame-0000{i}.png" for i in range(3)]
    refused = subprocess.run([*command, "out=mask.png"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "mask.png exists" in refused.stderr

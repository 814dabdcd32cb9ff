"""Orientation, pixel shape, transparency, interlacing: clips are read as a player shows them."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from iclora_train.media.clip import probe, read_clip
from iclora_train.media.shard_clip import encode_clip
from tests.clips import moving

TURNS = {  # a, b, c, d of the header: pixel (x, y) is shown at (a x + c y, b x + d y)
    **{"0": (1, 0, 0, 1), "90": (0, 1, -1, 0), "180": (-1, 0, 0, -1), "270": (0, -1, 1, 0)},
    **{"hflip": (-1, 0, 0, 1), "vflip": (1, 0, 0, -1), "transpose": (0, 1, 1, 0), "transverse": (0, -1, -1, 0)},
}


def turned(picture: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """What a player shows, pixel by pixel."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    x, y = a * x + c * y, b * x + d * y
    x, y = x - x.min(), y - y.min()
    shown = np.zeros((y.max() + 1, x.max() + 1, 3), picture.dtype)
    shown[y, x] = picture
    return shown


def with_matrix(data: bytes, a: float, b: float, c: float, d: float) -> bytes:
    """An mp4 with this display matrix in the header of its track."""
    at = data.index(b"tkhd") + 4 + 40
    numbers = [round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0)]
    return data[:at] + struct.pack(">9i", *numbers, 1 << 30) + data[at + 36 :]


def write(path: Path, codec: str, frames: Sequence[np.ndarray], pix_fmt: str, source: str = "rgb24", **changes) -> Path:
    """Write a clip at 25 fps. changes: attributes of the codec context."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=changes.pop("options", {}))
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt, (stream.height, stream.width) = pix_fmt, frames[0].shape[:2]
        for name, value in changes.items():
            setattr(stream.codec_context, name, value)
        for rgb in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format=source)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", TURNS)
def test_a_display_matrix_turns_and_mirrors(name, tmp_path):
    frames = moving(2, 32, 48)
    path = tmp_path / "a.mp4"
    path.write_bytes(with_matrix(encode_clip(frames, 25), *TURNS[name]))
    expected = np.stack([turned(frame, *TURNS[name]) for frame in frames])
    assert (np.stack(list(read_clip(path))) == expected).all()
    assert (probe(path).height, probe(path).width) == expected.shape[1:3]


def test_other_angles_are_refused_and_empty_matrices_ignored(tmp_path):
    frames, path = moving(2, 32, 48), tmp_path / "a.mp4"
    path.write_bytes(with_matrix(encode_clip(frames, 25), 0.866, 0.5, -0.5, 0.866))
    with pytest.raises(ValueError, match=r"a\.mp4: .*turns the picture by 30 degrees.*re-encode"):
        probe(path)
    path.write_bytes(with_matrix(encode_clip(frames, 25), 0, 0, 0, 0))
    assert (next(read_clip(path)) == frames[0]).all()


@pytest.mark.parametrize(
    ("height", "width", "aspect", "shown"),
    [
        (576, 720, Fraction(64, 45), 1024),  # DVD, 16:9
        (480, 720, Fraction(8, 9), 640),  # NTSC, 4:3
        (108, 144, Fraction(4, 3), 192),  # HDV, an eighth of 1440x1080
        (48, 96, Fraction(1280, 1281), 96),  # rounding of an encoder
        (48, 96, Fraction(1), 96),
    ],
)
def test_pixels_become_square(height, width, aspect, shown, tmp_path):
    wide = np.full((height, shown, 3), 30, np.uint8)
    cv2.circle(wide, (shown // 2, height // 2), height // 3, (230, 200, 60), -1)
    stored = cv2.resize(wide, (width, height), interpolation=cv2.INTER_AREA)
    path = write(
        tmp_path / "a.mkv", "libx264", [stored] * 3, "yuv420p", options={"crf": "5"}, sample_aspect_ratio=aspect
    )
    info, frame = probe(path), next(read_clip(path))
    assert (info.height, info.width) == frame.shape[:2] == (height, shown)
    y, x = np.nonzero(frame[..., 0] > 130)
    assert np.ptp(x) == pytest.approx(np.ptp(y), abs=2)
    resampled = f"{width}x{height} of pixels {aspect} resampled to {shown}x{height}"
    assert info.changes == ((resampled,) if shown != width else ())


def test_the_height_of_a_turned_anamorphic_clip_is_resampled(tmp_path):
    aspect = Fraction(4, 3)
    path = write(tmp_path / "a.mp4", "libx264", moving(2, 48, 96), "yuv420p", sample_aspect_ratio=aspect)
    path.write_bytes(with_matrix(path.read_bytes(), *TURNS["90"]))
    assert next(read_clip(path)).shape == (128, 48, 3)
    assert (probe(path).height, probe(path).width) == (128, 48)


def test_an_impossible_pixel_shape_is_refused(tmp_path):
    path = write(tmp_path / "a.mkv", "libx264", moving(2, 48, 96), "yuv420p", sample_aspect_ratio=Fraction(9, 1))
    with pytest.raises(ValueError, match=r"a\.mkv: .*9 times as wide as high.*re-encode"):
        probe(path)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("prores.mov", "prores_ks", "yuva444p10le"),
        ("vp9.webm", "libvpx-vp9", "yuva420p"),
        ("png.mov", "png", "rgba"),
        ("qtrle.mov", "qtrle", "argb"),
        ("ffv1.mkv", "ffv1", "bgra"),
    ],
)
def test_transparent_parts_are_black_whatever_colour_they_hide(name, codec, pix_fmt, tmp_path):
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., 1] = 255  # the hidden colour: green
    rgba[16:48, 16:32] = 220, 30, 30, 255
    rgba[16:48, 32:48] = 220, 30, 30, 128
    options = {"profile": "4"} if codec == "prores_ks" else {}
    path = write(tmp_path / name, codec, [rgba] * 4, pix_fmt, "rgba", options=options)
    frames = np.stack(list(read_clip(path))).astype(int)
    assert len(frames) == probe(path).frames == 4
    assert probe(path).changes == ("transparent parts over black",)
    assert frames[:, :8, :8].max() <= 2
    assert np.abs(frames[:, 24:40, 20:28] - (220, 30, 30)).max() <= 6
    assert np.abs(frames[:, 24:40, 36:44] - (110, 15, 15)).max() <= 6


def interlaced(count: int, height: int = 64, width: int = 128) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames of a bar that moves 8 pixels per frame, lower field first; and pictures at the times of these fields."""
    x = np.arange(width)
    fields = [np.where((x >= 8 + 4 * t) & (x < 40 + 4 * t), 200, 40).astype(np.uint8) for t in range(2 * count)]
    pictures = [np.repeat(np.repeat(field[None, :, None], height, 0), 3, 2) for field in fields]
    frames = [pictures[2 * n].copy() for n in range(count)]
    for n, frame in enumerate(frames):
        frame[::2] = pictures[2 * n + 1][::2]
    return frames, pictures[::2]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"x264-params": "bff=1", "crf": "5"}),
        ("a.mpg", "mpeg2video", {"flags": "+ildct+ilme", "b": "8M"}),
        ("a.ts", "mpeg2video", {"flags": "+ildct+ilme", "b": "8M"}),
    ],
)
def test_interlaced_frames_show_one_moment_each(name, codec, options, tmp_path):
    frames, moments = interlaced(12)
    path = write(tmp_path / name, codec, frames, "yuv444p" if codec == "libx264" else "yuv422p", options=options)
    read, info = list(read_clip(path)), probe(path)
    assert info.changes == ("deinterlaced",)
    assert (len(read), info.frames) == (12, 12)
    assert info.fps == 25
    error = [np.abs(a.astype(int) - b).mean() for a, b in zip(read, moments, strict=True)]
    assert max(error[1:]) < 2
    assert np.abs(read[6].astype(int) - frames[6]).mean() > 3


def test_progressive_frames_are_not_filtered(tmp_path):
    path = write(tmp_path / "a.mkv", "ffv1", moving(3, 32, 48), "bgr0")
    assert (np.stack(list(read_clip(path))) == moving(3, 32, 48)).all()
    assert probe(path).changes == ()


@pytest.mark.parametrize("side", [16_000, 60_000])
def test_huge_frames_are_refused_before_they_are_decoded(side, tmp_path):
    path = write(tmp_path / "a.mov", "png", [np.zeros((64, 64, 3), np.uint8)] * 2, "rgb24")
    data = bytearray(path.read_bytes())
    at = data.index(b"IHDR")
    data[at + 4 : at + 12] = struct.pack(">II", side, side)
    data[at + 17 : at + 21] = struct.pack(">I", zlib.crc32(data[at : at + 17]))
    path.write_bytes(data)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a\.mov: .*(limit of 134,217,728|damaged|cannot be read)"):
        probe(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 200_000, "KiB"

"""Colours: reading shows what a colour-managed player shows, and outputs say how they were made.

YUV values are computed by the formulas of the standards, not by libswscale.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.clips.clip_list import Clip
from data_prep.select_clips import select_clips
from iclora_train.config import Config, ConfigError, Data, Model, Task
from iclora_train.media.clip import probe, read_clip
from iclora_train.media.frame_decoder import DecodedFrame
from iclora_train.media.rgb import upright_rgb
from iclora_train.media.shard_clip import encode_clip

COLOURS = np.array(
    [
        *((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)),
        *((0, 0, 0), (128, 128, 128), (224, 172, 140), (30, 90, 160)),
    ]
)
LUMA = {"BT.601": (0.299, 0.114), "BT.709": (0.2126, 0.0722), "BT.2020": (0.2627, 0.0593)}  # weights of red and blue
MATRIX = {"BT.601": 6, "BT.709": 1, "BT.2020": 9}  # AVColorSpace
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
TO_P3 = np.array(
    [[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]]
)  # linear BT.709 -> Display P3
PRIMARIES_BT2020, PRIMARIES_P3, PQ, HLG, BT709 = 9, 12, 16, 18, 1


def patches(colours: np.ndarray, height: int, width: int) -> np.ndarray:
    """Vertical stripes (H,W,3) of the colours."""
    return np.repeat(colours, width // len(colours), axis=0)[None].repeat(height, axis=0)


def to_yuv(rgb: np.ndarray, matrix: str, full: bool = False) -> list[np.ndarray]:
    """Y, U, V of 10 bits of R'G'B' in [0, 1] (H,W,3)."""
    red, blue = LUMA[matrix]
    y = rgb @ (red, 1 - red - blue, blue)
    u, v = (rgb[..., 2] - y) / (2 - 2 * blue), (rgb[..., 0] - y) / (2 - 2 * red)
    scaled = (y * 1023, u * 1023 + 512, v * 1023 + 512) if full else (y * 876 + 64, u * 896 + 512, v * 896 + 512)
    return [np.clip(np.rint(plane), 0, 1023).astype(np.uint16) for plane in scaled]


def yuv_frame(rgb: np.ndarray, matrix: str, full: bool = False, **tags: int) -> av.VideoFrame:
    """A frame of 10 bits, 4:4:4. tags: colorspace, color_range, color_trc, color_primaries."""
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], "yuv444p10le")
    for plane, values in zip(frame.planes, to_yuv(rgb, matrix, full), strict=True):
        rows = np.zeros((rgb.shape[0], plane.line_size // 2), np.uint16)
        rows[:, : rgb.shape[1]] = values
        plane.update(rows.tobytes())
    for name, value in tags.items():
        setattr(frame, name, value)
    return frame


def write_ffv1(path: Path, frame: av.VideoFrame) -> Path:
    """A lossless clip of two such frames, with their tags."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
        context = stream.codec_context
        context.colorspace, context.color_range = frame.colorspace, frame.color_range
        context.color_trc, context.color_primaries = frame.color_trc, frame.color_primaries
        for number in range(2):
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown(frame: av.VideoFrame) -> np.ndarray:
    """The middle row of the frame as read (W,3)."""
    return upright_rgb(DecodedFrame(frame))[frame.height // 2].astype(int)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("size", [(64, 64), (720, 1280)], ids=["SD", "HD"])
def test_matrix_and_range_are_read_from_the_file(size, matrix, full, tmp_path):
    image = patches(COLOURS, *size)
    frame = yuv_frame(image / 255, matrix, full, colorspace=MATRIX[matrix], color_range=2 if full else 1)
    path = write_ffv1(tmp_path / "a.mkv", frame)
    assert np.abs(next(read_clip(path)).astype(int) - image).max() <= 1
    assert probe(path).changes == ()


@pytest.mark.parametrize(
    ("height", "width", "matrix"),
    [
        (64, 64, "BT.601"), (576, 720, "BT.601"), (576, 1024, "BT.601"), (480, 854, "BT.601"),
        (578, 720, "BT.709"), (720, 1280, "BT.709"), (536, 1280, "BT.709"), (1280, 720, "BT.709"),
    ],
)  # fmt: skip
def test_untagged_frames_are_bt709_from_1280_pixels_of_width_or_577_of_height(height, width, matrix):
    image = patches(COLOURS, height, width // 8 * 8)
    assert np.abs(shown(yuv_frame(image / 255, matrix)) - image[0]).max() <= 1


def pq(nits: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084, cd/m2 -> signal."""
    power = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(nits: np.ndarray) -> np.ndarray:
    """ARIB STD-B67 on a screen of 1000 cd/m2 and gamma 1.2, cd/m2 (...,3) -> signal."""
    luminance = np.maximum(nits @ (0.2627, 0.6780, 0.0593), 1e-6)[..., None]
    scene = nits / 1000 * (luminance / 1000) ** (-0.2 / 1.2)
    curve = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), curve)


@pytest.mark.parametrize(("signal", "transfer", "name"), [(pq, PQ, "PQ"), (hlg, HLG, "HLG")], ids=["PQ", "HLG"])
def test_hdr_shows_an_sdr_scene_as_sdr_and_clips_what_is_brighter_than_its_white(signal, transfer, name, tmp_path):
    sdr = np.array([*((255, 255, 255), (128, 128, 128), (40, 40, 40)), *((224, 172, 140), (200, 30, 30), (0, 0, 0))])
    nits = np.vstack([(sdr / 255) ** 2.4 * 203, [[600.0] * 3, [1000.0] * 3]])  # white at 203 cd/m2 (BT.2408)
    image = patches(signal(nits @ TO_BT2020.T), 64, 64)
    tags = {"colorspace": 9, "color_range": 1, "color_trc": transfer, "color_primaries": PRIMARIES_BT2020}
    path = write_ffv1(tmp_path / "a.mkv", yuv_frame(image, "BT.2020", **tags))
    row = next(read_clip(path))[32, 4::8].astype(int)
    assert np.abs(row[:6] - sdr).max() <= 2
    assert row[6:].min() == 255
    assert probe(path).hdr == name
    assert probe(path).changes == (f"HDR ({name}) converted to SDR",)


@pytest.mark.parametrize(
    ("primaries", "to_wide"), [(PRIMARIES_BT2020, TO_BT2020), (PRIMARIES_P3, TO_P3)], ids=["BT.2020", "P3"]
)
def test_wide_primaries_are_converted(primaries, to_wide):
    sdr = np.array([[255, 255, 255], [128, 128, 128], [224, 172, 140], [30, 90, 160], [180, 60, 60], [60, 150, 60]])
    signal = ((sdr / 255) ** 2.4 @ to_wide.T) ** (1 / 2.4)
    image = patches(np.vstack([signal, signal[:2]]), 64, 64)
    frame = yuv_frame(image, "BT.709", colorspace=1, color_range=1, color_trc=BT709, color_primaries=primaries)
    assert np.abs(image[0, 4::8][2] * 255 - sdr[2]).max() > 7, "without a conversion skin would be paler"
    assert np.abs(shown(frame)[4::8][:6] - sdr).max() <= 2


def test_grey_clips_of_limited_range_reach_black_and_white():
    frame = av.VideoFrame(64, 64, "gray")
    frame.planes[0].update(bytes([16, 235] * 32) * 64)
    assert shown(frame)[:2, 0].tolist() == [16, 235]
    frame.color_range = 1
    assert shown(frame)[:2, 0].tolist() == [0, 255]


def test_a_frame_that_cannot_be_converted_is_refused_by_name(tmp_path):
    frame = yuv_frame(patches(COLOURS, 64, 64) / 255, "BT.709", colorspace=14)  # ICtCp
    path = write_ffv1(tmp_path / "a.mkv", frame)
    for read in (probe, lambda file: list(read_clip(file))):
        with pytest.raises(ValueError, match=r"a\.mkv: frames in yuv444p10le cannot be shown: .*re-encode"):
            read(path)


@pytest.mark.parametrize("size", [(64, 64), (704, 1280)], ids=["SD", "HD"])
def test_clips_for_players_are_tagged_bt709_and_have_its_values(size, tmp_path):
    image = patches(COLOURS, *size).astype(np.uint8)
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_clip(np.stack([image] * 3), 24, lossless=False))
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
        planes = [plane.astype(float) for plane in np.split(next(container.decode(video=0)).to_ndarray(), [size[0]])]
    red, blue = LUMA["BT.709"]
    u, v = planes[1].reshape(2, size[0] // 2, size[1] // 2)
    y, u, v = planes[0][0, 4 :: size[1] // 8], u[0, 2 :: size[1] // 16], v[0, 2 :: size[1] // 16]
    y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    rgb = np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], axis=1) * 255
    assert np.abs(np.rint(rgb.clip(0, 255)) - COLOURS).max() <= 3  # of crf 16; BT.601 would be 25 off
    assert np.abs(next(read_clip(path)).astype(int)[0, 4 :: size[1] // 8] - COLOURS).max() <= 4


def test_the_levels_of_clips_for_players_are_rounded_not_cut(tmp_path):
    levels = np.arange(0, 256, 8)
    image = np.repeat(levels, 16)[None, :, None].repeat(64, 0).repeat(3, 2).astype(np.uint8)
    (tmp_path / "a.mp4").write_bytes(encode_clip(image[None], 24, lossless=False))
    with av.open(str(tmp_path / "a.mp4")) as container:
        luma = next(container.decode(video=0)).to_ndarray()[32, 8 : 16 * 32 : 16]
    assert np.abs(luma - (16 + levels * 219 / 255)).max() <= 0.6


def test_hdr_clips_can_be_refused(tmp_path):
    tags = {"colorspace": 9, "color_range": 1, "color_trc": HLG, "color_primaries": PRIMARIES_BT2020}
    path = write_ffv1(tmp_path / "a.mkv", yuv_frame(patches(COLOURS, 64, 64) / 510, "BT.2020", **tags))
    clip = Clip("a", path, "train")
    for hdr, reasons in ((None, []), ("convert", []), ("refuse", ["it is HDR (HLG), and data.hdr=refuse"])):
        data = Data(clips="", root="", frames=1, height=32, width=32, hdr=hdr)
        config = Config(
            Task(name="t", maker="degrade.grey", trigger=""), Model(name="m", checkpoint="m"), data, run="r"
        )
        assert [drop["reason"].split(";")[0] for drop in select_clips([clip], config)[1]] == reasons
    with pytest.raises(ConfigError, match=r"data\.hdr"):
        Data(clips="", root="", hdr="tonemap")

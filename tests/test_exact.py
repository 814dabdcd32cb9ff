"""Reading is frame-exact for every codec: frame i is frame i. Each frame shows its number as bars."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from data_prep.clips.windows import Window
from data_prep.pairs import read_windows
from iclora_train.media.clip import probe, read_clip
from iclora_train.media.shard_clip import encode_clip

BITS, BAR, HEIGHT = 7, 16, 64
FRAMES = 70
X265 = "log-level=none:keyint=12:min-keyint=12:bframes=4:open-gop="

CLIPS = {  # name -> encoder, pixel format, file type, options
    "h264, closed GOP": ("libx264", "yuv420p", "mp4", {"x264-params": "open-gop=0:keyint=12:bframes=3:b-adapt=0"}),
    "h264, open GOP": ("libx264", "yuv420p", "mp4", {"x264-params": "open-gop=1:keyint=12:bframes=8:b-adapt=0"}),
    "h264, 10 bit": ("libx264", "yuv420p10le", "mkv", {"x264-params": "open-gop=1:keyint=12:bframes=4"}),
    "hevc, closed GOP": ("libx265", "yuv420p", "mp4", {"x265-params": f"{X265}0"}),
    "hevc, open GOP": ("libx265", "yuv420p", "mov", {"x265-params": f"{X265}1"}),
    "hevc, 10 bit": ("libx265", "yuv420p10le", "mp4", {"x265-params": f"{X265}1"}),
    "vp9": ("libvpx-vp9", "yuv420p", "webm", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "24", "cpu-used": "8"}),
    # from preset 10 on, SVT-AV1 warns of artifacts: in 10 bit some frames show the picture of another frame
    "av1": ("libsvtav1", "yuv420p", "mp4", {"preset": "8", "g": "24"}),
    "av1, 10 bit": ("libsvtav1", "yuv420p10le", "mkv", {"preset": "8", "g": "24"}),
    "prores": ("prores_ks", "yuv422p10le", "mov", {"profile": "standard"}),
    "mpeg4 in avi": ("mpeg4", "yuv420p", "avi", {"bf": "2", "g": "12"}),
    "h264 in mpegts": ("libx264", "yuv420p", "ts", {"x264-params": "keyint=12:bframes=3"}),
}


def barcode(number: int) -> np.ndarray:
    """A frame uint8 (H,W,3) that shows its number in white and black bars, the lowest bit on the left."""
    bits = (number >> np.arange(BITS)) & 1
    row = np.repeat(bits * 200 + 25, BAR).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (HEIGHT, BITS * BAR, 3)))


def number_of(frame: np.ndarray) -> int:
    """The number that a frame shows."""
    means = frame[8:-8].mean(axis=(0, 2)).reshape(BITS, BAR)[:, 4:-4].mean(axis=1)
    return int(((means > 125) << np.arange(BITS)).sum())


def write(path: Path, encoder: str, pix_fmt: str, options: dict[str, str], ticks: list[int] | None = None) -> Path:
    """Encode FRAMES barcodes at 25 fps, or with frame i at ticks[i] ms."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, BITS * BAR, pix_fmt
        if ticks:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(barcode(i), format="rgb24")
            if ticks:
                frame.pts, frame.time_base = ticks[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def check_exact(path: Path) -> None:
    """Reading all frames, some frames, and overlapping windows gives exactly the requested frames."""
    assert [number_of(frame) for frame in read_clip(path)] == list(range(FRAMES))
    selected = (0, 11, 12, 13, 24, 47, 48, FRAMES - 1)
    assert [number_of(frame) for frame in read_clip(path, selected)] == list(selected)
    starts = (3, 11, 11, 30)
    windows = [
        Window("a", i, tuple(range(start, start + 33, 8)), (HEIGHT, 112), (0, 0), (16, 16), False, 25.0)
        for i, start in enumerate(starts)
    ]
    for window, frames in zip(windows, read_windows(path, windows), strict=True):
        assert tuple(map(number_of, frames)) == window.indices


@pytest.mark.parametrize("name", CLIPS)
def test_every_frame_is_the_requested_one(name, tmp_path):
    encoder, pix_fmt, suffix, options = CLIPS[name]
    path = write(tmp_path / f"clip.{suffix}", encoder, pix_fmt, options)
    assert probe(path).frames == FRAMES
    assert probe(path).fps == pytest.approx(25, abs=0.01)
    check_exact(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_times_do_not_shift_frames(suffix, tmp_path):
    ticks = np.cumsum(np.random.default_rng(0).choice([20, 40, 120], FRAMES)).tolist()
    options = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0"}
    path = write(tmp_path / f"clip.{suffix}", "libx264", "yuv420p", options, ticks)
    assert probe(path).times.seconds == pytest.approx([(tick - ticks[0]) / 1000 for tick in ticks], abs=1e-3)
    check_exact(path)


def test_decord_reads_the_clips_in_our_shards_exactly_after_any_seek():
    """Other programs read pair shards too; decord is known to be late after a seek into an open GOP."""
    order = np.random.default_rng(0).permutation(FRAMES)
    for lossless in (True, False):
        reader = decord.VideoReader(io.BytesIO(encode_clip(np.stack([*map(barcode, range(FRAMES))]), 25, lossless)))
        assert len(reader) == FRAMES
        assert [number_of(reader[int(i)].asnumpy()) for i in order] == order.tolist()
        assert [number_of(frame) for frame in reader.get_batch(order).asnumpy()] == order.tolist()

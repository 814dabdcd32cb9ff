"""The one door to PyAV and decord: frames in from any clip a user has, frames in and out of the clips in our shards.

A user's clip is decoded from its first frame to its last by PyAV: seeking is what makes decoders return wrong frames
(open GOPs, missing timestamps). Our own clips are closed-GOP without B-frames, on which decord is exact as well.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import av.container
import cv2  # noqa: F401 (before decord, whose own libraries would break cv2's PNG files when they are loaded first)
import decord
import numpy as np

decord.logging.set_level(decord.logging.QUIET)

RE_ENCODE = "re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4) or take it out of the clips"


@dataclass(frozen=True)
class ClipInfo:
    """What a clip really holds: upright size in pixels, presentation time of every frame in seconds (first is 0)."""

    height: int
    width: int
    fps: float
    times: tuple[float, ...]

    @property
    def frames(self) -> int:
        """Number of frames that decode."""
        return len(self.times)


def read_clip(path: Path, wanted: Container[int] | None = None) -> Iterator[np.ndarray]:
    """Frames uint8 RGB (H,W,3), upright, in presentation order: all, or those whose numbers are `wanted` (all are
    decoded, only these are converted). ValueError names the file and the remedy.
    """
    for number, frame in enumerate(_decode(path)):
        if wanted is None or number in wanted:
            rgb = frame.to_ndarray(format="rgb24")
            yield np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90))


def probe(path: Path) -> ClipInfo:
    """Decode the whole clip and tell what it holds; headers lie, and a damaged clip is best found before the work.

    ValueError as in `read_clip`, and when the picture size changes within the clip.
    """
    times: list[float | None] = []
    sizes = set()
    lasts = 1 / 24  # seconds a frame lasts, where the file says nothing
    for frame in _decode(path):
        times.append(frame.time)
        sizes.add((frame.width, frame.height) if frame.rotation // 90 % 2 else (frame.height, frame.width))
        if frame.duration and frame.time_base:
            lasts = float(frame.duration * frame.time_base)
    if len(sizes) > 1:
        raise ValueError(f"{path}: the picture size changes within the clip; {RE_ENCODE}")
    height, width = sizes.pop()
    return ClipInfo(height, width, *_timing(times, 1 / lasts))


def read_encoding(path: Path) -> tuple[str, str]:
    """Codec and pixel format of a clip's first video stream, FFmpeg's names, as its header tells.

    ValueError names the file and the remedy.
    """
    try:
        with av.open(str(path), "r") as container:
            context = container.streams.video[0].codec_context
            return context.name, str(context.pix_fmt)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: cannot be read as a video; {RE_ENCODE}") from error


def frames_at_rate(times: Sequence[float], fps: float) -> np.ndarray:
    """Numbers (m,) of the frames nearest in time to 0, 1/fps, 2/fps, ..., as far as the clip goes; `times` of all
    frames in seconds, from 0.
    """
    known = np.asarray(times)
    wanted = np.arange(int(known[-1] * fps + 0.01) + 1) / fps  # 0.01: mean rates such as 29.970 are rounded
    after = np.searchsorted(known, wanted).clip(min(1, len(known) - 1), len(known) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(wanted - known[before] <= known[after] - wanted, before, after)


def _timing(times: list[float | None], rate: float) -> tuple[float, tuple[float, ...]]:
    """Mean frames per second, and times from 0. Without increasing timestamps (old AVI) a constant `rate` is taken."""
    known = [t for t in times if t is not None]
    if len(known) < len(times) or any(b <= a for a, b in pairwise(known)):
        known = [i / rate for i in range(len(times))]
    span = known[-1] - known[0]
    return round((len(known) - 1) / span, 3) if span else round(rate, 3), tuple(t - known[0] for t in known)


def _decode(path: Path | io.BytesIO) -> Iterator[av.VideoFrame]:
    """Decoded frames of the first video stream, by one pass without seeking. Errors as ValueError."""
    count = 0
    try:
        with av.open(str(path) if isinstance(path, Path) else path, "r") as container:
            if not container.streams.video:
                raise ValueError(f"{path}: no video stream in it; give a video file or take it out of the clips")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            end = 0
            for packet in container.demux(stream):
                end = max(end, (packet.pts or 0) + (packet.duration or 0))
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise ValueError(f"{path}: frame {count} is damaged; {RE_ENCODE}")
                    count += 1
                    yield frame
            missing = _missing_seconds(stream, end)
    except av.FFmpegError as error:
        place = f"damaged after frame {count}" if count else "cannot be read as a video"
        raise ValueError(f"{path}: {place} ({error.strerror}); {RE_ENCODE}") from error
    if count == 0:
        raise ValueError(f"{path}: the video stream has no frames; {RE_ENCODE}")
    if missing:
        raise ValueError(f"{path}: truncated, the last {missing:.2f} s are missing after frame {count}; {RE_ENCODE}")


def _missing_seconds(stream: av.VideoStream, end: int) -> float:
    """Seconds by which the stream's packets end (at `end` ticks) before its header says. Under two frames is 0."""
    if not stream.duration or not stream.time_base or not stream.average_rate:
        return 0.0
    missing = float((stream.duration + (stream.start_time or 0) - end) * stream.time_base)
    return missing if missing > 2 / float(stream.average_rate) else 0.0


def encode_clip(frames: np.ndarray, fps: float, lossless: bool = True) -> bytes:
    """An mp4 of uint8 RGB frames (F,H,W,3); the same frames give the same bytes.

    lossless: H.264 in RGB that `decode_clip` gives back bit by bit. Otherwise yuv420p for any browser (H, W even).
    """
    with tempfile.TemporaryDirectory() as folder:  # faststart opens its file a second time, so memory will not do
        path = Path(folder, "clip.mp4")
        with av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
            _encode_into(container, frames, fps, lossless)
        return path.read_bytes()


def _encode_into(container: av.container.OutputContainer, frames: np.ndarray, fps: float, lossless: bool) -> None:
    """Write all frames; closed GOPs of at most 48 frames, no B-frames, one thread so that bytes do not depend on it."""
    codec, quality = ("libx264rgb", {"qp": "0"}) if lossless else ("libx264", {"crf": "16"})
    options = {**quality, "preset": "ultrafast" if lossless else "medium", "bf": "0", "g": "48"}
    options["x264-params"] = "open-gop=0:threads=1:lookahead-threads=1:rc-lookahead=0:mbtree=0"  # mbtree is not exact
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
    assert isinstance(stream, av.VideoStream)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "rgb24" if lossless else "yuv420p"
    for rgb in frames:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
    container.mux(stream.encode())


def decode_clip(data: bytes) -> np.ndarray:
    """Frames uint8 RGB (F,H,W,3) of a clip made by `encode_clip`. ValueError when the bytes are damaged."""
    try:
        reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
        return reader.get_batch(range(len(reader))).asnumpy()
    except RuntimeError as error:
        raise ValueError("the bytes are not a clip that decodes") from error
    except decord.DECORDError:  # decord 0.6 takes the padded rows of widths 16, 24, 48 and 72 for a fourth channel
        return np.stack([frame.to_ndarray(format="rgb24") for frame in _decode(io.BytesIO(data))])

"""Read and write videos. All use of PyAV and decord is in this file and in `video_codec`.

PyAV decodes a user's clip from its first frame to its last, because seeking makes decoders return wrong frames (open
GOPs, missing timestamps). The clips in shards are closed-GOP without B-frames, which decord also decodes exactly.
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
import cv2  # noqa: F401 (import before decord: decord's libraries, loaded first, break PNG files in cv2)
import decord
import numpy as np

decord.logging.set_level(decord.logging.QUIET)

RE_ENCODE = "re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4) or remove it from the clips"


@dataclass(frozen=True)
class ClipInfo:
    """Measurements of a clip: upright size in pixels, presentation time of each frame in seconds (the first is 0)."""

    height: int
    width: int
    fps: float
    times: tuple[float, ...]

    @property
    def frames(self) -> int:
        """Number of frames that decode."""
        return len(self.times)


def read_clip(path: Path, numbers: Container[int] | None = None) -> Iterator[np.ndarray]:
    """Frames uint8 RGB (H,W,3), upright, in presentation order: all, or only the frames in `numbers`.

    All frames are decoded; only the yielded ones are converted to RGB. ValueError names the file and the remedy.
    """
    for number, frame in enumerate(_decode(path)):
        if numbers is None or number in numbers:
            rgb = frame.to_ndarray(format="rgb24")
            yield np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90))


def probe(path: Path) -> ClipInfo:
    """Decode the whole clip and measure it. Headers can be wrong, and a damaged clip should fail before other work.

    ValueError as in `read_clip`, and when the picture size changes within the clip.
    """
    times: list[float | None] = []
    sizes = set()
    duration = 1 / 24  # seconds per frame; the default for files without durations
    for frame in _decode(path):
        times.append(frame.time)
        sizes.add((frame.width, frame.height) if frame.rotation // 90 % 2 else (frame.height, frame.width))
        if frame.duration and frame.time_base:
            duration = float(frame.duration * frame.time_base)
    if len(sizes) > 1:
        raise ValueError(f"{path}: the picture size changes within the clip; {RE_ENCODE}")
    height, width = sizes.pop()
    return ClipInfo(height, width, *_timing(times, 1 / duration))


def read_encoding(path: Path) -> tuple[str, str]:
    """Codec and pixel format of a clip's first video stream, from its header, in FFmpeg's names.

    ValueError names the file and the remedy.
    """
    try:
        with av.open(str(path), "r") as container:
            context = container.streams.video[0].codec_context
            return context.name, str(context.pix_fmt)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: cannot be read as a video; {RE_ENCODE}") from error


def frames_at_rate(times: Sequence[float], fps: float) -> np.ndarray:
    """Numbers (m,) of the frames nearest in time to 0, 1/fps, 2/fps, ... until the clip ends.

    times: seconds of all frames, beginning with 0.
    """
    source = np.asarray(times)
    target = np.arange(int(source[-1] * fps + 0.01) + 1) / fps  # 0.01: mean rates such as 29.970 are rounded
    after = np.searchsorted(source, target).clip(min(1, len(source) - 1), len(source) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(target - source[before] <= source[after] - target, before, after)


def _timing(times: list[float | None], rate: float) -> tuple[float, tuple[float, ...]]:
    """Mean frames per second, and times from 0. Without increasing timestamps (old AVI) the constant `rate` is used."""
    stamps = [t for t in times if t is not None]
    if len(stamps) < len(times) or any(b <= a for a, b in pairwise(stamps)):
        stamps = [i / rate for i in range(len(times))]
    span = stamps[-1] - stamps[0]
    return round((len(stamps) - 1) / span, 3) if span else round(rate, 3), tuple(t - stamps[0] for t in stamps)


def _decode(path: Path | io.BytesIO) -> Iterator[av.VideoFrame]:
    """Decode the frames of the first video stream in one pass, without seeking. Errors become ValueError."""
    count = 0
    try:
        with av.open(str(path) if isinstance(path, Path) else path, "r") as container:
            if not container.streams.video:
                raise ValueError(f"{path}: no video stream; give a video file or remove it from the clips")
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
        problem = f"damaged after frame {count}" if count else "cannot be read as a video"
        raise ValueError(f"{path}: {problem} ({error.strerror}); {RE_ENCODE}") from error
    if count == 0:
        raise ValueError(f"{path}: the video stream has no frames; {RE_ENCODE}")
    if missing:
        raise ValueError(f"{path}: truncated, the last {missing:.2f} s are missing after frame {count}; {RE_ENCODE}")


def _missing_seconds(stream: av.VideoStream, end: int) -> float:
    """Seconds from the last packet's end (`end`, in ticks) to the end by the header; 0 if shorter than two frames."""
    if not stream.duration or not stream.time_base or not stream.average_rate:
        return 0.0
    missing = float((stream.duration + (stream.start_time or 0) - end) * stream.time_base)
    return missing if missing > 2 / float(stream.average_rate) else 0.0


def encode_clip(frames: np.ndarray, fps: float, lossless: bool = True) -> bytes:
    """Encode uint8 RGB frames (F,H,W,3) as an mp4; the same frames give the same bytes.

    lossless: H.264 in RGB, which `decode_clip` decodes bit by bit. Otherwise yuv420p for browsers (H and W even).
    """
    with tempfile.TemporaryDirectory() as folder:  # faststart opens the file a second time, so it needs a real file
        path = Path(folder, "clip.mp4")
        with av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
            _encode_into(container, frames, fps, lossless)
        return path.read_bytes()


def _encode_into(container: av.container.OutputContainer, frames: np.ndarray, fps: float, lossless: bool) -> None:
    """Encode all frames: closed GOPs of at most 48 frames, no B-frames, and one thread for reproducible bytes."""
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
    """Decode a clip of `encode_clip` to uint8 RGB (F,H,W,3). ValueError when the bytes are damaged."""
    try:
        reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
        return reader.get_batch(range(len(reader))).asnumpy()
    except RuntimeError as error:
        raise ValueError("the bytes cannot be decoded as a clip") from error
    except decord.DECORDError:  # decord 0.6 reads padded rows (widths 16, 24, 48, 72) as a fourth channel
        return np.stack([frame.to_ndarray(format="rgb24") for frame in _decode(io.BytesIO(data))])

"""Open a video file and decode its frames.

A user's clip is decoded from its first frame to its last, because seeking makes decoders return wrong frames (open
GOPs, missing timestamps).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av

RE_ENCODE = "re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4) or remove it from the clips"


def decode(path: Path | io.BytesIO) -> Iterator[av.VideoFrame]:
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


def _missing_seconds(stream: av.VideoStream, end: int) -> float:
    """Seconds from the last packet's end (`end`, in ticks) to the end by the header; 0 if shorter than two frames."""
    if not stream.duration or not stream.time_base or not stream.average_rate:
        return 0.0
    missing = float((stream.duration + (stream.start_time or 0) - end) * stream.time_base)
    return missing if missing > 2 / float(stream.average_rate) else 0.0

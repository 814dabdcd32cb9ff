"""A part of a video, from one time to another: its frames are read as if the part were a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

from iclora_train.media.container import RE_ENCODE, decode
from iclora_train.media.deinterlace import deinterlaced
from iclora_train.media.frame_decoder import DecodedFrame

TOLERANCE = Fraction(1)  # seconds by which a part may end after its video


@dataclass(frozen=True)
class Part:
    """[start, end) of a video: seconds after its first frame, or numbers of frames. end None: the end of the video.

    A frame belongs to a part in seconds if its middle, halfway to the next frame, lies in it. So times that are rounded
    to milliseconds choose the same frames, and parts that adjoin share no frame and omit none.
    """

    start: Fraction = Fraction(0)
    end: Fraction | None = None
    in_frames: bool = False

    def __str__(self) -> str:
        unit = "frames" if self.in_frames else "s"
        return f"{float(self.start):g} to {'the end' if self.end is None else f'{float(self.end):g} {unit}'}"

    @property
    def bounds(self) -> list[str]:
        """Start and end as exact texts, for fingerprints and records."""
        return [str(self.start), "" if self.end is None else str(self.end), *(["frames"] if self.in_frames else [])]


def decode_part(path: Path, part: Part, as_shown: bool = True) -> Iterator[DecodedFrame]:
    """The frames of a part. as_shown: deinterlaced, where they are interlaced.

    Far into an mp4, mov, mkv or webm, decoding begins at a keyframe shortly before the part (`seek.py`). ValueError as
    in `decode`, if the video ends before the part does, and if its times cannot be used.
    """
    begin = Fraction(0)
    if part.in_frames:
        frames = decode(path)
    else:
        begin = _time_of(path, next(decode(path)))
        frames = decode(path, None if part.start == 0 else begin + part.start)
    if as_shown:
        frames = deinterlaced(frames)
    chosen = _by_number(path, frames, part) if part.in_frames else _by_time(path, frames, part, begin)
    first = next(chosen, None)
    if first is None:
        raise ValueError(f"{path} has no frame from {part}: correct the times")
    yield first
    yield from chosen


def _by_number(path: Path, frames: Iterable[DecodedFrame], part: Part) -> Iterator[DecodedFrame]:
    count = 0
    for decoded in islice(frames, None if part.end is None else int(part.end)):
        if count >= part.start:
            yield decoded
        count += 1
    if part.end is not None and count < part.end:
        raise ValueError(f"{path} has {count} frames, but its part is {part}: correct the numbers of the frames")


def _by_time(path: Path, frames: Iterable[DecodedFrame], part: Part, begin: Fraction) -> Iterator[DecodedFrame]:
    """The frames whose middle lies in the part. begin: the time of the video's first frame."""
    earlier, time, step = None, Fraction(0), Fraction(0)
    for decoded in frames:
        following = _time_of(path, decoded) - begin
        if earlier is not None:
            step = following - time
            if step < 0:
                raise _without_times(path)
            middle = time + step / 2
            if part.end is not None and middle >= part.end:
                return
            if middle >= part.start:
                yield earlier
        earlier, time = decoded, following
    if earlier is None:
        return
    frame = earlier.frame
    step = step or (frame.duration or 0) * (frame.time_base or Fraction(0))
    if part.end is not None and part.end > time + step + TOLERANCE:
        raise ValueError(f"{path} ends after {float(time + step):.3f} s, but its part is {part}: correct the times")
    if part.start <= time + step / 2 and (part.end is None or time + step / 2 < part.end):
        yield earlier


def _time_of(path: Path, decoded: DecodedFrame) -> Fraction:
    """The presentation time of a frame in seconds. ValueError if the file does not tell."""
    frame = decoded.frame
    if frame.pts is None or frame.time_base is None:
        raise _without_times(path)
    return frame.pts * frame.time_base


def _without_times(path: Path) -> ValueError:
    return ValueError(f"{path}: times are missing or run backwards, so that a part of it cannot be read; {RE_ENCODE}")

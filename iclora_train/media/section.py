"""A section of a video, from one time to another: its frames are read as if the section were a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

from iclora_train.media.container import RE_ENCODE, decode
from iclora_train.media.deinterlace import deinterlaced
from iclora_train.media.frame_decoder import DecodedFrame

TOLERANCE = Fraction(1)  # seconds by which a section may end after its video


@dataclass(frozen=True)
class Section:
    """[start, end) of a video: seconds after its first frame, or numbers of frames. end None: the end of the video.

    A frame belongs to a section in seconds if its middle, halfway to the next frame, lies in it. So times that are
    rounded to milliseconds choose the same frames, and sections that adjoin share no frame and omit none.
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


def decode_section(path: Path, section: Section, as_shown: bool = True) -> Iterator[DecodedFrame]:
    """The frames of a section. as_shown: deinterlaced, where they are interlaced.

    Far into an mp4, mov, mkv or webm, decoding begins at a keyframe shortly before the section (`seek.py`). ValueError
    as in `decode`, if the video ends before the section does, and if its times cannot be used.
    """
    begin = Fraction(0)
    if section.in_frames:
        frames = decode(path)
    else:
        begin = _time_of(path, next(decode(path)))
        frames = decode(path, None if section.start == 0 else begin + section.start)
    if as_shown:
        frames = deinterlaced(frames)
    chosen = _by_number(path, frames, section) if section.in_frames else _by_time(path, frames, section, begin)
    first = next(chosen, None)
    if first is None:
        raise ValueError(f"{path} has no frame from {section}: correct the times")
    yield first
    yield from chosen


def _by_number(path: Path, frames: Iterable[DecodedFrame], section: Section) -> Iterator[DecodedFrame]:
    count = 0
    for decoded in islice(frames, None if section.end is None else int(section.end)):
        if count >= section.start:
            yield decoded
        count += 1
    if section.end is not None and count < section.end:
        raise ValueError(f"{path} has {count} frames, but its section is {section}: correct the numbers of the frames")


def _by_time(path: Path, frames: Iterable[DecodedFrame], section: Section, begin: Fraction) -> Iterator[DecodedFrame]:
    """The frames whose middle lies in the section. begin: the time of the video's first frame."""
    earlier, time, step = None, Fraction(0), Fraction(0)
    for decoded in frames:
        following = _time_of(path, decoded) - begin
        if earlier is not None:
            step = following - time
            if step < 0:
                raise _without_times(path)
            middle = time + step / 2
            if section.end is not None and middle >= section.end:
                return
            if middle >= section.start:
                yield earlier
        earlier, time = decoded, following
    if earlier is None:
        return
    frame = earlier.frame
    step = step or (frame.duration or 0) * (frame.time_base or Fraction(0))
    if section.end is not None and section.end > time + step + TOLERANCE:
        raise ValueError(
            f"{path} ends after {float(time + step):.3f} s, but its section is {section}: correct the times"
        )
    if section.start <= time + step / 2 and (section.end is None or time + step / 2 < section.end):
        yield earlier


def _time_of(path: Path, decoded: DecodedFrame) -> Fraction:
    """The presentation time of a frame in seconds. ValueError if the file does not tell."""
    frame = decoded.frame
    if frame.pts is None or frame.time_base is None:
        raise _without_times(path)
    return frame.pts * frame.time_base


def _without_times(path: Path) -> ValueError:
    return ValueError(
        f"{path}: times are missing or run backwards, so that a section of it cannot be read; {RE_ENCODE}"
    )

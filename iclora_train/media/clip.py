"""Measure a clip, and read its frames."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from iclora_train.media.container import RE_ENCODE, decode
from iclora_train.media.deinterlace import deinterlaced
from iclora_train.media.frame_decoder import DecodedFrame
from iclora_train.media.frame_times import FrameTimes
from iclora_train.media.picture import is_picture, read_picture
from iclora_train.media.rgb import changes, hdr_kind, upright_rgb, upright_size
from iclora_train.media.section import Section, decode_section
from iclora_train.media.sound_decoder import time_of

PICTURE_RATE = Fraction(25)  # frames per second of a picture, which has one frame


@dataclass(frozen=True)
class ClipInfo:
    """Measurements of a clip: size in pixels as shown, presentation times of all frames that decode.

    hdr: PQ or HLG for a clip that is converted from HDR. changes: what reading changes in its frames, for the user.
    """

    height: int
    width: int
    times: FrameTimes
    hdr: str | None = None
    changes: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        """Number of frames that decode."""
        return len(self.times.ticks)

    @property
    def fps(self) -> float:
        """Frames per second; of a clip with a variable rate the rate of its regular parts."""
        return self.times.fps


def read_clip(
    path: Path,
    numbers: Container[int] | None = None,
    section: Section | None = None,
    times: dict[int, Fraction] | None = None,
) -> Iterator[np.ndarray]:
    """Frames of a video or picture as uint8 RGB (H,W,3), in presentation order: all, or only the frames in `numbers`.

    Frames are upright, have square pixels and BT.709 or sRGB colours, and are deinterlaced (`rgb.py`). With a section,
    only its frames are read, and numbers count from its first one. All frames are decoded, of a section far into a long
    file those from shortly before it; only the yielded ones are converted to RGB. times: gets the time in the file, in
    seconds, of frame 0 and of each frame before it is yielded. ValueError names the file and the remedy.
    """
    if is_picture(path):
        if numbers is None or 0 in numbers:
            yield read_picture(path)
        return
    for number, decoded in enumerate(deinterlaced(decode(path)) if section is None else decode_section(path, section)):
        chosen = numbers is None or number in numbers
        if times is not None and (chosen or number == 0):
            times[number] = time_of(decoded.frame)
        if chosen:
            yield _shown(path, decoded)  # no name holds the picture here: its memory serves the next one


def probe(path: Path, section: Section | None = None) -> ClipInfo:
    """Decode the whole clip, or a section, and measure it. Headers can be wrong, and a damaged clip should fail before
    other work.

    ValueError as in `read_clip`, and when the picture size changes within the clip.
    """
    if is_picture(path):
        height, width = read_picture(path).shape[:2]
        return ClipInfo(height, width, FrameTimes.constant(1, PICTURE_RATE))
    stamps: list[int | None] = []
    sizes, kinds, words = set(), set(), set()
    time_base, duration = Fraction(1, 24), 1  # of files without times
    for decoded in decode(path) if section is None else decode_section(path, section, as_shown=False):
        frame = decoded.frame
        try:
            sizes.add(upright_size(decoded))
            if not stamps:
                upright_rgb(decoded)
        except (ValueError, av.FFmpegError) as error:
            raise _unreadable(path, decoded, error) from error
        stamps.append(frame.pts)
        kinds.add(hdr_kind(frame))
        words |= changes(decoded)
        time_base, duration = frame.time_base or time_base, frame.duration or duration
    if len(sizes) > 1:
        raise ValueError(f"{path}: the picture size changes within the clip; {RE_ENCODE}")
    height, width = sizes.pop()
    declared = decoded.rate or 1 / (duration * time_base)
    times = FrameTimes.measure(stamps, time_base, declared)
    return ClipInfo(height, width, times, next(iter(kinds - {None}), None), tuple(sorted(words)))


def _shown(path: Path, decoded: DecodedFrame) -> np.ndarray:
    """`upright_rgb` of a frame. ValueError names the file."""
    try:
        return upright_rgb(decoded)
    except (ValueError, av.FFmpegError) as error:
        raise _unreadable(path, decoded, error) from error


def _unreadable(path: Path, decoded: DecodedFrame, error: Exception) -> ValueError:
    """An error that names the file and the pixel format of a frame that cannot be converted."""
    return ValueError(f"{path}: frames in {decoded.frame.format.name} cannot be shown: {error}; {RE_ENCODE}")

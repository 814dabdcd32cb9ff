"""Measure a clip, and read its frames."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from iclora_train.media.container import RE_ENCODE, decode, read_rate
from iclora_train.media.frame_times import FrameTimes
from iclora_train.media.rgb import upright_rgb, upright_size


@dataclass(frozen=True)
class ClipInfo:
    """Measurements of a clip: upright size in pixels, presentation times of all frames that decode."""

    height: int
    width: int
    times: FrameTimes

    @property
    def frames(self) -> int:
        """Number of frames that decode."""
        return len(self.times.ticks)

    @property
    def fps(self) -> float:
        """Frames per second; of a clip with a variable rate the rate of its regular parts."""
        return self.times.fps


def read_clip(path: Path, numbers: Container[int] | None = None) -> Iterator[np.ndarray]:
    """Frames uint8 RGB (H,W,3), upright, in presentation order: all, or only the frames in `numbers`.

    All frames are decoded; only the yielded ones are converted to RGB. ValueError names the file and the remedy.
    """
    for number, frame in enumerate(decode(path)):
        if numbers is None or number in numbers:
            yield upright_rgb(frame)


def probe(path: Path) -> ClipInfo:
    """Decode the whole clip and measure it. Headers can be wrong, and a damaged clip should fail before other work.

    ValueError as in `read_clip`, and when the picture size changes within the clip.
    """
    stamps: list[int | None] = []
    sizes = set()
    time_base, duration = Fraction(1, 24), 1  # of files without times
    for frame in decode(path):
        stamps.append(frame.pts)
        sizes.add(upright_size(frame))
        time_base, duration = frame.time_base or time_base, frame.duration or duration
    if len(sizes) > 1:
        raise ValueError(f"{path}: the picture size changes within the clip; {RE_ENCODE}")
    height, width = sizes.pop()
    declared = read_rate(path) or 1 / (duration * time_base)
    return ClipInfo(height, width, FrameTimes.measure(stamps, time_base, declared))

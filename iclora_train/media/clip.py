"""Measure a clip, and read its frames."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iclora_train.media.container import RE_ENCODE, decode
from iclora_train.media.frame_times import frame_times
from iclora_train.media.rgb import upright_rgb, upright_size


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
    for number, frame in enumerate(decode(path)):
        if numbers is None or number in numbers:
            yield upright_rgb(frame)


def probe(path: Path) -> ClipInfo:
    """Decode the whole clip and measure it. Headers can be wrong, and a damaged clip should fail before other work.

    ValueError as in `read_clip`, and when the picture size changes within the clip.
    """
    times: list[float | None] = []
    sizes = set()
    duration = 1 / 24  # seconds per frame; the default for files without durations
    for frame in decode(path):
        times.append(frame.time)
        sizes.add(upright_size(frame))
        if frame.duration and frame.time_base:
            duration = float(frame.duration * frame.time_base)
    if len(sizes) > 1:
        raise ValueError(f"{path}: the picture size changes within the clip; {RE_ENCODE}")
    height, width = sizes.pop()
    return ClipInfo(height, width, *frame_times(times, 1 / duration))

"""Frames of a mask or a generated video by number, read in order once: only the current frame is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from iclora_train.config import ConfigError

GREY = np.array([1 / 3] * 3, np.float32)


@dataclass
class Track:
    """Frames fp32 by ascending number. After the last one it is repeated, if `repeats`.

    key: the setting that names the file. open: begins to read it.
    """

    key: str
    open: Callable[[], Iterator[np.ndarray]]
    repeats: bool = False
    _frames: Iterator[np.ndarray] | None = field(default=None, init=False)
    _number: int = field(default=-1, init=False)
    _current: np.ndarray | None = field(default=None, init=False)

    def at(self, number: int) -> np.ndarray:
        """The frame of this number. ConfigError names the setting, and the file if it ends before."""
        try:
            self._frames = self.open() if self._frames is None else self._frames
            while self._number < number:
                frame = next(self._frames, None)
                if frame is None and (self._current is None or not self.repeats):
                    raise ValueError(f"the frames end before frame {number}: generate the video again")
                if frame is None:
                    break
                self._current, self._number = frame, self._number + 1
        except ValueError as error:
            raise ConfigError(f"{self.key}: {error}") from error
        assert self._current is not None
        return self._current


def grey(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Means of R, G and B (H,W)."""
    for frame in frames:
        yield frame @ GREY


def of_colour(frames: Iterator[np.ndarray], colour: tuple[int, ...]) -> Iterator[np.ndarray]:
    """1 where a frame has exactly this 8-bit colour (H,W), else 0."""
    for frame in frames:
        yield (np.rint(frame * 255) == np.array(colour)).all(axis=-1).astype(np.float32)

"""Read videos, folders of frames and images at a given frame rate and size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from iclora_train.config import ConfigError, require
from iclora_train.config.paths import user_path
from iclora_train.core.atomic_files import sha256
from iclora_train.core.fingerprint import digest
from iclora_train.media.clip import probe, read_clip
from iclora_train.media.frame_folder import frame_files
from iclora_train.media.frame_times import FrameTimes, temporal_subsample
from iclora_train.media.picture import IMAGES, UNREADABLE, is_picture, read_picture

MIN_RATE = 1 / 60  # frames per second; videos below it have wrong times


@dataclass(frozen=True)
class InputMedia:
    """A video (`pictures` is empty), or images in the order of their names.

    Images have no times: the images of a folder are shown at the frame rate of the output. key: the setting that names
    the file.
    """

    key: str
    path: Path
    pictures: tuple[Path, ...]
    height: int
    width: int
    times: FrameTimes | None  # of a video
    changes: tuple[str, ...] = ()  # what reading changes in a video, in words for the user

    @classmethod
    def open(cls, key: str, name: str) -> InputMedia:
        """Read sizes and times; a video is decoded once. ConfigError names the setting, the path and the remedy."""
        path = user_path(name)
        require(path.exists(), f"{key}={name} does not exist: give a video, a folder of frames, or an image")
        try:
            if not path.is_dir() and not is_picture(path):
                info = probe(path)
                if info.times.mean_fps < MIN_RATE:
                    raise ValueError(
                        f"{path} shows a frame every {1 / info.times.mean_fps:g} seconds: give it a frame rate"
                    )
                return cls(key, path, (), info.height, info.width, info.times, info.changes)
            pictures = tuple(frame_files(path, IMAGES + UNREADABLE) if path.is_dir() else [path])
            if not pictures:
                raise ValueError(f"{path} has no images in it ({', '.join(IMAGES)}): give another folder")
            height, width = read_picture(pictures[0]).shape[:2]
            return cls(key, path, pictures, height, width, None)
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from error

    def sha256(self) -> str:
        """sha256 of the file; of a folder, the digest of its images' sha256 in order."""
        return digest([sha256(picture) for picture in self.pictures]) if self.path.is_dir() else sha256(self.path)

    @property
    def fps(self) -> float | None:
        """Frames per second of a video; None for images."""
        return self.times.fps if self.times else None

    def frame_numbers(self, fps: float, factor: int = 1, start: int = 0) -> np.ndarray:
        """Numbers (m,) of the frames that a video of `fps` frames per second shows from its frame `start` on.

        factor: the temporal factor of a reference, whose frames are fewer (`temporal_subsample`).
        """
        numbers = self.times.frame_numbers(fps) if self.times else np.arange(len(self.pictures))
        return temporal_subsample(numbers[start:], factor)

    def read(self, numbers: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
        """Frames of these numbers, fitted to (height, width): uint8 RGB (F,H,W,3). ConfigError names a bad picture."""
        frames = {i: fit_frame(frame, size, fit) for i, frame in self.whole_frames(set(numbers.tolist()))}
        return np.stack([frames[i] for i in numbers.tolist()])

    def whole_frames(self, numbers: set[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Number and picture, uint8 RGB (H,W,3) of its own size, of these frames in order. ConfigError as in `read`."""
        try:
            decoded = self._read_pictures(numbers) if self.pictures else read_clip(self.path, numbers)
            yield from zip(sorted(numbers), decoded, strict=True)
        except ValueError as error:
            raise ConfigError(f"{self.key}: {error}") from error

    def _read_pictures(self, numbers: set[int]) -> Iterator[np.ndarray]:
        for i in sorted(numbers):
            picture = read_picture(self.pictures[i])
            if picture.shape[:2] != (self.height, self.width):
                raise ValueError(
                    f"{self.pictures[i]} is {picture.shape[1]}x{picture.shape[0]}, {self.pictures[0].name} is "
                    f"{self.width}x{self.height}: give frames of one size"
                )
            yield picture


def fit_frame(frame: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """Resize a frame (H,W,3) to (height, width).

    fit: crop keeps the aspect ratio and cuts off both sides equally. stretch keeps the whole picture and distorts it,
    as ComfyUI's guide nodes do by default.
    """
    height, width = size
    if fit == "crop":
        scale = min(frame.shape[0] / height, frame.shape[1] / width)
        rows, columns = round(height * scale), round(width * scale)
        top, left = (frame.shape[0] - rows) // 2, (frame.shape[1] - columns) // 2
        frame = frame[top : top + rows, left : left + columns]
    if frame.shape[:2] == size:
        return frame
    shrinks = frame.shape[0] >= height and frame.shape[1] >= width
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)

"""The part of a picture that a mask shows, as (F,H,W) fp32 in [0, 1] at the size of the clip or of the video."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from data_prep.signal.mask_settings import MaskSettings
from iclora_train.config import ConfigError, require
from iclora_train.config.paths import user_path
from iclora_train.media.picture import read_picture
from iclora_train.signals.mask_shapes import interpolated


def side(region: str, share: float, size: tuple[int, int]) -> np.ndarray:
    """The left, right, top or bottom part of a picture (H,W); the last row or column is partly in it."""
    height, width = size
    length = width if region in ("left", "right") else height
    along = np.clip(share * length - np.arange(length), 0, 1).astype(np.float32)
    along = along[::-1] if region in ("right", "bottom") else along
    return np.tile(along, (height, 1)) if region in ("left", "right") else np.tile(along[:, None], (1, width))


def box(settings: MaskSettings, size: tuple[int, int]) -> np.ndarray:
    """A rectangle of a picture (H,W). ConfigError if it lies outside."""
    left, top, width, height = settings.box
    inside = max(left, 0) < min(left + width, size[1]) and max(top, 0) < min(top + height, size[0])
    require(inside, f"box={settings.box} lies outside of the clip, which has {size[1]}x{size[0]} pixels")
    result = np.zeros(size, np.float32)
    result[max(top, 0) : top + height, max(left, 0) : left + width] = 1
    return result


def painted(settings: MaskSettings, frames: int, size: tuple[int, int] | None) -> np.ndarray:
    """Painted pictures as a mask (F,H,W): one for all frames, or the shapes that lead from each picture to the next.

    size: of the clip; None: of the pictures. ConfigError for a picture of another shape, and for one without white.
    """
    pictures = [_read(name, size) for name in settings.painted]
    for name, picture in zip(settings.painted, pictures, strict=True):
        require(picture.shape == pictures[0].shape, f"painted={name} has another size than {settings.painted[0]}")
        require(bool(picture.any()), f"painted={name} is black: paint the region white")
    if len(pictures) == 1:
        return pictures[0][None]
    numbers = settings.painted_frames
    require(
        numbers[-1] < frames, f"painted_frames={numbers}: the mask has {frames} frames, so the last is {frames - 1}"
    )
    return interpolated(pictures, numbers, frames)


def _read(name: str, size: tuple[int, int] | None) -> np.ndarray:
    """A picture as (H,W) in [0, 1], at `size` if it has its shape. ConfigError names the file."""
    path: Path = user_path(name)
    require(path.is_file(), f"painted={path} is not a picture: name a png")
    try:
        picture = read_picture(path).mean(-1).astype(np.float32) / 255
    except ValueError as error:
        raise ConfigError(f"painted: {error}") from error
    if size is None or picture.shape == size:
        return picture
    height, width = picture.shape
    require(
        abs(width / height / (size[1] / size[0]) - 1) < 0.02,
        f"painted={path} has {width}x{height} pixels, the clip {size[1]}x{size[0]}: paint on a frame of the clip",
    )
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)

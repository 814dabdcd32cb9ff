"""Read depth from files: a folder with one EXR or PNG per frame of the clip, or a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from data_prep.makers.colour_space import luma
from iclora_train.core.regular_files import read_regular
from iclora_train.media.clip import read_clip
from iclora_train.media.exr import read_channels
from iclora_train.media.frame_folder import frame_files
from iclora_train.media.picture import require_picture

VALUES = ("distance", "ramp", "nearness")  # see DepthGiven
SUFFIXES = (".exr", ".png")
SKY = 1e9  # distances from here on are background; Blender writes 1e10 where a ray hits nothing
CHANNELS = ("Z", "V", "Y", "R")  # last part of an EXR channel name; the first that exists holds the depth


def read_nearness(path: Path, indices: tuple[int, ...], values: str) -> Iterator[np.ndarray]:
    """Nearness fp32 (H,W) of the clip's frames `indices`; larger is nearer. ValueError names the file and the remedy.

    values: meaning of the numbers in the files, one of VALUES.
    """
    pictures = _read_folder(path, indices) if path.is_dir() else _read_video(path, indices)
    for picture in pictures:
        if values == "distance":
            valid = (picture > 0) & (picture < SKY)
            yield np.divide(1, picture, out=np.zeros_like(picture), where=valid)
        else:
            yield -picture if values == "ramp" else picture


def _read_folder(folder: Path, indices: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Depth pictures from a folder. In the order of `frame_files`, the files are frames 0, 1, ..."""
    files, needed = frame_files(folder, SUFFIXES), max(indices) + 1
    if len(files) < needed:
        message = f"{len(files)} depth pictures ({', '.join(SUFFIXES)}) for a clip of at least {needed} frames"
        raise ValueError(f"{folder}: {message}; render one for every frame")
    for index in indices:
        yield _read_exr(files[index]) if files[index].suffix.lower() == ".exr" else _read_png(files[index])


def _read_video(path: Path, indices: tuple[int, ...]) -> Iterator[np.ndarray]:
    frames = dict(zip(sorted(set(indices)), read_clip(path, set(indices)), strict=False))
    for index in indices:
        if index not in frames:
            raise ValueError(f"{path}: the depth video ends before frame {index}, which the clip has")
        yield luma(frames[index]).astype(np.float32)


def _read_png(path: Path) -> np.ndarray:
    try:
        require_picture(path)  # before OpenCV allocates the size that the header states
        data = read_regular(path)
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise ValueError(f"{path} cannot be read as a PNG ({error}); render this frame again") from error
    if picture is None:
        raise ValueError(f"{path} cannot be read as a PNG; render this frame again")
    if picture.ndim == 3:
        if (picture[..., :3] != picture[..., :1]).any():
            message = "is a picture in colour, not depth; give grey pictures (a false-colour map cannot be read)"
            raise ValueError(f"{path} {message}")
        picture = picture[..., 0]
    return picture.astype(np.float32)


def _read_exr(path: Path) -> np.ndarray:
    channels = {name.split(".")[-1]: values for name, values in read_channels(path, "render this frame again").items()}
    name = next((name for name in CHANNELS if name in channels), None)
    if name is None:
        raise ValueError(f"{path} has channels {', '.join(channels)}; depth is read from {', '.join(CHANNELS)}")
    return np.asarray(channels[name], np.float32)

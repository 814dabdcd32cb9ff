"""Depth from files: a folder of EXR or PNG pictures, one per frame of the clip, or a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from data_prep.makers.colour_space import luma
from iclora_train.config import ConfigError, require
from iclora_train.data.video import read_clip

VALUES = ("distance", "ramp", "nearness")
SUFFIXES = (".exr", ".png")
SKY = 1e9  # Blender writes 1e10 where a ray hits nothing
CHANNELS = ("Z", "V", "Y", "R")  # by the last part of their names, the first that there is holds the depth


def read_nearness(path: Path, indices: tuple[int, ...], values: str) -> Iterator[np.ndarray]:
    """Of the clip's frames `indices`, fp32 (H,W): larger is nearer; `values` says what the files hold. ConfigError
    names the file and the remedy.
    """
    pictures = _folder(path, indices) if path.is_dir() else _video(path, indices)
    for picture in pictures:
        if values == "distance":
            known = (picture > 0) & (picture < SKY)
            yield np.divide(1, picture, out=np.zeros_like(picture), where=known)
        else:
            yield -picture if values == "ramp" else picture


def _folder(folder: Path, indices: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The files in order of their names are the frames from 0."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    wanted = max(indices) + 1
    why = f"{folder}: {len(files)} depth pictures ({', '.join(SUFFIXES)}) for a clip of at least {wanted} frames"
    require(len(files) >= wanted, f"{why}; render one for every frame")
    for index in indices:
        yield _exr(files[index]) if files[index].suffix.lower() == ".exr" else _png(files[index])


def _video(path: Path, indices: tuple[int, ...]) -> Iterator[np.ndarray]:
    found = dict(zip(sorted(set(indices)), read_clip(path, set(indices)), strict=False))
    for index in indices:
        require(index in found, f"{path}: the depth video ends before frame {index}, which the clip has")
        yield luma(found[index]).astype(np.float32)


def _png(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ConfigError(f"{path} cannot be read as a PNG; render this frame again")
    if picture.ndim == 3:
        same = bool((picture[..., :3] == picture[..., :1]).all())
        require(
            same, f"{path} is a picture in colour, not depth; give grey pictures (a false-colour map cannot be read)"
        )
        picture = picture[..., 0]
    return picture.astype(np.float32)


def _exr(path: Path) -> np.ndarray:
    try:
        import OpenEXR  # noqa: PLC0415  (an extra that only depth renders need)
    except ImportError as error:
        raise ConfigError(f"{path}: EXR files need OpenEXR: pip install 'iclora_train[exr]'") from error
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name.split(".")[-1]: channel.pixels for name, channel in file.channels().items()}
    except RuntimeError as error:
        raise ConfigError(f"{path} cannot be read as an EXR ({error}); render this frame again") from error
    name = next((name for name in CHANNELS if name in channels), None)
    require(
        name is not None, f"{path} has channels {', '.join(channels)}; depth is looked for in {', '.join(CHANNELS)}"
    )
    return np.asarray(channels[name], np.float32)

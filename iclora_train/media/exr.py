"""Read and write OpenEXR files. Files that are written hold linear light with BT.709 primaries, and say so."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np

from iclora_train.config import ConfigError
from iclora_train.core.regular_files import open_regular

BT709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)  # x, y of red, green, blue and white
NOTE = "linear light, decoded from display levels by the curve of sRGB (IEC 61966-2-1)"


def _library(path: Path) -> ModuleType:
    try:
        import OpenEXR  # noqa: PLC0415  (an optional extra)
    except ImportError as error:
        raise ConfigError(f"{path}: EXR files need OpenEXR: pip install 'iclora_train[exr]'") from error
    return OpenEXR


def require_exr(path: Path) -> None:
    """ConfigError if OpenEXR is not installed. path: of the file that needs it."""
    _library(path)


def read_channels(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The channels (H,W) of a file by name. ValueError with the remedy for a file that cannot be read."""
    library = _library(path)
    try:
        open_regular(path).close()  # OpenEXR would wait for a pipe
        with library.File(str(path), separate_channels=True) as file:
            return {name: channel.pixels for name, channel in file.channels().items()}
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as an EXR ({error}); {remedy}") from error


def write_exr(path: Path, rgb: np.ndarray, fps: Fraction | None) -> None:
    """Write display levels RGB fp32 (H,W,3) as linear light in half floats, compressed without loss (ZIP).

    The file appears as `path` when it is complete. Its header has the chromaticities of BT.709, the frame rate, and a
    comment that names the curve.
    """
    library = _library(path)
    header = {
        "compression": library.ZIP_COMPRESSION,
        "type": library.scanlineimage,
        "chromaticities": BT709,
        "comments": NOTE,
        **({} if fps is None else {"framesPerSecond": (fps.numerator, fps.denominator)}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with library.File(header, {"RGB": linear_light(rgb).astype(np.float16)}) as file:
            file.write(str(temporary))
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path} cannot be written ({error}): free disk space, or name another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def linear_light(levels: np.ndarray) -> np.ndarray:
    """Display levels -> linear light by the curve of sRGB; levels below 0 and above 1 follow it too."""
    size = np.abs(levels)
    light = np.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)
    return np.copysign(light, levels).astype(np.float32)


def display_levels(light: np.ndarray) -> np.ndarray:
    """Linear light -> display levels, the inverse of `linear_light`."""
    size = np.abs(light.astype(np.float32))
    levels = np.where(size <= 0.0031308, size * 12.92, 1.055 * size ** (1 / 2.4) - 0.055)
    return np.copysign(levels, light).astype(np.float32)

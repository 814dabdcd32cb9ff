"""Read still pictures: upright, in sRGB, with transparent parts over black."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from iclora_train.core.regular_files import open_regular
from iclora_train.media.frame_decoder import MAX_PIXELS, require_size
from iclora_train.media.rgb import over_black

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
UNREADABLE = (".heic", ".heif")  # pictures of phones, in tiles that the bundled FFmpeg does not assemble
SAVE_AGAIN = "save it again as png"
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # not MPO: phones store a second picture in a JPEG
# what Pillow raises for damaged files
_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError),
    *(ArithmeticError, MemoryError, struct.error),
)


def is_picture(path: Path) -> bool:
    """Whether a file is read as a picture, by its name."""
    return path.suffix.lower() in IMAGES + UNREADABLE


def read_picture(path: Path) -> np.ndarray:
    """A picture as uint8 RGB (H,W,3). ValueError names the file and the remedy.

    The EXIF orientation is applied, an embedded ICC profile is converted to sRGB, and 16-bit levels are rounded to 8.
    """
    with _open(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format in _ANIMATED:
            raise ValueError(f"it is an animation of {frames} frames; make a video of it")
        image.load()
        return _to_srgb(ImageOps.exif_transpose(image))


def require_picture(path: Path) -> None:
    """ValueError, as in `read_picture`, if the header of a picture cannot be read or states too many pixels."""
    with _open(path):
        pass


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Open a picture and read its header. Pillow's errors inside the block become ValueErrors that name the file."""
    if path.suffix.lower() in UNREADABLE:
        raise ValueError(f"{path} cannot be read as an image: HEIC is not supported; save it as jpg, png or avif")
    try:
        file = open_regular(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image ({error.strerror}); give another file") from error
    try:
        with file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about damaged metadata and pictures above its own limit
            with Image.open(file) as image:
                require_size(*image.size)
                yield image
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has more than the limit of {MAX_PIXELS:,} pixels: make it smaller") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} cannot be read as an image; {SAVE_AGAIN}") from error
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); {SAVE_AGAIN}") from error


def _to_srgb(image: Image.Image) -> np.ndarray:
    """uint8 RGB (H,W,3) of a picture of any mode."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        return _from_levels(np.asarray(image))
    has_alpha = image.has_transparency_data
    alpha = np.asarray(image.convert("RGBA").getchannel("A")) if has_alpha else None
    colour = image if image.mode in ("L", "CMYK") and not has_alpha else image.convert("RGB")
    rgb = np.asarray(_without_profile(colour, profile) if profile else colour.convert("RGB"))
    return np.array(rgb) if alpha is None else over_black(np.dstack([rgb, alpha]))


def _from_levels(levels: np.ndarray) -> np.ndarray:
    """Grey RGB (H,W,3) of levels from 0 to 65535."""
    if not np.issubdtype(levels.dtype, np.integer) or levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its levels are not 8 or 16 bit")
    grey = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _without_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """RGB in sRGB of a picture with an ICC profile. As in browsers, a damaged or unsuitable profile is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if ImageCms.getProfileDescription(source).startswith("sRGB"):
            return image.convert("RGB")
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")
    assert converted is not None  # only with inPlace
    return converted


def resampled(
    picture: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int], smooth: bool = True
) -> np.ndarray:
    """The part `box` (left, top, right, bottom) of a picture fp32 (H,W) or (H,W,C) at `size` (height, width).

    Edges of the box may lie between pixels. smooth: Lanczos, which may overshoot by a few percent; otherwise linear.
    Both average when they shrink.
    """
    kind = Image.Resampling.LANCZOS if smooth else Image.Resampling.BILINEAR
    channels = picture[..., None] if picture.ndim == 2 else picture
    parts = [
        np.asarray(Image.fromarray(np.ascontiguousarray(channels[..., i])).resize(size[::-1], kind, box=box))
        for i in range(channels.shape[-1])
    ]
    return parts[0] if picture.ndim == 2 else np.stack(parts, axis=-1)

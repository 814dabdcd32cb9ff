"""Size, length and frame rate of the video: from the settings or a reference, rounded to fit the VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from iclora_train.config import ConfigError, require
from iclora_train.core.types import Geometry, VideoShape
from iclora_train.generate.input_media import InputMedia


class RequestedSizes(Protocol):
    """Settings of the size of a video; None: not set."""

    width: int | None
    height: int | None
    frames: int | None
    fps: float | None


@dataclass(frozen=True)
class SizeRules:
    """Allowed sizes: width and height are multiples of `spatial`, frames are k x `temporal` + 1.

    The target, the smaller and slower references and the half-size first stage then all fit the VAE.
    """

    spatial: int
    temporal: int

    @classmethod
    def of(cls, geometry: Geometry, downscale: int, temporal_scale: int, stages: int) -> SizeRules:
        """The rules of a VAE, the reference factors, and one or two stages."""
        return cls(geometry.spatial * downscale * stages, geometry.temporal * temporal_scale)

    def unit(self, key: str) -> int:
        """The distance between allowed sizes."""
        return self.temporal if key == "frames" else self.spatial

    def round_down(self, key: str, size: int) -> int:
        """The largest allowed size up to `size`; the smallest allowed size if `size` is below it."""
        if key == "frames":
            return (size - 1) // self.temporal * self.temporal + 1
        return max(size // self.spatial, 1) * self.spatial


@dataclass(frozen=True)
class SizeSource:
    """What gives a video the sizes that the settings leave null: a clip, or the training clips of an adapter.

    frames: None for a clip that is as long as its own frames at the video's rate. fps: None if it has no rate.
    """

    name: str
    width: int
    height: int
    fps: float | None
    frames: int | None = None
    media: InputMedia | None = None

    @classmethod
    def of_media(cls, media: InputMedia) -> SizeSource:
        """The sizes, length and rate of a clip."""
        return cls(str(media.path), media.width, media.height, media.fps, None, media)

    def length(self, fps: float) -> int:
        """The number of frames at a frame rate."""
        if self.frames is not None:
            return self.frames
        assert self.media is not None
        return len(self.media.frame_numbers(fps))


def video_shape(settings: RequestedSizes, first: SizeSource, rules: SizeRules) -> tuple[VideoShape, str]:
    """Size, frames and rate of the video, and a text that lists the rounded sizes.

    A null setting takes the value of `first`, rounded down. With only one of width and height set, the other follows
    its aspect ratio. ConfigError names a size that does not fit and the nearest sizes that do.
    """
    fps = settings.fps or first.fps
    if fps is None:
        raise ConfigError(f"fps is not set, and {first.name} has no frame rate: set it, e.g. fps=24")
    scale = 1.0
    if settings.width is not None or settings.height is not None:
        scale = max((settings.width or 0) / first.width, (settings.height or 0) / first.height)
    requested = {
        "width": settings.width or round(first.width * scale),
        "height": settings.height or round(first.height * scale),
        "frames": settings.frames or first.length(fps),
    }
    sizes = {
        key: rules.round_down(key, size) if getattr(settings, key) is None else size for key, size in requested.items()
    }
    _check(sizes, rules)
    rounded = [f"{key} {size} -> {sizes[key]}" for key, size in requested.items() if sizes[key] != size]
    return VideoShape(fps=fps, **sizes), ", ".join(rounded)


def _check(sizes: dict[str, int], rules: SizeRules) -> None:
    """ConfigError unless the rules allow all sizes."""
    problems = []
    for key, size in sizes.items():
        low, unit = rules.round_down(key, size), rules.unit(key)
        if size != low:
            rule = f"{unit}k+1" if key == "frames" else f"a multiple of {unit}"
            higher = f" or {low + unit}" if size > low else ""
            problems.append(f"{key}={size} is not {rule} (use {low}{higher})")
    require(not problems, f"the size does not fit the VAE: {'; '.join(problems)}")

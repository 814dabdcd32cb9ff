"""How large and long the video is: what is asked for, or what the first reference has, as far as the VAE takes it."""

from __future__ import annotations

from dataclasses import dataclass

from iclora_train.config import ConfigError, require
from iclora_train.core.types import Geometry, VideoShape
from iclora_train.generate.media import InputMedia
from iclora_train.generate.settings import GenerateSettings


@dataclass(frozen=True)
class SizeRules:
    """Pixels and frames that sizes must be multiples of: width and height k x `side`, frames k x `beat` + 1, so that
    the target, the references smaller by their factors and the half-size first stage all fit the VAE.
    """

    side: int
    beat: int

    @classmethod
    def of(cls, geometry: Geometry, downscale: int, temporal_scale: int, stages: int) -> SizeRules:
        """Of a VAE, of the references' factors, and of one stage or two."""
        return cls(geometry.spatial * downscale * stages, geometry.temporal * temporal_scale)

    def unit(self, key: str) -> int:
        """The step between sizes that fit."""
        return self.beat if key == "frames" else self.side

    def down(self, key: str, size: int) -> int:
        """The largest size that fits and is not above `size`; the smallest that fits, where there is none."""
        if key == "frames":
            return (size - 1) // self.beat * self.beat + 1
        return max(size // self.side, 1) * self.side


def video_shape(settings: GenerateSettings, first: InputMedia, units: SizeRules) -> tuple[VideoShape, str]:
    """Size, frames and rate of the video, and in words what was rounded. What is null comes from the first reference,
    rounded down; a width or height alone brings the other with it. ConfigError names a size that does not fit, and the
    nearest that do.
    """
    fps = settings.fps or first.fps
    if fps is None:
        raise ConfigError(f"fps is not set, and {first.path} has no frame rate of its own: set it, e.g. fps=24")
    scale = 1.0
    if settings.width is not None or settings.height is not None:
        scale = max((settings.width or 0) / first.width, (settings.height or 0) / first.height)
    wanted = {
        "width": settings.width or round(first.width * scale),
        "height": settings.height or round(first.height * scale),
        "frames": settings.frames or len(first.frame_numbers(fps)),
    }
    taken = {key: units.down(key, size) if getattr(settings, key) is None else size for key, size in wanted.items()}
    _check(taken, units)
    rounded = [f"{key} {size} -> {taken[key]}" for key, size in wanted.items() if taken[key] != size]
    return VideoShape(fps=fps, **taken), ", ".join(rounded)


def _check(sizes: dict[str, int], units: SizeRules) -> None:
    """ConfigError unless the sizes are what `SizeRules` says."""
    problems = []
    for key, size in sizes.items():
        low, unit = units.down(key, size), units.unit(key)
        if size != low:
            rule = f"{unit}k+1" if key == "frames" else f"a multiple of {unit}"
            higher = f" or {low + unit}" if size > low else ""
            problems.append(f"{key}={size} is not {rule} (use {low}{higher})")
    require(not problems, f"the VAE does not take this size: {'; '.join(problems)}")

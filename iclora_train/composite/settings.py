"""Settings of `iclora_train.composite`, typed and bounded. No torch import, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf

from iclora_train.config import ConfigError, one_of, require
from iclora_train.config.paths import expand_home

EXAMPLES = {"generated": "video.mp4", "out": "composite.mp4"}
PLAYERS = ("yuv420p", "yuv420p10le", "yuv422p10le", "yuv444p10le")
FRAMES_FORMATS = ("png", "png16", "exr")
PATHS = ("generated", "out", "source", "mask", "record")


@dataclass
class CompositeSettings:
    """Settings of one composite. null: as the record of the generated video says."""

    generated: str = MISSING  # a video of `generate`, or the folder of its frames
    out: str = MISSING  # an mp4 or mkv, or a folder for frames
    source: str | None = None  # the clip into which the region is blended; null: the clip of the record
    mask: str | None = None  # an image, a video or a folder of frames; white is taken from the generated video
    record: str | None = None  # JSON of the generated video; null: the file beside it, if there is one
    start: int | None = None  # frame of the source at which the generated video begins
    fit: str | None = None  # how the source was fitted to the generated video, without a record: crop, stretch
    feather: float = 16.0  # pixels of the source over which the edge of the region is blended
    side: str = "auto"  # of the region's edge on which it is blended: outside, inside; auto: inside for borders
    match: str = "mean"  # of the generated colours to the source around the region: none, mean, smooth
    lossless: bool = True  # of an mp4: H.264 without loss, in the source's pixel format
    pixel_format: str = "yuv420p"  # of an mp4 with lossless=false
    frames_format: str | None = None  # of frames: png (8 bits), png16, exr; null: png for 8-bit pictures, else png16
    fps: float | None = None  # of a source of pictures; null: of the record
    overwrite: bool = False

    def __post_init__(self) -> None:
        for key in PATHS:
            value = getattr(self, key)
            setattr(self, key, None if value is None else expand_home(value))
        require(
            Path(self.out).suffix in (".mp4", ".mkv", ""),
            f"out={self.out} must end in .mp4 or .mkv, or name a folder without a suffix",
        )
        one_of("side", self.side, ("auto", "outside", "inside"))
        one_of("match", self.match, ("none", "mean", "smooth"))
        one_of("pixel_format", self.pixel_format, PLAYERS)
        for key, choices in (("fit", ("crop", "stretch")), ("frames_format", FRAMES_FORMATS)):
            value = getattr(self, key)
            if value is not None:
                one_of(key, value, choices)
        require(0 <= self.feather <= 500, f"feather={self.feather} must lie in [0, 500]")
        require(self.start is None or self.start >= 0, f"start={self.start} must be 0 or more")
        require(self.fps is None or 0 < self.fps <= 1000, f"fps={self.fps} must be above 0 and at most 1000")
        require(
            self.lossless or Path(self.out).suffix == ".mp4",
            f"lossless=false is for an mp4, and out={self.out}",
        )


def to_composite_settings(composed: DictConfig) -> CompositeSettings:
    """Convert a composed config. ConfigError names the setting that is missing or out of bounds."""
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be set, e.g. {missing[0]}={EXAMPLES.get(missing[0], '...')}")
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, CompositeSettings)
    return settings

"""Settings of `iclora_train.signal mask`, typed and bounded. No torch import, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from data_prep.signal.settings import WRITTEN, check_sizes
from iclora_train.config import ConfigError, one_of, require
from iclora_train.config.command_line import TEXT_OR_LIST
from iclora_train.config.paths import expand_home

SIDES = ("left", "right", "top", "bottom")
REGIONS = ("person", "box", *SIDES, "all", "painted")


@dataclass
class MaskSettings:
    """Settings of one mask: white is `inside`, the rest `outside`."""

    out: str = MISSING  # an mp4, a png for a mask that does not change, or a folder of pngs
    region: str = MISSING  # one of REGIONS
    clip: str | None = None  # a video, a folder of frames, or an image; required for people
    box: Any = None  # [left, top, width, height] in pixels of the clip
    share: float = 0.5  # of the picture that left, right, top or bottom covers
    painted: Any = field(default=None, metadata=TEXT_OR_LIST)  # pictures, white is the region
    painted_frames: Any = None  # the frame of each picture; the shape moves from one to the next
    tiles: int = 1  # person: raise it for small people, as for poses
    grow: int = 0  # pixels of the video by which the region grows; below 0 it shrinks
    feather: float = 0.0  # pixels of the video over which its edge fades
    inside: float = 1.0  # weight in the region, in [0, 1]
    outside: float = 0.0
    ramp: int = 0  # frames over which the region fades in at the start; below 0: out at the end
    width: int | None = None  # of the video
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    short_side: int | None = None  # as in the settings of a signal
    start: int = 0  # frame of the clip with which the video begins, counted at its frame rate
    cell: Any = None  # [pixels, frames] of a latent cell; null: [1,1], any size
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("region", self.region, REGIONS)
        self.out = expand_home(self.out)
        self.clip = None if self.clip is None else expand_home(self.clip)
        require(
            Path(self.out).suffix.lower() in WRITTEN,
            f"out={self.out} must end in .mp4 or .png, or name a folder without a suffix",
        )
        check_sizes(self)
        require(self.start >= 0, f"start={self.start} must be 0 or more")
        require(0 < self.share < 1, f"share={self.share} must lie in (0, 1)")
        for key in ("inside", "outside"):
            require(0 <= getattr(self, key) <= 1, f"{key}={getattr(self, key)} must lie in [0, 1]")
        require(0 <= self.feather <= 1000, f"feather={self.feather} must lie in [0, 1000]")
        require(abs(self.grow) <= 1000, f"grow={self.grow} must lie in [-1000, 1000]")
        require(1 <= self.tiles <= 8, f"tiles={self.tiles} must lie in [1, 8]")
        self._check_region()
        require(
            self.cell is None or (isinstance(self.cell, list) and len(self.cell) == 2 and min(self.cell) >= 1),
            f"cell={self.cell} must be [pixels,frames] of a latent cell",
        )

    def _check_region(self) -> None:
        """ConfigError unless the settings of the region, and only those, are set."""
        is_box = isinstance(self.box, list) and len(self.box) == 4 and all(type(n) is int for n in self.box)
        require(
            self.region != "box" or (is_box and min(self.box[2:]) >= 1),
            f"box={self.box} must be [left,top,width,height] in pixels of the clip, as region=box needs it",
        )
        self.painted = [self.painted] if isinstance(self.painted, str) else self.painted
        require(
            self.region != "painted" or bool(self.painted),
            "painted is not set: name a picture in which the region is white, or a list of them, as region=painted "
            "needs it",
        )
        for key, region in (("box", "box"), ("painted", "painted")):
            require(
                self.region == region or not getattr(self, key),
                f"{key} is for region={region}, and region={self.region}: set one of them",
            )
        frames, count = self.painted_frames, len(self.painted or [])
        valid = isinstance(frames, list) and all(type(n) is int and n >= 0 for n in frames)
        require(
            frames is None or (valid and len(frames) == count and frames == sorted(set(frames))),
            f"painted_frames={frames} must be a frame for each of the {count} pictures of painted, in ascending order",
        )
        require(
            count <= 1 or frames is not None,
            f"painted_frames is not set: painted has {count} pictures; give the frame of each, e.g. [0,24]",
        )
        require(
            self.clip is not None or self.region != "person",
            "clip is not set: people are found in a clip, clip=FILE",
        )
        sized = self.width is not None and self.height is not None
        require(
            self.clip is not None or sized,
            "width and height: set them, or clip=FILE, whose size the mask then has",
        )


def to_mask_settings(composed: DictConfig) -> MaskSettings:
    """Convert a composed config. ConfigError names the setting that is missing or out of bounds."""
    for key, example in (("region", f"region=left, one of {', '.join(REGIONS)}"), ("out", "out=mask.mp4")):
        require(not OmegaConf.is_missing(composed, key), f"{key} must be set, e.g. {example}")
    settings = OmegaConf.to_object(composed)
    if not isinstance(settings, MaskSettings):
        raise ConfigError("the settings are not those of a mask")
    return settings

"""Settings of `iclora_train.signal`, typed and bounded. No torch import, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from iclora_train.config import ConfigError, require
from iclora_train.config.command_line import TEXT_OR_LIST
from iclora_train.config.paths import expand_home
from iclora_train.config.task_alone import WithTask, clear_other_sections, to_typed_task

NANO, LTX2 = (8, 4), (32, 8)  # pixels and frames of a latent cell
FILES = ("mask", "tracks", "depth", "sheet")  # settings that name a file for a maker, by its column in clip lists
WRITTEN = (".mp4", ".png", "")  # of `out`: a lossless clip, a picture, or a folder of pictures


@dataclass
class SignalSettings(WithTask):
    """Settings of the signals of one clip. null: from the adapter, or from the clip."""

    clip: str = MISSING  # a video, a folder of frames, or an image
    out: str = MISSING  # an mp4, a png for one picture, or a folder of pngs
    adapter: str | None = None
    maker: str | None = None  # instead of the adapter's: a pair maker of data_prep
    maker_args: dict[str, Any] = field(default_factory=dict)  # arguments to change
    control: Any = field(default=None, metadata=TEXT_OR_LIST)  # of a union: one of its controls, or several
    only: Any = field(default=None, metadata=TEXT_OR_LIST)  # of several references: the names of those to make
    width: int | None = None  # of the video, of which a reference may be a part
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    short_side: int | None = None  # the clip is scaled to it before its middle is cut out; null: as far as it fits
    start: int = 0  # frame of the clip with which the video begins, counted at its frame rate
    border: Any = None  # edit.outpaint: [left, top, right, bottom] pixels that are added around the clip
    mask: str | None = None  # edit.hole: a video or image, white is painted
    tracks: str | None = None  # control.tracks: a JSON of points
    tracks_size: Any = None  # [width, height] of the picture on which the tracks were drawn; null: the clip's
    depth: str | None = None  # rendered depth: a video, or a folder of EXR or PNG
    sheet: str | None = None  # edit.loop: a picture
    reference_frame: int | None = None  # frame of a reference whose place is drawn in training; null: by the seed
    seed: Any = 0  # of makers with random parameters; a list is the `seed` of a pair's record
    cell: Any = None  # [pixels, frames] of a latent cell; null: [8,4] for nano, else [32,8]
    strict: bool = True  # false: write a signal that a preparation would leave out
    overwrite: bool = False

    def __post_init__(self) -> None:
        for key in ("clip", "adapter", *FILES):
            value = getattr(self, key)
            setattr(self, key, None if value is None else expand_home(value))
        self.out = expand_home(self.out)
        require(
            Path(self.out).suffix.lower() in WRITTEN,
            f"out={self.out} must end in .mp4 or .png, or name a folder without a suffix",
        )
        check_sizes(self)
        require(self.start >= 0, f"start={self.start} must be 0 or more")
        self.only = [self.only] if isinstance(self.only, str) else self.only
        self.control = [self.control] if isinstance(self.control, str) else self.control
        self._check_lists()
        chosen = [key for key in ("adapter", "maker", "task") if getattr(self, key) is not None]
        require(
            bool(chosen),
            "adapter is not set: give the adapter's file, or conf=<task>, or maker=..., e.g. control.canny",
        )
        require("task" not in chosen or len(chosen) == 1, f"conf and {chosen[0]} are both set: set one of them")

    def _check_lists(self) -> None:
        """ConfigError for a list of another length or type."""
        self._check_numbers("border", 4, 0, "[left,top,right,bottom] in pixels, each 0 or more")
        self._check_numbers("tracks_size", 2, 1, "[width,height] in pixels")
        self._check_numbers("cell", 2, 1, "[pixels,frames] of a latent cell")
        numbers = self.seed if isinstance(self.seed, list) else [self.seed]
        valid = all(type(number) is int and number >= 0 for number in numbers)
        require(
            valid and (numbers == [self.seed] or len(numbers) == 4),
            f"seed={self.seed} must be a whole number, or the four numbers of a pair's record",
        )
        for key, meaning in (("only", "a reference"), ("control", "a control")):
            names = getattr(self, key)
            valid = isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)
            require(
                names is None or (valid and len(set(names)) == len(names)),
                f"{key}={names} must be the name of {meaning}, or a list of different names",
            )

    def _check_numbers(self, key: str, count: int, low: int, meaning: str) -> None:
        value = getattr(self, key)
        valid = isinstance(value, list) and len(value) == count and all(type(n) is int and n >= low for n in value)
        require(value is None or valid, f"{key}={value} must be {meaning}")

    def files(self) -> dict[str, Path]:
        """The files that makers read, by column of a clip list. ConfigError names one that does not exist."""
        paths = {key: Path(path) for key in FILES if (path := getattr(self, key)) is not None}
        for key, path in paths.items():
            require(path.exists(), f"{key}={path} does not exist")
        return paths


def check_sizes(settings: Any) -> None:
    """ConfigError for width, height, frames or fps out of bounds."""
    for key in ("width", "height", "frames", "short_side"):
        value = getattr(settings, key)
        require(value is None or value >= 1, f"{key}={value} must be at least 1, or null for the clip's")
    fps = settings.fps
    require(fps is None or 0 < fps <= 1000, f"fps={fps} must be above 0 and at most 1000, or null for the clip's")


def to_settings(composed: DictConfig) -> SignalSettings:
    """Convert a composed config. ConfigError names the setting that is missing or out of bounds."""
    if composed.cell is None and composed.model is not None and composed.model.get("checkpoint") == "nano":
        composed.cell = list(NANO)
    clear_other_sections(composed)
    for key, example in (("clip", "clip=clip.mp4"), ("out", "out=signal.mp4")):
        require(not OmegaConf.is_missing(composed, key), f"{key} must be set, e.g. {example}")
    to_typed_task(composed)
    settings = OmegaConf.to_object(composed)
    if not isinstance(settings, SignalSettings):
        raise ConfigError("the settings are not those of a signal")
    return settings


def require_new(paths: list[Path], overwrite: bool) -> None:
    """ConfigError if a file, or pictures in a folder, would be overwritten."""
    for path in paths:
        exists = any(path.glob("*.png")) if path.is_dir() else path.exists()
        require(overwrite or not exists, f"{path} exists: name another file with out=..., or set overwrite=true")

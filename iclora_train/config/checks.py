"""Settings of the dataset checks (`checks.*`): limits on measured values, and the action for a pair outside them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from iclora_train.config.errors import one_of, require

VERDICTS = ("ok", "warn", "drop", "fail")  # from best to worst
PHRASES = [
    "depth map",
    "depth image",
    "disparity map",
    "canny",
    "edge map",
    "edge detection",
    "edge drawing",
    "white edges",
    "edges on black",
    "edges on a black",
    "white lines on",
    "line art",
    "line drawing",
    "outline drawing",
    "wireframe",
    "skeleton",
    "stick figure",
    "keypoints",
    "joints connected",
    "pose estimation",
    "pose map",
    "optical flow",
    "flow map",
    "normal map",
    "segmentation map",
    "coloured dots",
    "colored dots",
    "motion tracks",
    "control signal",
    "control video",
    "reference video",
]


@dataclass
class Limit:
    """least <= value <= most is ok (null: no bound); a pair outside these bounds gets the verdict `action`.

    warn: the pair is used and reported. drop: the pair is left out. fail: the pair is left out, and the preparation
    ends with an error after everything else is done.
    """

    least: float | None = None
    most: float | None = None
    action: str = "warn"


@dataclass
class Checks:
    """Checks of every pair and caption, and of clips across splits. docs/data.md describes the measured values."""

    shape: Limit = field(default_factory=lambda: Limit(most=0, action="drop"))  # differences in frames, fps, size
    offset: Limit = field(default_factory=lambda: Limit(most=0, action="drop"))  # frames
    blank: Limit = field(default_factory=lambda: Limit(least=8, action="drop"))  # grey levels between dark and bright
    static: Limit = field(default_factory=lambda: Limit(most=0.5, action="warn"))  # share of the moving frames
    clipped: Limit = field(default_factory=lambda: Limit(most=0.25, action="warn"))  # share of the pixels
    contrast: Limit = field(default_factory=lambda: Limit(least=64, action="warn"))  # grey levels (control signals)
    flicker: Limit = field(default_factory=lambda: Limit(most=8, action="warn"))  # multiple of the target's
    coverage: Limit = field(default_factory=lambda: Limit(least=0.5, action="drop"))  # share of the frames
    vae: Limit = field(default_factory=lambda: Limit(least=20, action="warn"))  # dB
    duplicate: Limit = field(default_factory=lambda: Limit(most=0.25, action="drop"))  # share of the frames
    caption_control: Limit = field(default_factory=lambda: Limit(most=0, action="warn"))  # phrases (control signals)
    caption_trigger: Limit = field(default_factory=lambda: Limit(least=1, most=1, action="warn"))  # occurrences
    caption_empty: Limit = field(default_factory=lambda: Limit(least=1, action="warn"))  # words
    caption_long: Limit = field(default_factory=lambda: Limit(most=300, action="warn"))  # words
    search: int = 3  # largest offset in frames, early or late, that is searched for
    distance: int = 32  # of 256 hash bits: two pictures that differ in at most this many show one scene
    vae_pairs: int = 8  # pairs per preparation that are encoded and decoded by the VAE; 0: none
    disk: bool = True  # refuse to begin if the disk surely cannot hold the result
    sheet_megabytes: float = 24.0  # size of the pictures in contact.html; the worst pairs come first
    phrases: list[str] = field(default_factory=lambda: list(PHRASES))  # phrases that describe a control signal

    def __post_init__(self) -> None:
        for name, limit in self.limits().items():
            one_of(f"checks.{name}.action", limit.action, VERDICTS[1:])
            ordered = limit.least is None or limit.most is None or limit.least <= limit.most
            require(ordered, f"checks.{name}.least={limit.least} must not be above checks.{name}.most={limit.most}")
        require(
            self.vae.action != "drop",
            "checks.vae.action=drop is not possible, the pairs are written by then: set warn or fail",
        )
        require(self.search >= 1, f"checks.search={self.search} must be at least 1 frame")
        require(0 <= self.distance <= 127, f"checks.distance={self.distance} must lie in [0, 127]")
        require(self.vae_pairs >= 0, f"checks.vae_pairs={self.vae_pairs} must be 0 (none) or more")
        require(self.sheet_megabytes >= 0, f"checks.sheet_megabytes={self.sheet_megabytes} must be 0 or more")

    def limits(self) -> dict[str, Limit]:
        """The limit of each check, by its name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Limit)}

    def decisive(self) -> dict[str, Any]:
        """The settings that decide which pairs are used and differ from their defaults. Shards depend only on these."""
        defaults = asdict(Checks())
        irrelevant = ("vae", "vae_pairs", "disk", "sheet_megabytes")
        return {key: value for key, value in asdict(self).items() if value != defaults[key] and key not in irrelevant}

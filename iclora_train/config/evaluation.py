"""Settings of `eval`: the sampled clips and seeds, and the thresholds of the claims."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from iclora_train.config.durations import parse_duration
from iclora_train.config.errors import one_of, require
from iclora_train.config.extra_metrics import Weights, check_names
from iclora_train.config.paths import expand_home

PLAIN_CONDITIONS = 3  # the same in a task without references
OTHER_CONDITIONS = 8  # conditions besides the strengths below 1 (docs/evaluation.md lists them)


@dataclass
class Thresholds:
    """Thresholds of the claims in docs/evaluation.md. scores.json lists the thresholds that a run changed."""

    gain_over_input: float = 0.7  # dB of PSNR; family edit: inside the edited part
    gain_over_classic: float = 0.0  # dB of PSNR over the best classic filter; family edit: inside the edited part
    gain_over_base: float = 0.7  # dB of PSNR; family edit: inside the edited part
    swap_drop: float = 8.0  # dB lost with another recording's reference
    own_over_swapped: float = 0.5  # several controls: share of windows that are nearer to their own reference
    swap_floor: float = 0.3  # largest share of the gain over the floor that a swapped reference may keep
    strength_monotone: float = 0.0  # dB between neighbouring strengths 1, 0.5, 0.1, 0
    curve_monotone: float = 0.8  # R^2 of the best monotone curve through the strengths of a window
    control_gain: float = 0.3  # share of the way from the base alone to the VAE round trip
    follows: float = 0.3  # share of the way from another recording's target to the VAE round trip
    reference_drop: float = 0.05  # several references: share of the gain over the floor lost if only one is swapped
    edge_gap: float = 0.15  # edge F1 minus the edge F1 against another recording
    picture: float = 3.0  # dB of PSNR above base + reference
    chroma_ratio: float = 0.8  # chroma error divided by the grey input's
    luma_kept: float = -3.0  # dB of luma PSNR against the VAE round trip
    base_grey: float = 0.1  # relative difference allowed between the chroma errors of base + reference and of the input
    preserved: float = -3.0  # dB outside the edited part against the VAE round trip
    mask_local: float = 1 / 3  # change where the half mask keeps the reference divided by the change where it drops it
    fade_follows: float = 0.1  # share of the reference's effect at the end of the fade minus the share at its beginning
    adapter_gain: float = 0.0  # percent of the base's velocity loss on held-out windows; family style
    part_gain: float = 0.0  # dB of PSNR over the base in the parts that are not given; family style
    null_change: float = 1.0  # grey levels between strength 0 and no reference
    significance: float = 0.05  # level of the tests of the gates, after Holm's correction

    def __post_init__(self) -> None:
        require(
            0 < self.significance < 1, f"eval.thresholds.significance={self.significance} must lie in (0, 1), e.g. 0.05"
        )

    @property
    def changed(self) -> list[str]:
        """Names of the thresholds that differ from their defaults."""
        defaults = asdict(Thresholds())
        return [name for name, value in asdict(self).items() if value != defaults[name]]


@dataclass
class Eval:
    """Settings of the evaluation on held-out windows. The statistical unit is the recording."""

    windows: int = 24
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    strengths: list[float] = field(default_factory=lambda: [1.0, 0.75, 0.5, 0.25, 0.1, 0.05, 0.0])
    reference_strengths: list[float] = field(default_factory=list)  # of each of several alone; the others keep 1
    batch_size: int = 12
    workers: int = 2  # threads that measure clips while the next batch is sampled
    split: str = "heldout"
    against: str | None = None  # an earlier scores.json, or its folder: the report shows the differences
    report: str = "files"  # clips in files beside report.html; single: everything in one file
    junit: str | None = None  # a file for the claims as JUnit XML, for CI servers
    thresholds: Thresholds = field(default_factory=Thresholds)
    metrics: list[str] = field(default_factory=list)  # to measure besides those of the task, e.g. [vmaf,lpips]
    weights: Weights = field(default_factory=Weights)  # files and folders of the networks that `metrics` needs
    after_training: bool = True  # run the evaluation at the end of training
    # Time for the evaluation, e.g. 30m or 2h: it measures what fits, the most telling first. null: all. auto: a quarter
    # of the time that the run has trained, for its own adapter on a base other than nano; else all.
    budget: str | None = "auto"
    devices: int | None = None  # processes that sample, one per GPU; null: the GPUs of the training on this machine
    sequential: bool = False  # stop sampling when every gate is decided, by tests that allow for looking several times
    depth_network: str | None = None  # folder that reads depth from outputs; null: the network of the references
    pose_network: str | None = None  # RTMPose file, or blazepose; null: the network of the references
    label: str = ""  # added to the name of the folder of results; empty: a name by adapter and protocol

    def __post_init__(self) -> None:
        self.against = None if self.against is None else expand_home(self.against)
        self.junit = None if self.junit is None else expand_home(self.junit)
        self.depth_network = None if self.depth_network is None else expand_home(self.depth_network)
        self.pose_network = None if self.pose_network is None else expand_home(self.pose_network)
        require(self.windows >= 2, f"eval.windows={self.windows} must be at least 2 (an interval needs clips)")
        require(len(self.seeds) >= 1, "eval.seeds is empty: give at least one seed")
        require(
            len(set(self.seeds)) == len(self.seeds), f"eval.seeds={self.seeds} names a seed twice: it would count twice"
        )
        require(all(0 <= s <= 1 for s in self.strengths), f"eval.strengths={self.strengths} must lie in [0, 1]")
        require(
            all(0 <= s < 1 for s in self.reference_strengths),
            f"eval.reference_strengths={self.reference_strengths} must lie in [0, 1): all references at 1 are always "
            "measured",
        )
        require(self.devices is None or self.devices >= 1, f"eval.devices={self.devices} must be at least 1, or null")
        for key in ("batch_size", "workers"):
            require(getattr(self, key) >= 1, f"eval.{key}={getattr(self, key)} must be at least 1")
        require(
            self.junit is None or not Path(self.junit).is_dir(), f"eval.junit={self.junit} is a folder: name a file"
        )
        check_names(self.metrics)
        one_of("eval.split", self.split, ("val", "heldout"))
        one_of("eval.report", self.report, ("files", "single"))
        if self.budget not in (None, "auto"):
            parse_duration("eval.budget", str(self.budget))
        for key, other in (("budget", self.budget_seconds), ("against", self.against)):
            message = f"eval.sequential=true decides itself which windows are sampled: leave eval.{key} out"
            require(not self.sequential or other is None, message)
        require(
            not (self.sequential and "fvd" in self.metrics),
            "eval.metrics: fvd compares all clips at once, and eval.sequential=true leaves some out: choose one",
        )

    @property
    def budget_seconds(self) -> float | None:
        """Seconds of `budget`; None for null and auto."""
        return None if self.budget in (None, "auto") else parse_duration("eval.budget", str(self.budget))

    def clips_of(self, windows: int, references: int = 1) -> int:
        """Clips that are sampled for `windows` windows: one for each condition, window and seed.

        references: number that each window has; each of several is swapped, left out and weakened, too.
        """
        below_one = {0.0, *self.strengths} - {1.0}
        others = OTHER_CONDITIONS if references else PLAIN_CONDITIONS
        of_each = (2 + len(set(self.reference_strengths))) * references if references > 1 else 0
        return (others + of_each + len(below_one)) * windows * len(self.seeds)

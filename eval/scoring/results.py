"""What an evaluation has measured: values per window of every condition and row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.metrics import Suite
from eval.scoring.classic_row import ClassicChoice
from eval.scoring.common_scale import ControlScale
from eval.statistics.estimates import Values, drop_nan

Row = dict[str, Values]  # metric -> value per window
Frames = dict[str, list[list[float] | None]]  # metric -> window -> frame


@dataclass
class Results:
    """Values per window, averaged over seeds; NaN where a metric could not be measured.

    rows: condition or model-free row -> metric -> values. donor: the swapped condition measured against the window that
    donated its reference. changes: `condition_changes` -> values. by_latent_frame: condition -> adherence (windows,
    latent frames). diversity: condition -> values. by_seed: condition -> metric -> values (windows, seeds). frames:
    condition -> per-frame values. seconds: sampling time of each condition. clips: number of clips per condition.
    equal_frames: condition or row -> share of the frames of each window, over its seeds, that equal their target.
    sets: comparison of whole sets of clips (`clip_sets`). classic: the filter of the row of that name. scales: of a set
    with several controls, the common scale of each. likeness: see `scoring.likeness`.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    donor: Row = field(default_factory=dict)
    changes: Row = field(default_factory=dict)
    by_latent_frame: dict[str, Values] = field(default_factory=dict)
    diversity: Row = field(default_factory=dict)
    by_seed: dict[str, Row] = field(default_factory=dict)
    frames: dict[str, Frames] = field(default_factory=dict)
    equal_frames: Row = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    clips: int = 0
    sets: dict[str, Any] | None = None
    classic: ClassicChoice = field(default_factory=lambda: ClassicChoice(None))
    scales: dict[str, ControlScale] = field(default_factory=dict)
    likeness: dict[str, list[Any]] = field(default_factory=dict)

    def summary_line(self, name: str, suite: Suite) -> str:
        """Console line of a finished condition: sampling time, primary metric, PSNR, SSIM."""
        row, units = self.rows[name], {metric.key: metric.unit for metric in suite.metrics}
        means = {key: drop_nan(row[key]) for key in (suite.primary, "psnr", "ssim") if key in row}
        text = "  ".join(f"{key} {x.mean():.3f} {units[key]}".rstrip() for key, x in means.items() if len(x))
        return f"  {name:18} {self.seconds[name]:7.1f} s   {text}"

    def of_windows(self, numbers: Sequence[int]) -> Results:
        """The values of some windows, as if no others were measured."""

        def chosen(row: Mapping[str, Values]) -> Row:
            return {name: values[list(numbers)] for name, values in row.items()}

        return Results(
            rows={name: chosen(row) for name, row in self.rows.items()},
            donor=chosen(self.donor),
            changes=chosen(self.changes),
            by_latent_frame=chosen(self.by_latent_frame),
            diversity=chosen(self.diversity),
            by_seed={name: chosen(row) for name, row in self.by_seed.items()},
        )

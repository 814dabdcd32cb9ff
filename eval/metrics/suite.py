"""Which metrics a task is evaluated with: the metrics of every task, of its family, and of its control.

To add a metric, write `eval/metrics/<name>.py` with a `MetricGroup` and add it to one of the tables below: COMMON and
TEMPORAL (every task), FAMILIES (by `task.family`), or CONTROLS of `structure` (structure tasks, by the maker of the
control). The table in tests/test_metrics.py then needs a row that damages a clip step by step; docs/evaluation.md lists
the definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from eval.metrics import colour, displacement, edges, held_out_loss, levels, motion, picture, region, sound
from eval.metrics.base import CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, NotRun
from eval.metrics.structure import AGREEMENT, NO_READERS, DrawControl, Readers, TaskMetrics, structure_metrics
from iclora_train.config import Task
from iclora_train.data.controls import Control, leading_reference, makers_of

COMMON = (  # first in the report
    picture.PSNR,
    picture.PSNR_Y,
    picture.SSIM,
    edges.EDGES,
    colour.CHROMA,
    colour.COLOURFULNESS,
    picture.SHARPNESS,
    levels.NOISE,
    levels.LEVELS,
    displacement.SHIFT,
)
# Definition of the metrics, by number; scores.json records the newest. Number -> metrics that it changed.
REDEFINED = {
    2: ("flicker",),  # differences of blocks; before, second differences of whole frames
    3: ("level_bend",),  # within the range of levels that the target has; before, extrapolated to 0..255
}
DEFINITIONS = max(REDEFINED)
MEASURED_BY = {"clip": ("clip", "clip_text")}  # network in provenance.weights -> its metrics, where it has another name
TEMPORAL = (motion.MOTION, motion.FLICKER, motion.WARP)  # last in the report


@dataclass(frozen=True)
class Suite:
    """The metrics of a task, in the order of the report. The primary metric is fixed before anything is measured.

    readers: control -> what reads it from an output, of structure tasks. controls: of a set with several controls, the
    metrics of each by name; their common scale, `agreement`, is then the primary metric. with_sound: the sounds of the
    clips are measured too (`scoring.sound_scores`).
    """

    groups: tuple[MetricGroup, ...]
    primary: str
    adherence: str  # the metric of how well the reference is followed; usually the primary one
    not_run: tuple[NotRun, ...] = ()
    draw_control: DrawControl | None = field(default=None, repr=False)
    readers: Mapping[str, str] = field(default_factory=dict)
    controls: Mapping[str, TaskMetrics] = field(default_factory=dict)
    with_sound: bool = False

    @classmethod
    def of(
        cls,
        task: Task,
        side: int = picture.SSIM_WINDOW,
        frames: int = motion.MIN_FRAMES,
        readers: Readers = NO_READERS,
        controls: Mapping[str, Control] = MappingProxyType({}),
    ) -> Suite:
        """The suite of a task for clips of `frames` frames whose shorter side is `side` pixels.

        controls: `mixed_controls` of the windows. Raises ConfigError if a network cannot be loaded.
        """
        structure = task.family == "structure"
        if structure:
            task = task.of_reference(leading_reference(task))
        specific = structure_metrics(task, readers, controls) if structure else FAMILIES[task.family](task)
        metrics_of = specific.controls or {Control(task.maker).name: specific}
        groups = (*COMMON, *specific.groups, *TEMPORAL)
        obstacles = ((metric.key, group.obstacle(side, frames)) for group in groups for metric in group.metrics)
        return cls(
            groups,
            specific.primary,
            specific.adherence or specific.primary,
            specific.not_run + tuple(NotRun(key, reason) for key, reason in obstacles if reason),
            specific.draw_control,
            {name: metrics.reader for name, metrics in metrics_of.items()} if structure else {},
            specific.controls,
        )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics that may be measured. A metric is absent for a clip that lacks its subject (a person, say)."""
        first = (AGREEMENT,) if self.controls else ()
        of_sound = sound.METRICS if self.with_sound else ()
        return (*first, *(metric for group in self.groups for metric in group.metrics), *of_sound)

    def measure(self, output: Clip, truth: GroundTruth) -> Measurement:
        """Every metric of an output clip (F,H,W,3), with PSNR and the primary metric also per frame.

        Of a set with several controls, only the metrics of the window's own controls, and these per frame.

        Raises ValueError if the output and the target differ in size.
        """
        if output.shape != truth.target.shape:
            raise ValueError(f"a clip of {output.shape} cannot be measured against one of {truth.target.shape}")
        cached = CachedClip(output)
        side, frames = min(output.shape[1:3]), len(output)
        measurable = [group for group in self._groups_of(truth) if not group.obstacle(side, frames)]
        measurements = [group.measure(cached, truth) for group in measurable]
        values = {key: value for measurement in measurements for key, value in measurement.values.items()}
        by_frame = {key: series for measurement in measurements for key, series in measurement.frames.items()}
        leading = {"psnr", self.primary, *(self.controls[name].primary for name in self._controls_of(truth))}
        return Measurement(values, {key: series for key, series in by_frame.items() if key in leading})

    def _controls_of(self, truth: GroundTruth) -> list[str]:
        return [name for name in truth.controls if name in self.controls]

    def _groups_of(self, truth: GroundTruth) -> list[MetricGroup]:
        """The groups without those that belong to other controls only."""
        groups_of = {group.metrics: group for name in self._controls_of(truth) for group in self.controls[name].groups}
        others = {group.metrics for metrics in self.controls.values() for group in metrics.groups}
        return [groups_of.get(g.metrics, g) for g in self.groups if g.metrics in groups_of or g.metrics not in others]

    def control(self, output: Clip, truth: GroundTruth | None = None) -> Clip | None:
        """The control signal extracted from the output and drawn as the maker draws it (F,H,W,3), for the report.

        None for tasks without a control, and for track tasks without a ground truth (the start points).
        """
        return None if self.draw_control is None else self.draw_control(CachedClip(output), truth)


def _restoration(task: Task) -> TaskMetrics:
    """PSNR leads; with given parts (`task.conditions`), PSNR of the others is measured too."""
    return TaskMetrics((edges.ERQA, motion.TOF, *_of_given(task)), "psnr")


def _of_given(task: Task) -> tuple[MetricGroup, ...]:
    """The region metrics of a task that gives parts of the target."""
    return (region.REGION,) if any(condition.usual for condition in task.conditions) else ()


def _colorize(task: Task) -> TaskMetrics:
    """Adherence is luma PSNR: the reference contains the luma, the adapter has to invent the colours."""
    return TaskMetrics((colour.LUMA, colour.RATIO, colour.CDC), "chroma_error", adherence="psnr_y")


def _edit(task: Task) -> TaskMetrics:
    """PSNR inside the region leads if the task gives the rest of the target; PSNR outside if the maker paints a hole;
    else PSNR of the whole picture."""
    if _of_given(task):
        return TaskMetrics((region.REGION, region.OUTSIDE_SSIM, region.STRUCTURE_KEPT), "psnr_inside")
    primary = "psnr_outside" if makers_of(task) <= set(region.PAINTED) else "psnr"
    return TaskMetrics((region.REGION, region.OUTSIDE_SSIM, region.STRUCTURE_KEPT), primary)


def _style(task: Task) -> TaskMetrics:
    """The loss on held-out windows leads: no output has to be near a target that only a caption describes.

    Where parts of the target are given (`task.conditions`), PSNR of the other parts leads.
    """
    region_metrics = _of_given(task)
    primary = "psnr_inside" if region_metrics else held_out_loss.VELOCITY_LOSS.key
    return TaskMetrics((held_out_loss.LOSS, *region_metrics), primary)


FAMILIES: dict[str, Callable[[Task], TaskMetrics]] = {
    "restoration": _restoration,
    "colorize": _colorize,
    "edit": _edit,
    "style": _style,
}

"""Which metrics a task is evaluated with: the metrics of every task, of its family, and of its control.

To add a metric, write `eval/metrics/<name>.py` with a `MetricGroup` and add it to one of the tables below: COMMON and
TEMPORAL (every task), FAMILIES (by `task.family`), or CONTROLS (structure tasks, by `task.maker`). The table in
tests/test_metrics.py then needs a row that damages a clip step by step; docs/evaluation.md lists the definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eval.metrics import colour, displacement, edges, levels, motion, picture, region
from eval.metrics.base import CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, NotRun
from eval.metrics.depth import METRICS as DEPTH_METRICS
from eval.metrics.depth import depth_metrics
from eval.metrics.pose import METRICS as POSE_METRICS
from eval.metrics.pose import pose_metrics
from eval.metrics.tracks import track_metrics, trails
from iclora_train.config import Task
from iclora_train.config.paths import user_path
from iclora_train.signals import blazepose
from iclora_train.signals.depth_picture import depth_to_grey
from iclora_train.signals.edges import CannyEdges, ContourEdges
from iclora_train.signals.pose import PoseReader

DrawControl = Callable[[CachedClip, GroundTruth | None], Clip | None]

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
REDEFINED = {2: ("flicker",)}  # 2: differences of blocks; before, second differences of whole frames
DEFINITIONS = max(REDEFINED)
TEMPORAL = (motion.MOTION, motion.FLICKER, motion.WARP)  # last in the report


@dataclass(frozen=True)
class TaskMetrics:
    """The metrics that a family or control adds to the common ones.

    primary: the metric that leads the report. draw_control: extracts the control signal from an output and draws it.
    not_run: metrics that cannot be measured here. adherence: the metric of how well the reference is followed, if it is
    not the primary one.
    """

    groups: tuple[MetricGroup, ...]
    primary: str
    draw_control: DrawControl | None = None
    not_run: tuple[NotRun, ...] = ()
    adherence: str | None = None


@dataclass(frozen=True)
class Suite:
    """The metrics of a task, in the order of the report. The primary metric is fixed before anything is measured."""

    groups: tuple[MetricGroup, ...]
    primary: str
    adherence: str  # the metric of how well the reference is followed; usually the primary one
    not_run: tuple[NotRun, ...] = ()
    draw_control: DrawControl | None = field(default=None, repr=False)

    @classmethod
    def of(cls, task: Task, side: int = picture.SSIM_WINDOW, frames: int = motion.MIN_FRAMES) -> Suite:
        """The suite of a task for clips of `frames` frames whose shorter side is `side` pixels.

        Raises ConfigError if its depth network cannot be loaded.
        """
        specific = FAMILIES[task.family](task)
        groups = (*COMMON, *specific.groups, *TEMPORAL)
        obstacles = ((metric.key, group.obstacle(side, frames)) for group in groups for metric in group.metrics)
        return cls(
            groups,
            specific.primary,
            specific.adherence or specific.primary,
            specific.not_run + tuple(NotRun(key, reason) for key, reason in obstacles if reason),
            specific.draw_control,
        )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics that may be measured. A metric is absent for a clip that lacks its subject (a person, say)."""
        return tuple(metric for group in self.groups for metric in group.metrics)

    def measure(self, output: Clip, truth: GroundTruth) -> Measurement:
        """Every metric of an output clip (F,H,W,3), with PSNR and the primary metric also per frame.

        Raises ValueError if the output and the target differ in size.
        """
        if output.shape != truth.target.shape:
            raise ValueError(f"a clip of {output.shape} cannot be measured against one of {truth.target.shape}")
        cached = CachedClip(output)
        side, frames = min(output.shape[1:3]), len(output)
        measurable = [group for group in self.groups if not group.obstacle(side, frames)]
        measurements = [group.measure(cached, truth) for group in measurable]
        values = {key: value for measurement in measurements for key, value in measurement.values.items()}
        by_frame = {key: series for measurement in measurements for key, series in measurement.frames.items()}
        return Measurement(values, {key: by_frame[key] for key in by_frame if key in ("psnr", self.primary)})

    def control(self, output: Clip, truth: GroundTruth | None = None) -> Clip | None:
        """The control signal extracted from the output and drawn as the maker draws it (F,H,W,3), for the report.

        None for tasks without a control, and for track tasks without a ground truth (the start points).
        """
        return None if self.draw_control is None else self.draw_control(CachedClip(output), truth)


def _restoration(task: Task) -> TaskMetrics:
    return TaskMetrics((edges.ERQA, motion.TOF), "psnr")


def _colorize(task: Task) -> TaskMetrics:
    """Adherence is luma PSNR: the reference contains the luma, the adapter has to invent the colours."""
    return TaskMetrics((colour.LUMA, colour.RATIO, colour.CDC), "chroma_error", adherence="psnr_y")


def _edit(task: Task) -> TaskMetrics:
    """PSNR outside the region leads if the maker paints a hole, PSNR of the whole picture otherwise."""
    primary = "psnr_outside" if task.maker in region.PAINTED else "psnr"
    return TaskMetrics((region.REGION, region.OUTSIDE_SSIM, region.STRUCTURE_KEPT), primary)


def _structure(task: Task) -> TaskMetrics:
    return CONTROLS.get(task.maker, _edges)(task)


def _edges(task: Task) -> TaskMetrics:
    """Also the fallback for a structure maker without an entry in CONTROLS."""
    return TaskMetrics((), "edge_f1", lambda output, _: CannyEdges().draw(output.clip, output.clip.shape[1:3]))


def _canny(task: Task) -> TaskMetrics:
    canny = CannyEdges(**task.maker_args)
    return TaskMetrics((), "edge_f1", lambda output, _: canny.draw(output.clip, output.clip.shape[1:3]))


def _soft_edges(task: Task) -> TaskMetrics:
    contours = ContourEdges(**task.maker_args)
    return TaskMetrics((), "edge_f1", lambda output, _: contours.draw(output.clip)[0])


def _pose(task: Task) -> TaskMetrics:
    if not blazepose.is_installed():
        return _edges_instead_of(POSE_METRICS, "BlazePose's runtime is not installed: pip install 'iclora_train[pose]'")
    reader = PoseReader(**task.maker_args)

    def draw(output: CachedClip, _: GroundTruth | None) -> Clip:
        size = output.clip.shape[1:3]
        return reader.draw(reader.read(output.clip)[0], size, min(size))

    return TaskMetrics((pose_metrics(reader),), "pose_pck", draw)


def _tracks(task: Task) -> TaskMetrics:
    lost, larger = (float(task.maker_args.get(key, 1.0)) for key in ("lost", "larger"))

    def draw(output: CachedClip, truth: GroundTruth | None) -> Clip | None:
        return None if truth is None else trails(output, truth, lost, larger)

    return TaskMetrics((track_metrics(lost),), "track_error", draw)


def _depth(task: Task) -> TaskMetrics:
    model = task.maker_args.get("model")
    if model is None or not (user_path(model) / "config.json").is_file():
        reason = f"no weights: task.maker_args.model={model} is not the folder of a depth network"
        return _edges_instead_of(DEPTH_METRICS, f"{reason}; conf/conf/depth.yaml says how to get one")
    from iclora_train.signals.depth_network import load  # noqa: PLC0415  (transformers is slow to import)

    network, percentiles = load(user_path(model)), task.maker_args.get("range", (1.0, 99.0))

    def draw(output: CachedClip, _: GroundTruth | None) -> Clip:
        return depth_to_grey(network.nearness(output.clip), percentiles)[0]

    return TaskMetrics((depth_metrics(network),), "depth_error", draw)


def _depth_given(task: Task) -> TaskMetrics:
    reason = "no weights: the depth was supplied with the clips, and no network is set to measure depth in outputs"
    return _edges_instead_of(
        DEPTH_METRICS, f"{reason}; pairs made with control.depth and task.maker_args.model are measured"
    )


def _edges_instead_of(metrics: Sequence[Metric], reason: str) -> TaskMetrics:
    """Edge metrics, if the extractor of a control is not available."""
    return TaskMetrics((), "edge_f1", None, tuple(NotRun(metric.key, reason) for metric in metrics))


FAMILIES: dict[str, Callable[[Task], TaskMetrics]] = {
    "restoration": _restoration,
    "colorize": _colorize,
    "structure": _structure,
    "edit": _edit,
}
CONTROLS: dict[str, Callable[[Task], TaskMetrics]] = {
    "control.canny": _canny,
    "control.soft_edges": _soft_edges,
    "control.pose": _pose,
    "control.tracks": _tracks,
    "control.depth": _depth,
    "control.depth_given": _depth_given,
}

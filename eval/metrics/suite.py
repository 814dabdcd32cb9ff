"""Which metrics judge a task: one set for every family, and what the task's control asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.metrics import colour, edges, learned, motion, picture, region
from eval.metrics.base import CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, NotRun
from eval.metrics.depth import METRICS as DEPTH
from eval.metrics.depth import depth_metrics
from eval.metrics.pose import METRICS as POSE
from eval.metrics.pose import pose_metrics
from eval.metrics.tracks import track_metrics, trails
from iclora_train.config import Task
from iclora_train.signals import blazepose
from iclora_train.signals.depth_picture import depth_to_grey
from iclora_train.signals.edges import CannyEdges, ContourEdges
from iclora_train.signals.pose import PoseReader

Control = Callable[[CachedClip, GroundTruth | None], Clip | None]


@dataclass(frozen=True)
class _Adherence:
    """How a kind of control is measured: its gauges, what leads the report, how it is drawn again, what is missing, and
    the metric that tells whether the reference is followed where that is not the primary one."""

    groups: tuple[MetricGroup, ...]
    primary: str
    control: Control | None = None
    not_run: tuple[NotRun, ...] = ()
    followed: str | None = None


@dataclass(frozen=True)
class Suite:
    """The metrics of a task, in the order of the report; the primary one was declared before anything was measured."""

    groups: tuple[MetricGroup, ...]
    primary: str
    adherence: str  # the metric of how the reference is followed; mostly the primary one
    not_run: tuple[NotRun, ...] = ()
    draw: Control | None = field(default=None, repr=False)

    @classmethod
    def of(cls, task: Task) -> Suite:
        """The suite of a task, by its family, and for structure by its maker. ConfigError as the network of depth."""
        own = _FAMILIES[task.family](task)
        common = (picture.PSNR, picture.PSNR_Y, picture.SSIM, edges.EDGES, colour.CHROMA, colour.COLOURFULNESS)
        time = (motion.FLICKER, motion.WARP)
        groups = (*common, picture.SHARPNESS, *own.groups, *time)
        return cls(groups, own.primary, own.followed or own.primary, (*own.not_run, *learned.NOT_RUN), own.control)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All that may be measured; of a clip that lacks what one needs (nobody in the picture), it is absent."""
        return tuple(metric for group in self.groups for metric in group.metrics)

    def measure(self, output: Clip, truth: GroundTruth) -> Measurement:
        """Every metric of an output clip (F,H,W,3), and PSNR and the primary one per frame. ValueError when its size
        is not the target's."""
        if output.shape != truth.target.shape:
            raise ValueError(f"a clip of {output.shape} cannot be measured against one of {truth.target.shape}")
        view = CachedClip(output)
        found = [group.measure(view, truth) for group in self.groups]
        values = {key: value for one in found for key, value in one.values.items()}
        frames = {key: series for one in found for key, series in one.frames.items() if key in ("psnr", self.primary)}
        return Measurement(values, frames)

    def control(self, output: Clip, truth: GroundTruth | None = None) -> Clip | None:
        """The control signal extracted again from the output, drawn as the maker draws it (F,H,W,3), to be shown beside
        the requested one. None for tasks without one, and for tracks without a truth that says where they start."""
        return None if self.draw is None else self.draw(CachedClip(output), truth)


def _restoration(task: Task) -> _Adherence:
    return _Adherence((edges.ERQA, motion.TOF), "psnr")


def _colorize(task: Task) -> _Adherence:
    """Colours are to be made; what the reference tells is the luma."""
    return _Adherence((colour.LUMA, colour.RATIO, colour.CDC), "chroma_error", followed="psnr_y")


def _edit(task: Task) -> _Adherence:
    """Where the maker paints a hole, the reference asks for the rest: that leads. Elsewhere the pair is the measure."""
    primary = "psnr_outside" if task.maker in region.PAINTED else "psnr"
    return _Adherence((region.REGION, region.STRUCTURE_KEPT), primary)


def _structure(task: Task) -> _Adherence:
    return _CONTROLS.get(task.maker, _edges)(task)


def _edges(task: Task) -> _Adherence:
    return _Adherence((), "edge_f1", lambda output, _: CannyEdges().draw(output.clip, output.clip.shape[1:3]))


def _canny(task: Task) -> _Adherence:
    lines = CannyEdges(**task.maker_args)
    return _Adherence((), "edge_f1", lambda output, _: lines.draw(output.clip, output.clip.shape[1:3]))


def _soft_edges(task: Task) -> _Adherence:
    contours = ContourEdges(**task.maker_args)
    return _Adherence((), "edge_f1", lambda output, _: contours.draw(output.clip)[0])


def _pose(task: Task) -> _Adherence:
    if not blazepose.is_installed():
        return _without(POSE, "the package that runs BlazePose is absent: pip install 'iclora_train[pose]'")
    reader = PoseReader(**task.maker_args)

    def draw(output: CachedClip, _: GroundTruth | None) -> Clip:
        size = output.clip.shape[1:3]
        return reader.draw(reader.read(output.clip)[0], size, min(size))

    return _Adherence((pose_metrics(reader),), "pose_pck", draw)


def _tracks(task: Task) -> _Adherence:
    lost, larger = (float(task.maker_args.get(key, 1.0)) for key in ("lost", "larger"))

    def draw(output: CachedClip, truth: GroundTruth | None) -> Clip | None:
        return None if truth is None else trails(output, truth, lost, larger)

    return _Adherence((track_metrics(lost),), "track_error", draw)


def _depth(task: Task) -> _Adherence:
    model = task.maker_args.get("model")
    if model is None or not (Path(model).expanduser() / "config.json").is_file():
        why = f"weights absent: task.maker_args.model={model} is not the folder of a depth network"
        return _without(DEPTH, f"{why}; conf/conf/depth.yaml says how to get one")
    from iclora_train.signals.depth_network import load  # noqa: PLC0415  (transformers is slow to import)

    network, percentiles = load(Path(model).expanduser()), task.maker_args.get("range", (1.0, 99.0))

    def draw(output: CachedClip, _: GroundTruth | None) -> Clip:
        return depth_to_grey(network.nearness(output.clip), percentiles)[0]

    return _Adherence((depth_metrics(network),), "depth_error", draw)


def _depth_given(task: Task) -> _Adherence:
    why = "weights absent: the depth came with the clips, and no network is named that would read it in the outputs"
    return _without(DEPTH, f"{why}; pairs made with control.depth and task.maker_args.model are measured")


def _without(metrics: Sequence[Metric], reason: str) -> _Adherence:
    """Edges, where the extractor that a control needs is absent."""
    return _Adherence((), "edge_f1", None, tuple(NotRun(metric.key, reason) for metric in metrics))


_FAMILIES: dict[str, Callable[[Task], _Adherence]] = {
    "restoration": _restoration,
    "colorize": _colorize,
    "structure": _structure,
    "edit": _edit,
}
_CONTROLS: dict[str, Callable[[Task], _Adherence]] = {
    "control.canny": _canny,
    "control.soft_edges": _soft_edges,
    "control.pose": _pose,
    "control.tracks": _tracks,
    "control.depth": _depth,
    "control.depth_given": _depth_given,
}

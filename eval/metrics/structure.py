"""The metrics of controls: what a control adds to the common metrics, and how it is read from an output.

`CONTROLS` has an entry for each maker of a control. A maker without one is measured by its edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from eval.metrics import motion
from eval.metrics.base import CachedClip, Clip, GroundTruth, Metric, MetricGroup, NotRun
from eval.metrics.depth import METRICS as DEPTH_METRICS
from eval.metrics.depth import depth_metrics
from eval.metrics.pose import METRICS as POSE_METRICS
from eval.metrics.pose import pose_metrics
from eval.metrics.tracks import track_metrics, trails
from iclora_train.config import Task, require
from iclora_train.config.paths import user_path
from iclora_train.core.networks import content_hash
from iclora_train.data.controls import Control
from iclora_train.signals import blazepose, rtmpose
from iclora_train.signals.depth_picture import depth_to_grey
from iclora_train.signals.edges import CannyEdges, ContourEdges
from iclora_train.signals.pose import PoseReader

DrawControl = Callable[[CachedClip, GroundTruth | None], Clip | None]
BLAZEPOSE = "blazepose"
# Of sets with several controls. It is not measured on a clip: `scoring.common_scale` computes it from the metric of
# each window's own control.
AGREEMENT = Metric("agreement", "agreement with the own control", "", "high", "structure")


@dataclass(frozen=True)
class Readers:
    """The networks that read a control from an output; None: the one that made the references, if it is there.

    depth: folder of a depth network. pose: an ONNX file of RTMPose or DWPose, or `blazepose`.
    """

    depth: str | None = None
    pose: str | None = None


NO_READERS = Readers()


@dataclass(frozen=True)
class TaskMetrics:
    """The metrics that a family or control adds to the common ones.

    primary: the metric that leads the report. draw_control: extracts the control signal from an output and draws it.
    not_run: metrics that cannot be measured here. adherence: the metric of how well the reference is followed, if it is
    not the primary one. reader: what reads the control from an output. controls: of a set with several controls, the
    metrics of each, by name.
    """

    groups: tuple[MetricGroup, ...]
    primary: str
    draw_control: DrawControl | None = None
    not_run: tuple[NotRun, ...] = ()
    adherence: str | None = None
    reader: str = ""
    controls: Mapping[str, TaskMetrics] = field(default_factory=dict)


def structure_metrics(task: Task, readers: Readers, controls: Mapping[str, Control]) -> TaskMetrics:
    """The metrics of a structure task. controls: by name, of a set with several (`mixed_controls`)."""
    if not controls:
        return CONTROLS.get(task.maker, _edges)(task, readers)
    metrics_of = {name: structure_metrics(control.task(task), readers, {}) for name, control in controls.items()}

    def draw(output: CachedClip, truth: GroundTruth | None) -> Clip | None:
        draw_first = None if truth is None or not truth.controls else metrics_of[truth.controls[0]].draw_control
        return None if draw_first is None else draw_first(output, truth)

    groups = tuple({group.metrics: group for metrics in metrics_of.values() for group in metrics.groups}.values())
    not_run = {missing.metric: missing for metrics in metrics_of.values() for missing in metrics.not_run}
    return TaskMetrics(groups, AGREEMENT.key, draw, tuple(not_run.values()), controls=metrics_of)


def _edges(task: Task, readers: Readers) -> TaskMetrics:
    """Also the fallback for a structure maker without an entry in CONTROLS."""
    return TaskMetrics(
        (), "edge_f1", lambda output, _: CannyEdges().draw(output.clip, output.clip.shape[1:3]), reader="Canny edges"
    )


def _canny(task: Task, readers: Readers) -> TaskMetrics:
    canny = CannyEdges(**task.maker_args)
    return TaskMetrics(
        (), "edge_f1", lambda output, _: canny.draw(output.clip, output.clip.shape[1:3]), reader="Canny edges"
    )


def _soft_edges(task: Task, readers: Readers) -> TaskMetrics:
    contours = ContourEdges(**task.maker_args)
    return TaskMetrics((), "edge_f1", lambda output, _: contours.draw(output.clip)[0], reader="Canny edges")


def _flow(task: Task, readers: Readers) -> TaskMetrics:
    return TaskMetrics((motion.TOF,), "tof", reader="DIS optical flow")


def _pose(task: Task, readers: Readers) -> TaskMetrics:
    if not blazepose.is_installed():  # it finds the people for other networks too
        require(
            readers.pose is None,
            f"{POSE_KEY}={readers.pose} needs BlazePose's runtime, which finds the people: pip install "
            "'iclora_train[pose]', or leave it out to measure edges instead",
        )
        return _edges_instead_of(POSE_METRICS, "BlazePose's runtime is not installed: pip install 'iclora_train[pose]'")
    args = dict(task.maker_args)
    if readers.pose is not None:
        args["model"] = None if readers.pose == BLAZEPOSE else readers.pose
    if args.get("model") is not None:
        rtmpose.require_usable(user_path(args["model"]), "task.maker_args.model" if readers.pose is None else POSE_KEY)
    reader = PoseReader(**args)

    def draw(output: CachedClip, _: GroundTruth | None) -> Clip:
        size = output.clip.shape[1:3]
        return reader.draw(reader.read(output.clip)[0], size, min(size))

    name = "BlazePose" if reader.model is None else _name("RTMPose", user_path(reader.model))
    return TaskMetrics((pose_metrics(reader),), "pose_pck", draw, reader=name)


def _tracks(task: Task, readers: Readers) -> TaskMetrics:
    lost, larger = (float(task.maker_args.get(key, 1.0)) for key in ("lost", "larger"))

    def draw(output: CachedClip, truth: GroundTruth | None) -> Clip | None:
        return None if truth is None else trails(output, truth, lost, larger)

    return TaskMetrics((track_metrics(lost),), "track_error", draw, reader="Lucas-Kanade tracks")


DEPTH_KEY, POSE_KEY = "eval.depth_network", "eval.pose_network"


def _depth(task: Task, readers: Readers) -> TaskMetrics:
    """Depth by `eval.depth_network`, else by the network that made the references, else edges instead."""
    folder, key = (
        (task.maker_args.get("model"), "task.maker_args.model") if readers.depth is None else (readers.depth, DEPTH_KEY)
    )
    exists = folder is not None and (user_path(folder) / "config.json").is_file()
    if not exists:
        require(
            readers.depth is None, f"{DEPTH_KEY}={folder} is not the folder of a depth network: it has no config.json"
        )
        reason = f"no weights: {key}={folder} is not the folder of a depth network; set {DEPTH_KEY}"
        return _edges_instead_of(DEPTH_METRICS, f"{reason}; conf/conf/depth.yaml says how to get one")
    from iclora_train.signals.depth_network import load  # noqa: PLC0415  (transformers is slow to import)

    network, percentiles = load(user_path(str(folder)), key), task.maker_args.get("range", (1.0, 99.0))

    def draw(output: CachedClip, _: GroundTruth | None) -> Clip:
        return depth_to_grey(network.nearness(output.clip), percentiles)[0]

    reader = _name(network.kind, user_path(str(folder)))
    return TaskMetrics((depth_metrics(network),), "depth_error", draw, reader=reader)


def _depth_given(task: Task, readers: Readers) -> TaskMetrics:
    if readers.depth is not None:
        return _depth(task, readers)
    reason = "no weights: the depth was supplied with the clips, and no network is set to measure depth in outputs"
    return _edges_instead_of(
        DEPTH_METRICS,
        f"{reason}: set {DEPTH_KEY}; pairs made with control.depth and task.maker_args.model are measured with it",
    )


@cache
def _name(kind: str, path: Path) -> str:
    """`dpt large (1a2b3c4d)`: a network by kind, file or folder, and the first digits of the hash of its content."""
    return f"{kind} {path.name} ({content_hash(path)[:8]})"


def _edges_instead_of(metrics: Sequence[Metric], reason: str) -> TaskMetrics:
    """Edge metrics, if the extractor of a control is not available."""
    not_run = tuple(NotRun(metric.key, reason) for metric in metrics)
    return TaskMetrics((), "edge_f1", None, not_run, reader=f"Canny edges instead of {metrics[0].title}")


CONTROLS: dict[str, Callable[[Task, Readers], TaskMetrics]] = {
    "control.canny": _canny,
    "control.soft_edges": _soft_edges,
    "control.pose": _pose,
    "control.tracks": _tracks,
    "control.flow": _flow,
    "control.depth": _depth,
    "control.depth_given": _depth_given,
}

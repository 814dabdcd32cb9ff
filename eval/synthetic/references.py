"""How a simple signal is put to an adapter: the scene turned into the kind of reference that its task was trained on.

Controls (edges, depth, tracks) are drawn from what is known of the scene. Degradations are stand-ins made here by one
plain operation each, since eval does not know how data_prep makes pairs: a Gaussian blur for whatever is to be
restored, grey for colorize, a painted box for what is to be filled. They ask where things are, not how well the task is
done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from eval.synthetic import detect, shapes
from eval.synthetic.probes import Probe
from eval.synthetic.shapes import Clip
from iclora_train.config import Task
from iclora_train.core.types import VideoShape
from iclora_train.data.reference_kinds import MASK_COLOUR, REFERENCE_KINDS
from iclora_train.signals.track_drawing import draw_tracks

KINDS = ("edges", "depth", "tracks", "pose", "grey", "hole", "given", "degraded")
BLUR = 1 / 100  # of the short side, at least a pixel: sigma of the blur
HOLE = 0.25  # of height and width: the box that is painted, in the corner at the lower left, which nothing passes


def reference_kind(task: Task) -> str:
    """Which of KINDS a task's references are, by its maker, else by its family."""
    if task.maker in REFERENCE_KINDS:
        return REFERENCE_KINDS[task.maker]
    if task.family == "structure":
        return "edges"
    if task.family == "colorize":
        return "grey"
    return "given" if task.maker == "given" else "degraded"


def not_applicable(probe: Probe, kind: str) -> str | None:
    """Why a signal cannot be put to references of a kind, or None where it can."""
    if kind == "pose":
        return "skeletons are found again only by a pose network"
    if kind == "tracks" and probe.points is None:
        return "it has no point that moves along a track"
    if kind == "edges" and probe.distance is None:
        return "a ramp has no edges"
    if kind == "depth" and probe.distance is None:
        return "a ramp of depth is found again only by a depth network"
    return None


def reference(probe: Probe, task: Task, shape: VideoShape) -> Clip:
    """The reference clip of a signal, smaller and with fewer frames by the task's factors."""
    full = _full(probe, reference_kind(task), task.maker_args, shape)[:: task.reference_temporal_scale]
    if task.reference_downscale == 1:
        return full
    size = (shape.width // task.reference_downscale, shape.height // task.reference_downscale)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in full]).astype(np.uint8)


def _full(probe: Probe, kind: str, args: Mapping[str, Any], shape: VideoShape) -> Clip:
    """The reference (F,H,W,3) before it is made smaller."""
    if kind == "edges":
        assert probe.distance is not None
        return shapes.drawing(probe.distance, shape.frames, *_pen(args, shape))
    if kind == "depth":
        assert probe.distance is not None
        return shapes.depth(probe.distance, shape.frames)
    if kind == "tracks":
        assert probe.points is not None
        seen = np.ones((1, shape.frames), bool)
        return draw_tracks(probe.points[None], seen, (shape.height, shape.width), args.get("larger", 1.0))
    if kind == "grey":
        return shapes.grey(detect.luma(probe.scene))
    if kind == "hole":
        painted = probe.scene.copy()
        painted[:, round((1 - HOLE) * shape.height) :, : round(HOLE * shape.width)] = args.get("colour", MASK_COLOUR)
        return painted
    return probe.scene if kind == "given" else _blurred(probe.scene)


def _pen(args: Mapping[str, Any], shape: VideoShape) -> tuple[float, float]:
    """Thickness and softness in pixels of the lines that the task's own maker draws."""
    short = min(shape.height, shape.width)
    wider = short / (args.get("size") or args.get("reference_height") or short)
    return max(args.get("thickness", 1) * wider, 1.0), args.get("soft", 0.0) * wider


def _blurred(clip: Clip) -> Clip:
    sigma = max(BLUR * min(clip.shape[1:3]), 1.0)
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip]).astype(np.uint8)

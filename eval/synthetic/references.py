"""The reference of a synthetic probe: the scene, drawn as the kind of reference that the task was trained on.

Controls (edges, depth, tracks) are drawn from the known geometry of the scene. Degradations are replaced by one simple
operation, because eval does not import data_prep: Gaussian blur for restoration, grey for colorize, a painted box for
inpainting. The probes test positions and times, not how well the task is solved.
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
from iclora_train.media.frame_times import temporal_subsample
from iclora_train.signals.track_drawing import draw_tracks

BLUR = 1 / 100  # sigma of the blur as a share of the short side, at least one pixel
HOLE = 0.25  # of height and width: the painted box in the lower left corner, which no shape crosses


def reference_kind(task: Task) -> str | None:
    """Kind of the task's references: edges, depth, tracks, pose, hole, grey, given or degraded; None if unknown.

    The maker decides (`REFERENCE_KINDS`). For makers of ordinary pictures (degraded or given), the family decides:
    colorize has grey references, structure has edge drawings.
    """
    kind = REFERENCE_KINDS.get(task.maker)
    if kind in ("degraded", "given"):
        return {"colorize": "grey", "structure": "edges"}.get(task.family, kind)
    return kind


def not_applicable(probe: Probe, task: Task) -> str | None:
    """Why a probe cannot be drawn as a reference of the task, or None if it can."""
    kind = reference_kind(task)
    if kind is None:
        return f"maker {task.maker} has no entry in iclora_train/data/reference_kinds.py"
    if kind == "pose":
        return "skeletons can only be detected by a pose network"
    if kind == "tracks" and probe.points is None:
        return "it has no point that moves along a track"
    if kind == "edges" and probe.distance is None:
        return "a ramp has no edges"
    if kind == "depth" and probe.distance is None:
        return "a ramp of depth can only be detected by a depth network"
    return None


def reference(probe: Probe, task: Task, shape: VideoShape) -> Clip:
    """The reference clip of a probe, reduced in size and frame count by the task's factors."""
    full = _full_size(probe, reference_kind(task), task.maker_args, shape)
    full = temporal_subsample(full, task.reference_temporal_scale)
    if task.reference_downscale == 1:
        return full
    size = (shape.width // task.reference_downscale, shape.height // task.reference_downscale)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in full]).astype(np.uint8)


def _full_size(probe: Probe, kind: str | None, args: Mapping[str, Any], shape: VideoShape) -> Clip:
    """The reference (F,H,W,3) before it is reduced."""
    if kind == "edges":
        assert probe.distance is not None
        return shapes.drawing(probe.distance, shape.frames, *_pen(args, shape))
    if kind == "depth":
        assert probe.distance is not None
        return shapes.depth(probe.distance, shape.frames)
    if kind == "tracks":
        assert probe.points is not None
        visible = np.ones((1, shape.frames), bool)
        return draw_tracks(probe.points[None], visible, (shape.height, shape.width), args.get("larger", 1.0))
    if kind == "grey":
        return shapes.grey(detect.luma(probe.scene))
    if kind == "hole":
        painted = probe.scene.copy()
        painted[:, round((1 - HOLE) * shape.height) :, : round(HOLE * shape.width)] = args.get("colour", MASK_COLOUR)
        return painted
    return probe.scene if kind == "given" else _blurred(probe.scene)


def _pen(args: Mapping[str, Any], shape: VideoShape) -> tuple[float, float]:
    """Thickness and softness in pixels of the lines, as the task's maker draws them."""
    short = min(shape.height, shape.width)
    scale = short / (args.get("size") or args.get("reference_height") or short)
    return max(args.get("thickness", 1) * scale, 1.0), args.get("soft", 0.0) * scale


def _blurred(clip: Clip) -> Clip:
    sigma = max(BLUR * min(clip.shape[1:3]), 1.0)
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip]).astype(np.uint8)

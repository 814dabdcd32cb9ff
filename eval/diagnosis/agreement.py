"""How well a clip follows its reference, measured without a target: the control is read from the clip and compared."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.diagnosis.measures import LAYOUT, Agreement, coarse, correlation
from eval.diagnosis.stills import MAKER, STILL, still_agreements
from eval.metrics import Clip, Suite
from eval.metrics.base import CachedClip, Mask
from eval.metrics.edges import edge_f1, f1_of
from iclora_train.config import Task
from iclora_train.data.controls import UNION, Control, configured_controls
from iclora_train.data.reference_kinds import MASK_COLOUR, REFERENCE_KINDS
from iclora_train.signals.optical_flow import dis_flow

EDGE_GAP = 0.15  # as the claim edge_gap: F1 above that of the mirrored drawing
DEPTH = 0.5  # correlation of the depth of the clip with the depth picture
FOLLOWED = 0.3  # tracks: share of the requested motion that the clip has; as the claim follows
STROKE = 96  # a pixel of a drawing is drawn if a channel has this level
DARK_SHARE = 0.7  # a picture with more black than this is taken for a drawing
MIN_MOTION = 0.2  # pixels per frame; requests below it are too small to be measured
DRAWINGS = ("edges", "pose", "tracks")


def reference_kind(task: Task | None, reference: Clip) -> str:
    """The kind of picture that a reference is, as in `REFERENCE_KINDS`; `union` and no task are judged by its look."""
    if task is not None and task.maker == MAKER:
        return STILL
    if task is not None and task.maker != UNION:
        return REFERENCE_KINDS.get(task.maker, "degraded")
    drawn = reference.max(-1)
    is_coloured = (reference.max(-1).astype(int) - reference.min(-1)) > STROKE // 2
    if (drawn < STROKE // 3).mean() > DARK_SHARE:
        return "pose" if is_coloured.sum() > 0.3 * (drawn >= STROKE).sum() else "edges"
    return "depth" if task is not None and not is_coloured.mean() > 0.02 else "degraded"


def agreements(kind: str, task: Task | None, clip: Clip, shown: Clip, reference: Clip) -> tuple[list[Agreement], str]:
    """The agreements of a clip (F,H,W,3) with a reference (n,H,W,3), all of which say whether it is followed.

    shown: the frames of the clip at the moments of the reference. None of them, and why, if they cannot be measured.
    """
    if kind == STILL and task is not None:
        return still_agreements(task, clip, shown, reference), ""
    measured, reason = agreement(kind, task, shown, reference)
    return ([], reason or "") if measured is None else ([measured], "")


def agreement(kind: str, task: Task | None, clip: Clip, reference: Clip) -> tuple[Agreement | None, str | None]:
    """The agreement of clip and reference (n,H,W,3), or None and why it is not measured."""
    if kind == "tracks":
        return _tracks(clip, reference)
    if kind in ("edges", "pose", "depth"):
        return _control(kind, task, clip, reference)
    if kind == "hole":
        outside = ~painted(reference)
        return Agreement("layout outside the masked region", layout(clip, reference, outside), LAYOUT), None
    measured = Agreement("layout", layout(clip, reference), LAYOUT)
    if kind == "given" and not measured.is_followed:  # light and colours may differ on purpose
        return Agreement("edges above chance", edge_gap(clip, reference), EDGE_GAP), None
    return measured, None


def _control(kind: str, task: Task | None, clip: Clip, reference: Clip) -> tuple[Agreement | None, str | None]:
    """The control is extracted from the clip as the task's maker does, and compared with the drawing."""
    if task is None or task.maker == UNION:
        of_kind = [] if task is None else [c for c in configured_controls(task) if REFERENCE_KINDS.get(c.maker) == kind]
        control = (of_kind or [Control(f"control.{ {'edges': 'canny'}.get(kind, kind) }")])[0]
        task = control.task(Task(name=kind, family="structure", maker=control.maker))
    suite = Suite.of(task, side=min(clip.shape[1:3]))
    drawn = suite.control(clip)
    if suite.not_run or drawn is None:
        return None, "; ".join({missing.reason for missing in suite.not_run}) or "its control cannot be read"
    if kind == "depth":
        return Agreement("depth", correlation(drawn[..., 0], reference[..., 0]), DEPTH), None
    return Agreement(f"{kind} above chance", drawing_gap(drawn, reference), EDGE_GAP), None


def drawing_gap(drawn: Clip, reference: Clip) -> float:
    """F1 of the strokes of two drawings, within 1/128 of the shorter side, minus that against mirrored drawings.

    Mirrored left to right or upside down, whichever fits less: the agreement by chance of as many strokes.
    """
    first, second = ((clip.max(-1) >= STROKE).astype(np.uint8) for clip in (drawn, reference))
    tolerance = max(1, round(min(first.shape[1:]) / 128))
    chance = min(f1_of(first, np.flip(second, axis).copy(), tolerance) for axis in (1, 2))
    return f1_of(first, second, tolerance) - chance


def edge_gap(clip: Clip, reference: Clip) -> float:
    """Edge F1 of two pictures minus that against the mirrored one."""
    output, source = CachedClip(clip), CachedClip(reference)
    chance = min(edge_f1(output, CachedClip(np.flip(reference, axis).copy())) for axis in (1, 2))
    return edge_f1(output, source) - chance


def layout(clip: Clip, reference: Clip, where: Mask | None = None) -> float:
    """Correlation of the luma on a coarse grid, over all frames and the cells of which `where` covers at least half."""
    cells = [coarse(CachedClip(frames).grey.astype(np.float32)) for frames in (clip, reference)]
    if where is not None:
        chosen = coarse(where.astype(np.float32)) >= 0.5
        cells = [values[chosen] for values in cells]
    return correlation(*cells)


def painted(reference: Clip, tolerance: int = 40) -> Mask:
    """Pixels (n,H,W) of the mask colour, within the losses of a video file."""
    return np.asarray((np.abs(reference.astype(np.int16) - np.array(MASK_COLOUR)) <= tolerance).all(-1))


def _tracks(clip: Clip, reference: Clip) -> tuple[Agreement | None, str | None]:
    """Share of the requested motion that the clip has: the newest discs of the drawing against the optical flow.

    sum(requested . measured) / sum(|requested|^2) over all discs and steps: 1 for the requested motion, 0 for none.
    """
    grey = CachedClip(clip).grey
    requested_square, product, length = 0.0, 0.0, []
    for t in range(len(clip) - 1):
        steps = disc_steps(reference[t], reference[t + 1])
        if not steps:
            continue
        flow = cv2.blur(dis_flow(grey[t], grey[t + 1]), (5, 5))
        for (x, y), step in steps:
            measured = flow[min(round(y), flow.shape[0] - 1), min(round(x), flow.shape[1] - 1)]
            requested_square += float(step @ step)
            product += float(step @ measured)
            length.append(float(np.hypot(*step)))
    if not length or np.mean(length) < MIN_MOTION:
        return None, "the reference shows no moving discs in the colours of LTXVDrawTracks"
    return Agreement("share of the requested motion", product / requested_square, FOLLOWED), None


def disc_steps(now: Clip, later: Clip) -> list[tuple[tuple[float, float], NDArray[np.float64]]]:
    """(centre, step to the next frame) in pixels of the newest discs of a drawing, which are blue."""
    centres, following = (_newest(frame) for frame in (now, later))
    if not len(centres) or not len(following):
        return []
    reach = 0.1 * min(now.shape[:2])
    result = []
    for centre in centres:
        distances = np.hypot(*(following - centre).T)
        if distances.min() <= reach:
            step = following[distances.argmin()] - centre
            result.append(((float(centre[0]), float(centre[1])), step))
    return result


def _newest(frame: Clip) -> NDArray[np.float64]:
    """Centres (n,2) as x, y of the blue discs."""
    red, green, blue = (frame[..., i].astype(np.int16) for i in range(3))
    mask = ((blue > 140) & (red < 80) & (green < 0.25 * blue)).astype(np.uint8)  # the last four frames of a trail
    count, _, _, centres = cv2.connectedComponentsWithStats(mask)
    return np.asarray(centres[1:count], np.float64)

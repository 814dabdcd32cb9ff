"""The six synthetic probes: what each requests, how it is measured in an output, and its tolerance.

A probe passes if its error is at most its threshold. Thresholds were fixed before any adapter was evaluated. Scenes and
detectors were chosen with the help of one canny adapter on nano. Thresholds:

    position  half a reference token: an adapter that follows a position at all follows it within its token; a shape
              that is not followed is a third of the frame away
    ramp      a quarter of the slope: codecs and samplers change contrast by less; an ignored ramp is off by 100 %
    moment    half of the frames of a latent frame (the same argument in time), at most an eighth of the clip
    rest      a tenth of the luma variance: a still picture has 0, noise has about 1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from eval.synthetic import detect, shapes
from eval.synthetic.shapes import DOT, SQUARE, Array, Clip, SignedDistance
from iclora_train.core.types import Geometry, VideoShape

MAX_SLOPE_ERROR, MAX_UNREST = 0.25, 0.1
MARGIN = 0.08  # of the short side: margin of a template around its shape


@dataclass(frozen=True)
class Probe:
    """One synthetic probe.

    scene: the clip (F,H,W,3) that fulfils the request. requested, and the result of measure(clip): points (F,2) or
    columns (F,) in pixels, a slope (1,) in levels, a moment (1,) in frames, or unrest (F,). error(measured): at most
    `threshold` if the request is met. The reference is drawn from `distance` (signed distances, see `shapes`; None for
    the ramp) or from `points` (F,2), the track of a shape that moves as a whole.
    """

    name: str
    claim: str
    scene: Clip
    requested: Array
    measure: Callable[[Clip], Array]
    error: Callable[[Array], float]
    threshold: float
    distance: SignedDistance | None = None
    points: Array | None = None


@dataclass(frozen=True)
class Scale:
    """Sizes of a base and task.

    token: side of a reference token in output pixels. frames: frames per latent frame. coarse: factor by which pictures
    may be reduced so that outlines are still located to a sixteenth of a latent cell.
    """

    token: int
    frames: int
    coarse: int

    @classmethod
    def of(cls, geometry: Geometry, downscale: int) -> Scale:
        """The scale of a base and of a task whose references are `downscale` times smaller."""
        return cls(geometry.spatial * downscale, geometry.temporal, max(geometry.spatial // 8, 1))


def all_probes(shape: VideoShape, scale: Scale) -> list[Probe]:
    """All six probes, for clips of one size."""
    return [
        _square(shape, scale),
        _line(shape, scale),
        _dot(shape, scale),
        _ramp(shape),
        _step(shape, scale),
        _hold(shape),
    ]


def _square(shape: VideoShape, scale: Scale) -> Probe:
    centres = shapes.path(shape, (0.34, 0.32), (0.64, 0.6))
    claim = "a square moves along its path: median distance of its centre, pixels"
    return _moving("square", claim, shapes.square(shape, centres), centres, shapes.square, shape, scale)


def _dot(shape: VideoShape, scale: Scale) -> Probe:
    centres = shapes.path(shape, (0.7, 0.56), (0.3, 0.56), bow=0.2)
    claim = "a dot moves along an arc: median distance of its centre, pixels"
    return _moving("dot", claim, shapes.dot(shape, centres), centres, shapes.dot, shape, scale)


def _moving(
    name: str,
    claim: str,
    distance: SignedDistance,
    centres: Array,
    draw: Callable[[VideoShape, Array], SignedDistance],
    shape: VideoShape,
    scale: Scale,
) -> Probe:
    """A shape whose centres (F,2) are requested and located by its outline."""
    template = _template(draw, shape, scale)
    return Probe(
        name,
        claim,
        shapes.picture(distance, shape.frames),
        centres,
        lambda clip: detect.locate(detect.outlines(clip, scale.coarse), template) * scale.coarse,
        lambda measured: float(np.median(np.hypot(*(measured - centres).T))),
        scale.token / 2,
        distance,
        centres,
    )


def _template(draw: Callable[[VideoShape, Array], SignedDistance], shape: VideoShape, scale: Scale) -> detect.Outline:
    """The outline (h,w) of a single shape in a reduced frame, as `detect.outlines` computes it."""
    short = min(shape.height, shape.width)
    single = draw(shape, np.array([[shape.width / 2, shape.height / 2]]))
    outline = detect.outlines(shapes.picture(single, 1), scale.coarse)[0]
    near = cv2.resize(single(0), outline.shape[::-1], interpolation=cv2.INTER_AREA) < MARGIN * short
    rows, columns = (np.flatnonzero(near.any(axis)) for axis in (1, 0))
    return np.ascontiguousarray(outline[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _line(shape: VideoShape, scale: Scale) -> Probe:
    columns = np.linspace(0.3, 0.7, shape.frames) * shape.width  # (F,)
    distance = shapes.left_of(shape, columns)
    middle = shapes.left_of(shape, np.array([shape.width / 2]))
    outline = detect.outlines(shapes.picture(middle, 1), scale.coarse)[0]
    half = outline.shape[1] // 2
    reach = max(round(2 * MARGIN * half), 3)
    template = np.ascontiguousarray(outline[:, half - reach : half + reach])
    return Probe(
        "line",
        "a vertical line sweeps from left to right: median distance, pixels",
        shapes.picture(distance, shape.frames),
        columns,
        lambda clip: detect.locate(detect.outlines(clip, scale.coarse), template)[:, 0] * scale.coarse,
        lambda measured: float(np.median(np.abs(measured - columns))),
        scale.token / 2,
        distance,
    )


def _ramp(shape: VideoShape) -> Probe:
    scene = shapes.ramp(shape)
    requested = np.array([detect.slope(scene)])
    return Probe(
        "ramp",
        "brightness rises linearly from left to right: relative error of the slope",
        scene,
        requested,
        lambda clip: np.array([detect.slope(clip)]),
        lambda measured: float(abs(measured[0] / requested[0] - 1)),
        MAX_SLOPE_ERROR,
    )


def _step(shape: VideoShape, scale: Scale) -> Probe:
    moment = (shape.frames - 1) // scale.frames // 2 * scale.frames + 1
    centre = np.array([0.3 * shape.width, 0.5 * shape.height])
    present = shapes.square(shape, np.repeat(centre[None], shape.frames, axis=0))
    absent = np.full((shape.height, shape.width), float(shape.width + shape.height))
    template = _template(shapes.square, shape, scale)

    def measure(clip: Clip) -> Array:
        series = detect.fit_at(detect.outlines(clip, scale.coarse), template, *(centre / scale.coarse))
        return np.array([float(detect.step_frame(series))])

    def distance(t: int) -> Array:
        return present(t) if t >= moment else absent

    return Probe(
        "step",
        "a square appears at its moment: error in frames",
        shapes.picture(distance, shape.frames),
        np.array([float(moment)]),
        measure,
        lambda measured: float(abs(measured[0] - moment)),
        min(scale.frames / 2, shape.frames / 8),
        distance,
    )


def _hold(shape: VideoShape) -> Probe:
    still = np.ones((shape.frames, 1))
    centre = np.array([0.36 * shape.width, 0.44 * shape.height])
    dot_centre = centre + 2.2 * SQUARE * min(shape.height, shape.width)
    square, dot = shapes.square(shape, still * centre), shapes.dot(shape, still * dot_centre)

    def distance(t: int) -> Array:
        return np.minimum(square(t), dot(t))

    return Probe(
        "hold",
        "shapes at rest stay at rest: share of the luma variance that is change",
        shapes.picture(distance, shape.frames),
        np.zeros(shape.frames),
        detect.unrest,
        lambda measured: float(measured.mean()),
        MAX_UNREST,
        distance,
    )


def track_by_flow(probe: Probe) -> Probe:
    """The moving probe for track adapters, which may paint any content: follow the start point by optical flow.

    The detector then follows whatever lies at the start of the track instead of an outline.
    """
    assert probe.points is not None
    start = probe.points[0]
    reach = round(2 * DOT * min(probe.scene.shape[1:3]))
    return replace(probe, measure=lambda clip: detect.follow(clip, start, reach))

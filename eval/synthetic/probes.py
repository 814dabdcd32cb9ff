"""The six simple signals: what each requests, how it is found again, and how far off it may be.

A request is met when the error is at most its threshold. Thresholds were fixed before any adapter was judged;
scenes and detectors were settled with an adapter of canny on nano at hand:

    position  half a reference token: a token of the reference covers that many pixels, so a position that is followed
              at all is followed within its token; a shape that is not followed lies a third of the frame away
    ramp      a quarter of the slope: codecs and samplers change contrast by less, an ignored ramp is off by all of it
    moment    half of the frames that share a latent frame, the same argument in time; an eighth of a short clip
    rest      a tenth of the luma's variance: a still picture has none, noise has all
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from eval.synthetic import detect, shapes
from eval.synthetic.shapes import DOT, SQUARE, Clip, Distance, Plane
from iclora_train.core.types import Geometry, VideoShape

SLOPE_OFF, UNREST = 0.25, 0.1
MARGIN = 0.08  # of the short side, how far a template reaches beyond its shape


@dataclass(frozen=True)
class Probe:
    """One request. scene: the clip (F,H,W,3) that fulfils it.

    found(clip) has the shape of `requested`: points (F,2) or columns (F,) in pixels, a slope (1,) in levels, a moment
    (1,) in frames, unrest (F,). error(found) is at most `threshold` where the request is met. What the reference is
    drawn from: distance (`shapes`) unless it is the ramp; points (F,2), the track of what moves as one.
    """

    name: str
    claim: str
    scene: Clip
    requested: Plane
    found: Callable[[Clip], Plane]
    error: Callable[[Plane], float]
    threshold: float
    distance: Distance | None = None
    points: Plane | None = None


@dataclass(frozen=True)
class Scale:
    """Of a base and task: side of a reference token in pixels of the output, frames of a latent frame, and how many
    times smaller pictures may be for outlines to be found in them to a sixteenth of a latent cell."""

    token: int
    frames: int
    coarse: int

    @classmethod
    def of(cls, geometry: Geometry, downscale: int) -> Scale:
        """For a base, and a task whose references are `downscale` times smaller."""
        return cls(geometry.spatial * downscale, geometry.temporal, max(geometry.spatial // 8, 1))


def all_probes(shape: VideoShape, scale: Scale) -> list[Probe]:
    """All six, for clips of one size."""
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
    claim = "a square moves where it is told: median distance of its centre, pixels"
    return _moving("square", claim, shapes.square(shape, centres), centres, shapes.square, shape, scale)


def _dot(shape: VideoShape, scale: Scale) -> Probe:
    centres = shapes.path(shape, (0.7, 0.56), (0.3, 0.56), bow=0.2)
    claim = "a dot runs along its arc: median distance of its centre, pixels"
    return _moving("dot", claim, shapes.dot(shape, centres), centres, shapes.dot, shape, scale)


def _moving(
    name: str,
    claim: str,
    distance: Distance,
    centres: Plane,
    draw: Callable[[VideoShape, Plane], Distance],
    shape: VideoShape,
    scale: Scale,
) -> Probe:
    """A shape whose centres (F,2) are requested, and found by its outline."""
    template = _template(draw, shape, scale)
    return Probe(
        name,
        claim,
        shapes.picture(distance, shape.frames),
        centres,
        lambda clip: detect.find(detect.outlines(clip, scale.coarse), template) * scale.coarse,
        lambda found: float(np.median(np.hypot(*(found - centres).T))),
        scale.token / 2,
        distance,
        centres,
    )


def _template(draw: Callable[[VideoShape, Plane], Distance], shape: VideoShape, scale: Scale) -> detect.Outline:
    """The outline (h,w) of a shape alone in a small frame, as `detect.outlines` sees it."""
    short = min(shape.height, shape.width)
    alone = draw(shape, np.array([[shape.width / 2, shape.height / 2]]))
    outline = detect.outlines(shapes.picture(alone, 1), scale.coarse)[0]
    near = cv2.resize(alone(0), outline.shape[::-1], interpolation=cv2.INTER_AREA) < MARGIN * short
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
        "an upright line sweeps from left to right: median distance, pixels",
        shapes.picture(distance, shape.frames),
        columns,
        lambda clip: detect.find(detect.outlines(clip, scale.coarse), template)[:, 0] * scale.coarse,
        lambda found: float(np.median(np.abs(found - columns))),
        scale.token / 2,
        distance,
    )


def _ramp(shape: VideoShape) -> Probe:
    scene = shapes.ramp(shape)
    requested = np.array([detect.slope(scene)])
    return Probe(
        "ramp",
        "brightness rises evenly from left to right: slope off by this share",
        scene,
        requested,
        lambda clip: np.array([detect.slope(clip)]),
        lambda found: float(abs(found[0] / requested[0] - 1)),
        SLOPE_OFF,
    )


def _step(shape: VideoShape, scale: Scale) -> Probe:
    moment = (shape.frames - 1) // scale.frames // 2 * scale.frames + 1
    centre = np.array([0.3 * shape.width, 0.5 * shape.height])
    there = shapes.square(shape, np.repeat(centre[None], shape.frames, axis=0))
    nowhere = np.full((shape.height, shape.width), float(shape.width + shape.height))
    template = _template(shapes.square, shape, scale)

    def found(clip: Clip) -> Plane:
        series = detect.fit_at(detect.outlines(clip, scale.coarse), template, *(centre / scale.coarse))
        return np.array([float(detect.step_frame(series))])

    def distance(t: int) -> Plane:
        return there(t) if t >= moment else nowhere

    return Probe(
        "step",
        "a square appears at its moment: frames off",
        shapes.picture(distance, shape.frames),
        np.array([float(moment)]),
        found,
        lambda found: float(abs(found[0] - moment)),
        min(scale.frames / 2, shape.frames / 8),
        distance,
    )


def _hold(shape: VideoShape) -> Probe:
    still = np.ones((shape.frames, 1))
    centre = np.array([0.36 * shape.width, 0.44 * shape.height])
    beside = centre + 2.2 * SQUARE * min(shape.height, shape.width)
    square, dot = shapes.square(shape, still * centre), shapes.dot(shape, still * beside)

    def distance(t: int) -> Plane:
        return np.minimum(square(t), dot(t))

    return Probe(
        "hold",
        "what is told to rest rests: share of the luma's variance that is change",
        shapes.picture(distance, shape.frames),
        np.zeros(shape.frames),
        detect.unrest,
        lambda found: float(found.mean()),
        UNREST,
        distance,
    )


def track_by_flow(probe: Probe) -> Probe:
    """A moving signal for an adapter that paints whatever it likes and moves it: what lies where the track begins is
    followed by its optical flow."""
    assert probe.points is not None
    start = probe.points[0]
    reach = round(2 * DOT * min(probe.scene.shape[1:3]))
    return replace(probe, found=lambda clip: detect.follow(clip, start, reach))

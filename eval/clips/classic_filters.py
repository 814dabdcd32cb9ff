"""What a user gets without a model: the classic filters for a task, applied to the reference of a window.

A filter uses what a user has: the reference, the mask of an edit, and the settings of the task (the range of a blur,
but not the radius that was drawn for a clip). Its own settings are the same for all clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch

from eval.clips.deconvolution import Kernel, disk, gaussian, level_line, richardson_lucy, wiener
from eval.metrics import Clip, Mask
from iclora_train.config import Task
from iclora_train.media.frame_times import simultaneous_frames

INPAINTED_SIDE = 256  # pixels: a hole is filled in frames averaged down to this shorter side


@dataclass(frozen=True)
class Degraded:
    """A window as a filter sees it. clip: the reference at the size of the target (F,H,W,3). stored: as it was stored.
    region: the painted part of an edit."""

    clip: Clip
    stored: Clip
    region: Mask | None

    def at(self, frames: np.ndarray) -> Degraded:
        """The same window, restricted to some of its frames."""
        stored = self.stored[np.asarray(simultaneous_frames(len(self.clip), len(self.stored)))[frames]]
        return Degraded(self.clip[frames], stored, None if self.region is None else self.region[frames])


@dataclass(frozen=True)
class ClassicFilter:
    """A filter with its settings. name: unique within a task."""

    name: str
    apply: Callable[[Degraded], Clip]


def classic_filters(task: Task, device: torch.device) -> tuple[ClassicFilter, ...]:
    """The filters for a task; none where a filter cannot do the task (`without_filter` says why)."""
    if without_filter(task):
        return ()
    makers = list(makers_within(task.maker, task.maker_args))
    filters = [f for maker, settings in makers for f in FILTERS.get(maker, _unknown)(settings, device)]
    return tuple({f.name: f for f in filters or _unknown({}, device)}.values())


def without_filter(task: Task) -> str:
    """Why no filter can do a task; empty if there are filters."""
    if not task.has_reference:
        return "the task has no reference that a filter could repair"
    if task.family == "colorize":
        return "no filter without a model gives a grey clip its colours"
    if task.family == "structure":
        return "no filter without a model makes a picture from a control signal"
    if task.family == "edit" and task.maker not in FILTERS:
        return f"no filter without a model makes the edit of {task.maker}"
    return ""


def makers_within(maker: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A maker with its settings, or the makers that it chains or chooses from."""
    steps = [step for key in ("before", "steps", "after") for step in settings.get(key) or ()]
    if not maker.endswith((".chain", ".one_of")):
        yield maker, settings
    for step in steps:
        yield from makers_within(step["maker"], step.get("args") or {})


def _each_frame(change: Callable[[Clip], np.ndarray], window: Degraded) -> Clip:
    return np.stack([change(frame) for frame in window.clip]).astype(np.uint8)


def _deblurring(name: str, kernels: Mapping[str, Kernel], device: torch.device) -> list[ClassicFilter]:
    """Richardson-Lucy and Wiener with every kernel, and unsharp masking."""
    filters = []
    for size, kernel in kernels.items():
        for steps in (10, 30):
            restore = partial(richardson_lucy, kernel=kernel, steps=steps, device=device)
            filters.append(ClassicFilter(f"Richardson-Lucy, {name} {size}, {steps} steps", _of_clip(restore)))
        for noise in (0.01, 0.03):
            restore = partial(wiener, kernel=kernel, noise=noise, device=device)
            filters.append(ClassicFilter(f"Wiener, {name} {size}, noise {noise:g}", _of_clip(restore)))
    return [*filters, *_sharpening()]


def _of_clip(change: Callable[[Clip], Clip]) -> Callable[[Degraded], Clip]:
    return lambda window: change(window.clip)


def _ends_and_middle(settings: Mapping[str, Any], key: str, default: Sequence[float]) -> dict[str, float]:
    """The ends and the middle of a range of the task's settings, by their text."""
    low, high = (float(end) for end in settings.get(key, default))
    return {f"{value:.3g}": value for value in (low, (low + high) / 2, high)}


def _defocus(settings: Mapping[str, Any], device: torch.device) -> list[ClassicFilter]:
    radii = _ends_and_middle(settings, "radius", (3.0, 4.0))
    return _deblurring("disk", {text: disk(radius) for text, radius in radii.items()}, device)


def _gaussian(settings: Mapping[str, Any], device: torch.device) -> list[ClassicFilter]:
    sigmas = _ends_and_middle(settings, "sigma", (1.5, 2.5))
    return _deblurring("Gaussian", {text: gaussian(max(sigma, 0.3)) for text, sigma in sigmas.items()}, device)


def _motion(settings: Mapping[str, Any], device: torch.device) -> list[ClassicFilter]:
    """Every clip moves in its own direction: a level line, as of a panning camera, and a round kernel are tried."""
    lengths = _ends_and_middle(settings, "length", (6.0, 12.0))
    lines = _deblurring("line", {text: level_line(length) for text, length in lengths.items()}, device)
    return [*lines, *_deblurring("Gaussian", {"1": gaussian(1.0), "2": gaussian(2.0)}, device)]


def _sharpening() -> list[ClassicFilter]:
    def sharpened(frame: Clip, sigma: float, amount: float) -> np.ndarray:
        soft = cv2.GaussianBlur(frame, (0, 0), sigma)
        return cv2.addWeighted(frame, 1 + amount, soft, -amount, 0)

    return [
        ClassicFilter(
            f"unsharp mask, sigma {sigma:g}, amount {amount:g}",
            partial(_each_frame, partial(sharpened, sigma=sigma, amount=amount)),
        )
        for sigma, amount in ((1, 0.5), (1, 1), (2, 1), (2, 2))
    ]


def _smoothing(*strengths: int) -> list[ClassicFilter]:
    """Non-local means and bilateral filters; strengths: levels of noise."""

    def non_local_means(frame: Clip, h: int) -> np.ndarray:
        # The filter works in Lab, and OpenCV reads colours as B, G, R
        return cv2.fastNlMeansDenoisingColored(frame[..., ::-1].copy(), None, h, h, 7, 21)[..., ::-1]

    filters = []
    for h in strengths:
        clip_filter = partial(_each_frame, partial(non_local_means, h=h))
        filters.append(ClassicFilter(f"non-local means, h {h}", clip_filter))
        bilateral = partial(cv2.bilateralFilter, d=5, sigmaColor=3 * h, sigmaSpace=2)
        filters.append(ClassicFilter(f"bilateral, {3 * h} levels", partial(_each_frame, bilateral)))
    return filters


def _noise(settings: Mapping[str, Any], device: torch.device) -> list[ClassicFilter]:
    return _smoothing(3, 6, 10, 15)


def _codec(settings: Mapping[str, Any], device: torch.device) -> list[ClassicFilter]:
    return _smoothing(2, 4, 8)


def _enlarging(settings: Mapping[str, Any], device: torch.device) -> list[ClassicFilter]:
    """The input row is enlarged with a bicubic filter already."""

    def lanczos(window: Degraded) -> Clip:
        frames, height, width = window.clip.shape[:3]
        stored = window.stored[simultaneous_frames(frames, len(window.stored))]
        enlarged = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_LANCZOS4) for frame in stored]
        return np.stack(enlarged).astype(np.uint8)

    return [ClassicFilter("Lanczos", lanczos), *_sharpening()]


def _deinterlacing(settings: Mapping[str, Any], device: torch.device) -> list[ClassicFilter]:
    """One field, its missing lines averaged from their neighbours; or all lines blended."""

    def one_field(window: Degraded, first: int) -> Clip:
        clip = window.clip.copy()
        missing = np.arange(1 - first, clip.shape[1], 2)
        above, below = np.maximum(missing - 1, first), np.minimum(missing + 1, clip.shape[1] - 1)
        below = np.where((below - first) % 2 == 0, below, above)  # below the last line of the field is none
        clip[:, missing] = (clip[:, above].astype(np.uint16) + clip[:, below] + 1) // 2
        return clip

    def blended(frame: Clip) -> np.ndarray:
        return cv2.filter2D(frame, -1, np.array([[1], [2], [1]]) / 4, borderType=cv2.BORDER_REPLICATE)

    return [
        ClassicFilter("upper field, line average", partial(one_field, first=0)),
        ClassicFilter("lower field, line average", partial(one_field, first=1)),
        ClassicFilter("blend of lines", partial(_each_frame, blended)),
    ]


def _inpainting(settings: Mapping[str, Any], device: torch.device) -> list[ClassicFilter]:
    """The painted region from its surroundings, frame by frame."""

    def filled(window: Degraded, method: int) -> Clip:
        height, width = window.clip.shape[1:3]
        shrink = max(min(height, width) / INPAINTED_SIDE, 1.0)
        size = (round(width / shrink), round(height / shrink))
        region = np.zeros(window.clip.shape[:3], bool) if window.region is None else window.region
        frames = []
        for frame, hole in zip(window.clip, region, strict=True):
            # A pixel that a hole touches is filled too, or the colour of the hole would leak into it
            mask = (cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
            small = cv2.inpaint(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), mask, 3, method)
            frames.append(np.where(hole[..., None], cv2.resize(small, (width, height)), frame))
        return np.stack(frames).astype(np.uint8)

    return [
        ClassicFilter("inpainting, Telea", partial(filled, method=cv2.INPAINT_TELEA)),
        ClassicFilter("inpainting, Navier-Stokes", partial(filled, method=cv2.INPAINT_NS)),
    ]


def _none(settings: Mapping[str, Any], device: torch.device) -> list[ClassicFilter]:
    return []


def _unknown(settings: Mapping[str, Any], device: torch.device) -> list[ClassicFilter]:
    """For pairs from elsewhere: the loss is unknown, so sharpening and smoothing are tried."""
    return [*_sharpening(), *_smoothing(3, 8)]


FILTERS: dict[str, Callable[[Mapping[str, Any], torch.device], list[ClassicFilter]]] = {
    "degrade.defocus": _defocus,
    "degrade.gaussian": _gaussian,
    "degrade.motion": _motion,
    "degrade.exposure": _motion,
    "degrade.noise": _noise,
    "degrade.shot": _noise,
    "degrade.grain": _noise,
    "degrade.codec": _codec,
    "degrade.jpeg": _codec,
    "degrade.resize": _enlarging,
    "degrade.low_resolution": _enlarging,
    "degrade.interlace": _deinterlacing,
    "degrade.grey": _none,
    "edit.hole": _inpainting,
    "edit.outpaint": _inpainting,
}

"""Metrics measured by packages of their own: VMAF, SSIMULACRA2, FLIP and ColorVideoVDP. Their models are in the
packages. Each package is imported when its metric is chosen; `eval.metrics` in docs/evaluation.md lists them."""

from __future__ import annotations

import io
from collections.abc import Callable
from threading import Lock
from typing import Any

import cv2
import numpy as np
import torch

from eval.metrics.base import CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, framewise
from eval.metrics.picture import STUDIO_LUMA
from iclora_train.core.device import default_device

VMAF_SIDE = 17  # pixels: the fourth scale of its features is a filter of 3 pixels on an eighth of the picture
VMAF_FRAMES = 16  # frames per pass
SSIMULACRA2_SIDE = 225  # pixels: below, the six scales do not fit, and weights of other scales would be used
DISPLAY = "standard_4k"  # ColorVideoVDP's default: a 4K display of 30 inches at 0.75 m, 200 cd/m2


def vmaf(neg: bool) -> MetricGroup:
    """VMAF v0.6.1 of Netflix as computed by vmaf-torch, per frame, 0 to 100; `neg`: without credit for enhancement.

    On BT.601 studio luma rounded to 8 bits. The model was trained on 1080p video watched from three picture heights.
    """
    from vmaf_torch import VMAF  # noqa: PLC0415  (optional)

    model = VMAF(clip_score=True, NEG=neg).to(default_device()).eval()
    key, title = ("vmaf_neg", "VMAF NEG") if neg else ("vmaf", "VMAF")

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        return framewise(key, vmaf_of_frames(model, output.clip, truth.target))

    return MetricGroup((Metric(key, title, "", "high", "picture"),), measure, side=VMAF_SIDE)


@torch.inference_mode()
def vmaf_of_frames(model: Callable[..., Any], output: Clip, target: Clip, at_once: int = VMAF_FRAMES) -> np.ndarray:
    """VMAF (F,) of the frames of `output`. Passes overlap by a frame, because motion compares neighbours."""
    scores = []
    for start in range(0, len(output), at_once):
        first, last = max(start - 1, 0), min(start + at_once + 1, len(output))
        luma = [_studio_luma(clip[first:last]) for clip in (target, output)]
        scores.append(model(*luma)[start - first : start - first + at_once, 0].cpu().numpy())
    return np.concatenate(scores).astype(np.float64)


def _studio_luma(clip: Clip) -> torch.Tensor:
    """Luma (F,1,H,W), 16 to 235, as a file of 8 bits has it."""
    luma = np.rint(np.stack([frame @ STUDIO_LUMA for frame in clip]) + 16).astype(np.float32)
    return torch.from_numpy(luma)[:, None].to(default_device())


def ssimulacra2() -> MetricGroup:
    """SSIMULACRA 2 of Cloudinary, per frame: 100 is identical, 90 visually lossless, 70 high quality, below 0 bad."""
    from ssimulacra2 import compute_ssimulacra2  # noqa: PLC0415  (optional)

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        pairs = zip(truth.target, output.clip, strict=True)
        return framewise("ssimulacra2", [float(compute_ssimulacra2(_as_file(a), _as_file(b))) for a, b in pairs])

    return MetricGroup((Metric("ssimulacra2", "SSIMULACRA2", "", "high", "picture"),), measure, side=SSIMULACRA2_SIDE)


def _as_file(frame: Clip) -> io.BytesIO:
    """A frame as an uncompressed picture file in memory: the package reads files."""
    return io.BytesIO(cv2.imencode(".bmp", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes())


def flip() -> MetricGroup:
    """LDR-FLIP (Andersson et al. 2020), the mean error of a frame: 0 is identical, 1 the largest difference.

    The package's default viewing distance: 67 pixels per degree.
    """
    from flip_evaluator import evaluate  # noqa: PLC0415  (optional)

    def error(target: Clip, output: Clip) -> float:
        a, b = (np.ascontiguousarray(frame, np.float32) / 255 for frame in (target, output))
        return float(evaluate(a, b, "LDR", applyMagma=False, parameters={})[1])

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        return framewise("flip", [error(a, b) for a, b in zip(truth.target, output.clip, strict=True)])

    return MetricGroup((Metric("flip", "FLIP", "", "low", "picture"),), measure)


def cvvdp() -> MetricGroup:
    """ColorVideoVDP (Mantiuk et al. 2024), of the whole clip in JOD: 10 is identical, and 75 % see a step of 1."""
    import pycvvdp  # noqa: PLC0415  (optional)

    model = pycvvdp.cvvdp(display_name=DISPLAY, quiet=True, device=default_device())
    one_at_a_time = Lock()  # the model keeps buffers of the clip that it measures

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        with one_at_a_time, torch.no_grad():
            quality, _ = model.predict(output.clip, truth.target, dim_order="FHWC", frames_per_second=truth.fps)
        return Measurement({"cvvdp": float(quality)})

    return MetricGroup((Metric("cvvdp", "ColorVideoVDP", "JOD", "high", "picture"),), measure, frames=2)

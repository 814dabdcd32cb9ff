"""Colour metrics: chroma error, amount of colour, stability of colour over time, and preserved luma."""

from __future__ import annotations

import cv2
import numpy as np

from eval.metrics.base import CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, Values, framewise
from eval.metrics.picture import psnr_y

MIN_COLOURFULNESS = 1.0  # a target below this level counts as grey
CDC_STEPS = (1, 2, 4)  # distances in frames between two compared histograms


def chroma_error(output: Clip, target: Clip) -> Values:
    """Mean absolute error of BT.601 full-range Cb and Cr per frame (F,), in 8-bit levels."""

    def chroma(frame: Clip) -> Values:
        return cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb)[..., 1:].astype(np.float64)

    return np.array([np.abs(chroma(a) - chroma(b)).mean() for a, b in zip(output, target, strict=True)])


def colourfulness(clip: Clip) -> float:
    """Hasler and Suesstrunk 2003: sqrt(std_rg^2 + std_yb^2) + 0.3 sqrt(mean_rg^2 + mean_yb^2), rg = R - G,
    yb = (R + G) / 2 - B; mean over frames. 0 for grey, 30 to 80 for natural clips."""
    return float(np.mean([_colourfulness(frame) for frame in clip]))


def _colourfulness(frame: Clip) -> float:
    r, g, b = np.moveaxis(frame.astype(np.float64), -1, 0)
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def cdc(clip: Clip) -> float:
    """Colour distribution consistency (TCVC, Liu et al. 2021, arXiv 2110.04562): the Jensen-Shannon divergence (nats)
    of the 256-bin histograms of R, G and B of frames t and t + d, averaged over channels and t, then over those
    d = 1, 2, 4 that are shorter than the clip, which has at least two frames."""
    steps = [step for step in CDC_STEPS if step < len(clip)]
    counts = [
        [cv2.calcHist([frame], [channel], None, [256], [0, 256]).ravel() for channel in range(3)] for frame in clip
    ]
    share = np.array(counts, np.float64) / clip[0, ..., 0].size  # (F,3,256)
    return float(np.mean([_divergence(share[:-step], share[step:]).mean() for step in steps]))


def _divergence(p: Values, q: Values) -> Values:
    """Jensen-Shannon divergence of distributions (...,n), in nats."""
    mixture = (p + q) / 2

    def kl_to_mixture(part: Values) -> Values:
        ratio = np.divide(part, mixture, out=np.ones_like(part), where=part > 0)
        return np.asarray((part * np.log(ratio)).sum(-1))

    return np.asarray((kl_to_mixture(p) + kl_to_mixture(q)) / 2)


def _chroma_error(output: CachedClip, truth: GroundTruth) -> Measurement:
    return framewise("chroma_error", chroma_error(output.clip, truth.target))


def _colourfulness_of(output: CachedClip, truth: GroundTruth) -> Measurement:
    return Measurement({"colourfulness": colourfulness(output.clip)})


def _ratio(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Empty if the target is grey."""
    target = colourfulness(truth.target)
    return Measurement(
        {"colourfulness_ratio": colourfulness(output.clip) / target} if target >= MIN_COLOURFULNESS else {}
    )


def _luma(output: CachedClip, truth: GroundTruth) -> Measurement:
    return framewise("luma_psnr", psnr_y(output.clip, truth.cached_reference.clip))


def _cdc(output: CachedClip, truth: GroundTruth) -> Measurement:
    """The CDC of the output minus the CDC of the target."""
    return Measurement({"cdc": 1000 * (cdc(output.clip) - cdc(truth.target))})


CHROMA = MetricGroup((Metric("chroma_error", "chroma error", "levels", "low", "colour"),), _chroma_error)
COLOURFULNESS = MetricGroup((Metric("colourfulness", "colourfulness", "levels", None, "colour"),), _colourfulness_of)
RATIO = MetricGroup((Metric("colourfulness_ratio", "colourfulness / target's", "", None, "colour"),), _ratio)
LUMA = MetricGroup((Metric("luma_psnr", "luma PSNR to the reference", "dB", "high", "colour"),), _luma)
CDC = MetricGroup(
    (Metric("cdc", "colour change (CDC) beyond the target's, 1e-3", "", "low", "colour"),), _cdc, frames=2
)

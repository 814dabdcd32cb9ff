"""Colour: is it the right one, is there as much of it as there should be, does it hold still, and did luma survive?"""

from __future__ import annotations

import cv2
import numpy as np

from eval.metrics.base import CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, Values, framewise
from eval.metrics.picture import psnr_y

COLOURED = 1.0  # level of colourfulness under which a target counts as grey
CDC_STEPS = (1, 2, 4)  # frames between the two histograms that are compared


def chroma_error(output: Clip, target: Clip) -> Values:
    """Mean absolute error of BT.601 full-range Cb and Cr of each frame (F,), 8-bit levels. Grey against colour shows
    all that is lost."""

    def chroma(frame: Clip) -> Values:
        return cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb)[..., 1:].astype(np.float64)

    return np.array([np.abs(chroma(a) - chroma(b)).mean() for a, b in zip(output, target, strict=True)])


def colourfulness(clip: Clip) -> float:
    """Hasler and Suesstrunk 2003: sqrt(std_rg^2 + std_yb^2) + 0.3 sqrt(mean_rg^2 + mean_yb^2), rg = R - G,
    yb = (R + G) / 2 - B; mean over frames. 0 for grey, natural clips 30 to 80."""
    return float(np.mean([_colourfulness(frame) for frame in clip]))


def _colourfulness(frame: Clip) -> float:
    r, g, b = np.moveaxis(frame.astype(np.float64), -1, 0)
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def cdc(clip: Clip) -> float | None:
    """Colour distribution consistency (TCVC, Liu et al. 2021, arXiv 2110.04562): the Jensen-Shannon divergence (nats)
    of the 256-bin histograms of R, G and B of frames t and t + d, mean over channels and t, then over d = 1, 2, 4
    (those that the clip has; None for one frame)."""
    steps = [step for step in CDC_STEPS if step < len(clip)]
    if not steps:
        return None
    counts = [[cv2.calcHist([frame], [channel], None, [256], [0, 256])[:, 0] for channel in range(3)] for frame in clip]
    share = np.array(counts, np.float64) / clip[0, ..., 0].size  # (F,3,256)
    return float(np.mean([_divergence(share[:-step], share[step:]).mean() for step in steps]))


def _divergence(p: Values, q: Values) -> Values:
    """Jensen-Shannon divergence of distributions (...,n), in nats."""
    middle = (p + q) / 2

    def relative(part: Values) -> Values:
        ratio = np.divide(part, middle, out=np.ones_like(part), where=part > 0)
        return np.asarray((part * np.log(ratio)).sum(-1))

    return np.asarray((relative(p) + relative(q)) / 2)


def _chroma_error(output: CachedClip, truth: GroundTruth) -> Measurement:
    return framewise("chroma_error", chroma_error(output.clip, truth.target))


def _colourfulness_of(output: CachedClip, truth: GroundTruth) -> Measurement:
    return Measurement({"colourfulness": colourfulness(output.clip)})


def _ratio(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Nothing where the target is grey."""
    wanted = colourfulness(truth.target)
    return Measurement({"colourfulness_ratio": colourfulness(output.clip) / wanted} if wanted >= COLOURED else {})


def _luma(output: CachedClip, truth: GroundTruth) -> Measurement:
    return framewise("luma_psnr", psnr_y(output.clip, truth.reference))


def _cdc(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Paired: the target's own changes of colour are taken off. Nothing for a single frame."""
    made, wanted = cdc(output.clip), cdc(truth.target)
    return Measurement({} if made is None or wanted is None else {"cdc": 1000 * (made - wanted)})


CHROMA = MetricGroup((Metric("chroma_error", "chroma error", "levels", "low", "colour"),), _chroma_error)
COLOURFULNESS = MetricGroup((Metric("colourfulness", "colourfulness", "levels", None, "colour"),), _colourfulness_of)
RATIO = MetricGroup((Metric("colourfulness_ratio", "colourfulness / target's", "", None, "colour"),), _ratio)
LUMA = MetricGroup((Metric("luma_psnr", "luma PSNR to the reference", "dB", "high", "colour"),), _luma)
CDC = MetricGroup((Metric("cdc", "colour change (CDC) beyond the target's, 1e-3", "", "low", "colour"),), _cdc)

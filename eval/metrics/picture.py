"""Picture metrics: PSNR, SSIM, and sharpness, because PSNR and SSIM both reward blur."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from eval.metrics.base import CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, Values, framewise

PSNR_CAP = 100.0  # dB, the value of a frame without error
SSIM_WINDOW = 11
STUDIO_LUMA = np.array([65.481, 128.553, 24.966]) / 255  # of R, G, B in luma 16..235 (BT.601), without the 16


def decibel(mse: float) -> float:
    """10 log10(255^2 / mse), at most PSNR_CAP."""
    return float(10 * np.log10(255**2 / max(mse, 255**2 / 10 ** (PSNR_CAP / 10))))


def psnr(output: Clip, target: Clip) -> Values:
    """PSNR of each frame (F,) over R, G and B together, dB (torchmetrics), at most PSNR_CAP."""
    pairs = ((torch.from_numpy(a).double(), torch.from_numpy(b).double()) for a, b in zip(output, target, strict=True))
    return np.array([min(float(peak_signal_noise_ratio(a, b, data_range=255.0)), PSNR_CAP) for a, b in pairs])


def psnr_y(output: Clip, target: Clip) -> Values:
    """PSNR of each frame (F,) on BT.601 studio luma (16..235, not rounded, peak 255), dB: the Y-PSNR of the
    restoration literature."""
    pairs = zip(output, target, strict=True)
    return np.array([decibel(float(np.mean((a @ STUDIO_LUMA - b @ STUDIO_LUMA) ** 2))) for a, b in pairs])


def _blurred(plane: Values) -> Values:
    """Gaussian blur 11x11, sigma 1.5, without border: (H,W,3) -> (H-10,W-10,3)."""
    kernel = cv2.getGaussianKernel(SSIM_WINDOW, 1.5)
    edge = SSIM_WINDOW // 2
    return cv2.sepFilter2D(plane, -1, kernel, kernel)[edge:-edge, edge:-edge].astype(np.float64)


def ssim_map(first: Clip, second: Clip) -> Values:
    """SSIM map (H-10,W-10,3) of two frames (H,W,3) (Wang et al. 2004, eq. 13), without border.

    K = 0.01, 0.03, L = 255, Gaussian 11x11, sigma 1.5, channels separately. Raises ValueError for frames under 11
    pixels.
    """
    if min(first.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs frames of at least {SSIM_WINDOW} pixels, got {first.shape[:2]}")
    a, b = first.astype(np.float64), second.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return np.asarray(luminance * (2 * covariance + c2) / (var_a + var_b + c2))


def ssim(output: Clip, target: Clip) -> Values:
    """Mean SSIM of each frame (F,): the mean of `ssim_map` over positions and R, G, B."""
    return np.array([ssim_map(a, b).mean() for a, b in zip(output, target, strict=True)])


def sharpness(output: CachedClip, target: CachedClip) -> float:
    """Variance of the Laplacian of grey, output / target: below 1 is blurrier than the target, above 1 sharper.

    One squared level is added to both variances, so that flat clips give 1 instead of a division by 0.
    """

    def variance(clip: CachedClip) -> float:
        return float(np.mean([cv2.Laplacian(grey, cv2.CV_64F).var() for grey in clip.grey]))

    return (variance(output) + 1) / (variance(target) + 1)


def _psnr(output: CachedClip, truth: GroundTruth) -> Measurement:
    return framewise("psnr", psnr(output.clip, truth.target))


def _psnr_y(output: CachedClip, truth: GroundTruth) -> Measurement:
    return framewise("psnr_y", psnr_y(output.clip, truth.target))


def _ssim(output: CachedClip, truth: GroundTruth) -> Measurement:
    return framewise("ssim", ssim(output.clip, truth.target))


def _sharpness(output: CachedClip, truth: GroundTruth) -> Measurement:
    return Measurement({"sharpness": sharpness(output, truth.cached_target)})


PSNR = MetricGroup((Metric("psnr", "PSNR", "dB", "high", "picture"),), _psnr)
PSNR_Y = MetricGroup((Metric("psnr_y", "PSNR-Y", "dB", "high", "picture"),), _psnr_y)
SSIM = MetricGroup((Metric("ssim", "SSIM", "", "high", "picture"),), _ssim, side=SSIM_WINDOW)
SHARPNESS = MetricGroup((Metric("sharpness", "sharpness", "x target", None, "picture"),), _sharpness)

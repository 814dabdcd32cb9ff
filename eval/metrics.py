"""What an output clip is worth, as pure functions on uint8 RGB clips (F,H,W,3) of equal size.

Conventions, fixed so that figures can be compared: 8-bit values, no border cropped, a clip's value is the mean over
its frames (edges: counts pooled over its frames). `measure` puts all of them on one line.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Clip = NDArray[np.uint8]
Plane = NDArray[np.float64]

PSNR_CAP = 100.0  # dB, given to a frame without any error
CANNY = (100, 200)  # thresholds of ControlNet++ (arXiv 2404.07987)
_SSIM_WINDOW = 11
_STUDIO = np.array([65.481, 128.553, 24.966]) / 255  # Rec. ITU-R BT.601, luma in 16..235

# metric -> (unit, True when more is better; None when it has no good direction), in the order of the report
DIRECTIONS: dict[str, tuple[str, bool | None]] = {
    "psnr": ("dB", True),
    "psnr_y": ("dB", True),
    "ssim": ("", True),
    "edge_f1": ("", True),
    "edge_f1_strict": ("", True),
    "edge_f1_shuffled": ("", None),
    "edge_gap": ("", True),
    "chroma_error": ("levels", False),
    "colourfulness": ("levels", None),
    "sharpness": ("x target", None),
    "flicker": ("levels", False),
}


def measure(output: Clip, target: Clip, shuffled: Clip) -> dict[str, float]:
    """All metrics of `DIRECTIONS` for one clip. `shuffled` is the target of another source: the floor of edge F1."""
    matched, floor = edge_f1(output, target), edge_f1(output, shuffled)
    return {
        "psnr": psnr(output, target),
        "psnr_y": psnr_y(output, target),
        "ssim": ssim(output, target),
        "edge_f1": matched,
        "edge_f1_strict": edge_f1(output, target, tolerance=0),
        "edge_f1_shuffled": floor,
        "edge_gap": matched - floor,
        "chroma_error": chroma_error(output, target),
        "colourfulness": colourfulness(output),
        "sharpness": sharpness(output, target),
        "flicker": flicker(output, target),
    }


def _decibel(squared: Plane) -> float:
    """Mean over frames of 10 log10(255^2 / MSE), frames capped at PSNR_CAP; squared errors (F,...)."""
    mse = squared.reshape(len(squared), -1).mean(1)
    floor = 255**2 / 10 ** (PSNR_CAP / 10)
    return float(np.mean(10 * np.log10(255**2 / np.maximum(mse, floor))))


def psnr(output: Clip, target: Clip) -> float:
    """PSNR over R, G and B together, dB."""
    return _decibel((output.astype(np.float64) - target) ** 2)


def psnr_y(output: Clip, target: Clip) -> float:
    """PSNR of BT.601 studio luma (16..235, not rounded, peak 255), dB: the Y-PSNR of the restoration literature."""
    return _decibel((output @ _STUDIO - target @ _STUDIO) ** 2)


def _blurred(plane: Plane) -> Plane:
    """Gaussian window 11x11, sigma 1.5, only where it lies inside: (H,W) or (H,W,3) -> 10 smaller each way."""
    kernel = cv2.getGaussianKernel(_SSIM_WINDOW, 1.5)
    edge = _SSIM_WINDOW // 2
    return cv2.sepFilter2D(plane, -1, kernel, kernel)[edge:-edge, edge:-edge].astype(np.float64)


def ssim(output: Clip, target: Clip) -> float:
    """SSIM (Wang et al. 2004, eq. 13): K = 0.01, 0.03, L = 255, Gaussian 11x11, valid region, mean of R, G and B.

    ValueError for frames under 11 pixels.
    """
    if min(output.shape[1:3]) < _SSIM_WINDOW:
        raise ValueError(f"SSIM needs frames of at least {_SSIM_WINDOW} pixels, got {output.shape[1:3]}")
    return float(np.mean([_ssim_frame(a, b) for a, b in zip(output, target, strict=True)]))


def _ssim_frame(first: Clip, second: Clip) -> float:
    a, b = first.astype(np.float64), second.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float(np.mean(luminance * (2 * covariance + c2) / (var_a + var_b + c2)))


def _grey(clip: Clip) -> Clip:
    """BT.601 full-range luma of each frame, 8 bit: (F,H,W)."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]).astype(np.uint8)


def edges(clip: Clip) -> Clip:
    """Canny edges of each frame's grey, 0 or 1: (F,H,W)."""
    return np.stack([cv2.Canny(grey, *CANNY) for grey in _grey(clip)]).astype(np.uint8) // 255


def edge_f1(output: Clip, target: Clip, tolerance: int = 1) -> float:
    """F1 of canny edges; an edge pixel is found when one of the other clip lies within `tolerance` pixels of it.

    precision = share of output edges found in the target, recall = share of target edges found in the output, F1
    their harmonic mean; counts pooled over frames. 1 when neither clip has edges, 0 when only one has.
    """
    made, wanted = edges(output), edges(target)
    if not made.any() or not wanted.any():
        return float(not made.any() and not wanted.any())
    kernel = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)

    def found(of: Clip, among: Clip) -> float:
        near = np.stack([cv2.dilate(frame, kernel) for frame in among]).astype(np.uint8)
        return float((of & near).sum() / of.sum())

    precision, recall = found(made, wanted), found(wanted, made)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def chroma_error(output: Clip, target: Clip) -> float:
    """Mean absolute error of BT.601 full-range Cb and Cr, 8-bit levels. Grey against colour shows all that is lost."""

    def chroma(clip: Clip) -> Plane:
        return np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2YCrCb)[..., 1:] for f in clip]).astype(np.float64)

    return float(np.abs(chroma(output) - chroma(target)).mean())


def colourfulness(clip: Clip) -> float:
    """Hasler and Suesstrunk 2003: sqrt(std_rg^2 + std_yb^2) + 0.3 sqrt(mean_rg^2 + mean_yb^2), rg = R - G,
    yb = (R + G) / 2 - B. 0 for grey, natural clips 30 to 80."""
    r, g, b = np.moveaxis(clip.astype(np.float64).reshape(len(clip), -1, 3), -1, 0)  # (F,P) each
    opponents = np.stack([r - g, (r + g) / 2 - b])  # (2,F,P)
    spread = np.sqrt((opponents.std(2) ** 2).sum(0))
    offset = np.sqrt((opponents.mean(2) ** 2).sum(0))
    return float(np.mean(spread + 0.3 * offset))


def sharpness(output: Clip, target: Clip) -> float:
    """Variance of the Laplacian of grey, output over target: under 1 is blurrier than the target, over 1 sharper.

    One squared level is added to both, so that flat clips give 1 and not a division by 0.
    """

    def variance(clip: Clip) -> float:
        return float(np.mean([cv2.Laplacian(grey, cv2.CV_64F).var() for grey in _grey(clip)]))

    return (variance(output) + 1) / (variance(target) + 1)


def flicker(output: Clip, target: Clip) -> float:
    """Mean |d_{t-1} - 2 d_t + d_{t+1}|, d_t the mean luma of output frame t minus the target's, 8-bit levels.

    Paired: what the target's own light does cancels. 0 for clips of fewer than 3 frames.
    """
    drift = (_grey(output).astype(np.float64) - _grey(target)).mean((1, 2))  # (F,)
    return float(np.abs(np.diff(drift, n=2)).mean()) if len(drift) > 2 else 0.0


def change(first: Clip, second: Clip, columns: slice) -> float:
    """Mean absolute difference of two clips in some pixel columns, levels (normalised by the area looked at)."""
    return float(np.abs(first[:, :, columns].astype(np.float64) - second[:, :, columns]).mean())

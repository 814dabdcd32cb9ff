"""Deblurring without a network: Wiener's filter and Richardson-Lucy, with a kernel that is the same for every clip."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from eval.metrics import Clip

CHUNK = 8  # frames that are restored at once
Kernel = np.ndarray  # (k,k), k odd, sum 1


def disk(radius: float) -> Kernel:
    """The kernel of a lens out of focus: a disk, its edge smoothed over one pixel."""
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    weights = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return weights / weights.sum()


def gaussian(sigma: float) -> Kernel:
    """The kernel of a Gaussian blur, to three sigma."""
    row = cv2.getGaussianKernel(2 * int(np.ceil(3 * sigma)) + 1, sigma)
    return row @ row.T


def level_line(length: float) -> Kernel:
    """The kernel of a motion along a row, `length` pixels long."""
    reach = int(np.ceil((length - 1) / 2))
    weights = np.zeros((2 * reach + 1, 2 * reach + 1))
    weights[reach] = np.clip((length + 1) / 2 - np.abs(np.arange(-reach, reach + 1)), 0, 1)
    return weights / weights.sum()


def wiener(clip: Clip, kernel: Kernel, noise: float, device: torch.device) -> Clip:
    """Wiener's filter conj(K) / (|K|^2 + noise) on every frame. noise: assumed power of the noise over the signal's."""

    def restore(blurred: Tensor, transfer: Tensor) -> Tensor:
        inverse = transfer.conj() / (transfer.abs() ** 2 + noise)
        return _filtered(blurred, inverse)

    return _by_frame(clip, kernel, restore, device)


def richardson_lucy(clip: Clip, kernel: Kernel, steps: int, device: torch.device) -> Clip:
    """Richardson 1972 and Lucy 1974: u <- u * K^T(d / K(u)), from the blurred frame d; values stay positive."""

    def restore(blurred: Tensor, transfer: Tensor) -> Tensor:
        observed = blurred.clamp(min=1e-3)
        estimate = observed
        for _ in range(steps):
            ratio = observed / _filtered(estimate, transfer).clamp(min=1e-3)
            estimate = estimate * _filtered(ratio, transfer.conj()).clamp(min=0)
        return estimate

    return _by_frame(clip, kernel, restore, device)


def _filtered(picture: Tensor, transfer: Tensor) -> Tensor:
    """Pictures (N,3,H,W) multiplied by a transfer function (H,W//2+1) in the frequency domain."""
    return torch.fft.irfft2(torch.fft.rfft2(picture) * transfer, s=picture.shape[-2:])


def _by_frame(clip: Clip, kernel: Kernel, restore: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> Clip:
    """Apply `restore` to frames with mirrored margins, from pictures (N,3,H,W) in [0, 1] and the transfer function."""
    height, width = clip.shape[1:3]
    margin = min(2 * len(kernel), min(height, width) - 1)
    inner = slice(margin, margin + height), slice(margin, margin + width)
    transfer = _transfer(kernel, (height + 2 * margin, width + 2 * margin)).to(device)
    frames = []
    for chunk in torch.from_numpy(clip).split(CHUNK):
        pictures = pad(chunk.to(device).permute(0, 3, 1, 2) / 255, (margin,) * 4, mode="reflect")
        restored = restore(pictures, transfer)[..., *inner].permute(0, 2, 3, 1)
        frames.append(restored.mul(255).round().clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(frames).numpy()


def _transfer(kernel: Kernel, size: tuple[int, ...]) -> Tensor:
    """Transfer function (H,W//2+1) of a kernel whose middle is the origin; a kernel that is too large is wrapped."""
    spread = torch.zeros(size)
    reach = len(kernel) // 2
    for (row, column), weight in np.ndenumerate(kernel):
        spread[(row - reach) % size[0], (column - reach) % size[1]] += float(weight)
    return torch.fft.rfft2(spread)

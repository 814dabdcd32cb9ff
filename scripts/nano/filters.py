"""Image filters for generated clips: defocus and line art."""

import torch
import torch.nn.functional as F
from torch import Tensor


def defocus(video: Tensor, radius: Tensor) -> Tensor:
    """Disk blur of radius (n) px of video (n, 3, F, H, W)."""
    axis = torch.arange(-4, 5, device=video.device)
    disk = (radius.view(-1, 1, 1) + 0.5 - torch.hypot(axis[:, None].float(), axis.float())).clamp(0, 1)  # (n, 9, 9)
    kernel = (disk / disk.sum((1, 2), keepdim=True))[:, None]
    blurred = [F.conv2d(F.pad(clip.flatten(0, 1)[:, None], (4,) * 4, mode="reflect"), k[None])
               for clip, k in zip(video, kernel, strict=True)]  # fmt: skip
    return torch.stack(blurred).view_as(video) if blurred else video


def outlines(video: Tensor) -> Tensor:
    """White one-pixel contours on black of video (n, 3, F, H, W) in [0, 1]: the strong gradients, thinned."""
    grey = F.avg_pool3d(video.mean(1, keepdim=True), (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    dx = F.pad(grey[..., 2:] - grey[..., :-2], (1, 1))
    dy = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    gradient = torch.hypot(dx, dy)  # (n, 1, F, H, W)
    peak_x = gradient >= F.max_pool3d(gradient, (1, 1, 3), 1, (0, 0, 1))
    peak_y = gradient >= F.max_pool3d(gradient, (1, 3, 1), 1, (0, 1, 0))
    contour = torch.where(dx.abs() > dy.abs(), peak_x, peak_y) & (gradient > 0.12)
    return contour.to(video.dtype).expand_as(video).clone()

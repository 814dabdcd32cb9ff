"""Convert pixels between uint8, as in files, and [-1, 1], as in the VAE."""

from __future__ import annotations

from torch import Tensor


def from_uint8(clips: Tensor) -> Tensor:
    """uint8 (B,F,H,W,3) -> fp32 (B,3,F,H,W) in [-1, 1]."""
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_uint8(video: Tensor) -> Tensor:
    """(B,3,F,H,W) in [-1, 1] -> uint8 (B,F,H,W,3), rounded."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1)

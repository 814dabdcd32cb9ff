"""Rotary position embedding of LTX-2, type "split": a head's first and second half are rotated against each other.

Every channel pair of the *whole* width has one frequency (not one set per head), so the first heads see coarse
positions and the last heads fine ones.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=8)
def frequencies(theta: float, count: int, device: torch.device) -> Tensor:
    """`count` angular frequencies from pi/2 to theta pi/2, evenly spaced in log; computed in float64, kept fp32.

    Made once for each device: copying them there in every step would make the host wait for the device.
    """
    exponent = np.linspace(0.0, 1.0, count, dtype=np.float64)
    return torch.from_numpy(np.power(theta, exponent) * math.pi / 2).float().to(device)


def rotation(position: Tensor, width: int, heads: int, theta: float, max_position: tuple[float, ...]) -> Tensor:
    """cos and sin for tokens at `position` (B,A,N,2) [start, end) on A axes: fp32 (2,B,N,heads,width/heads/2).

    A token stands at the middle of its interval, as a fraction of `max_position` mapped to [-1, 1]. Channel pairs
    left over when width/2 is not a multiple of A come first and are not rotated.
    """
    axes = position.shape[1]
    middle = position.float().mean(-1)  # (B,A,N)
    longest = torch.stack([torch.full_like(middle[0, 0, :1], extent) for extent in max_position])  # (A,1)
    fraction = middle / longest * 2 - 1
    omega = frequencies(theta, width // (2 * axes), position.device)
    angle = (fraction[..., None] * omega).permute(0, 2, 3, 1).flatten(2)  # (B,N,freq*A), axes fastest
    angle = torch.nn.functional.pad(angle, (width // 2 - angle.shape[-1], 0))  # angle 0 does not rotate
    angle = angle.unflatten(-1, (heads, -1))  # (B,N,heads,width/heads/2)
    return torch.stack([angle.cos(), angle.sin()])


class RotationCache:
    """The rotations of the last few positions, which are known by their tensor: the same one has the same rotation.

    Steps of a sampling, and training steps on clips of one shape (`step.lay_out`), share a tensor of positions.
    """

    def __init__(self, limit: int = 4) -> None:
        self.limit = limit
        self.known: list[tuple[Tensor, Tensor]] = []  # positions, rotation

    def of(
        self,
        position: Tensor,
        width: int,
        heads: int,
        theta: float,
        max_position: tuple[float, ...],
        dtype: torch.dtype,
    ) -> Tensor:
        """`rotation` of the positions, in `dtype`."""
        for seen, table in self.known:
            if seen is position and table.dtype == dtype:
                return table
        with torch.inference_mode(False):  # it may be needed for gradients later on
            made = rotation(position, width, heads, theta, max_position).to(dtype)
        self.known = [*self.known[1 - self.limit :], (position, made)]
        return made


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate x (B,N,heads,head_dim) by `rope` (2,B,N,heads,head_dim/2).

    Each half times cos plus the other half times -sin or sin: no part is put together in memory, so a compiler can read
    both halves where it needs them, forwards and backwards.
    """
    cos, sin = rope[..., None, :].unbind(0)  # (B,N,heads,1,head_dim/2)
    halves = x.unflatten(-1, (2, -1))
    sign = 2 * torch.arange(2, device=x.device, dtype=x.dtype)[:, None] - 1  # -1 for the first half, 1 for the second
    return (halves * cos + halves.flip(-2) * (sin * sign)).flatten(-2)

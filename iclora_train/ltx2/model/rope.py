"""Rotary position embedding (RoPE) of LTX-2, type "split": channel i of a head's first half pairs with i of the second.

The frequencies run over the channel pairs of the *whole* width, not of each head. The first heads therefore get coarse
positions, the last heads fine ones.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=8)
def frequencies(theta: float, count: int, device: torch.device) -> Tensor:
    """`count` angular frequencies from pi/2 to theta pi/2, evenly spaced in log; computed in float64, returned in fp32.

    Cached per device: a copy to the device in every step would make the host wait for it.
    """
    exponent = np.linspace(0.0, 1.0, count, dtype=np.float64)
    return torch.from_numpy(np.power(theta, exponent) * math.pi / 2).float().to(device)


def rope_table(position: Tensor, width: int, heads: int, theta: float, max_position: tuple[float, ...]) -> Tensor:
    """cos and sin for tokens at `position` (B,A,N,2) [start, end) on A axes: fp32 (2,B,N,heads,head_dim/2).

    A token's coordinate is the middle of its interval as a fraction of `max_position`, mapped to [-1, 1]. If width/2 is
    not a multiple of A, the remaining channel pairs come first and are not rotated.
    """
    axes = position.shape[1]
    middle = position.float().mean(-1)  # (B,A,N)
    extent = torch.stack([torch.full_like(middle[0, 0, :1], size) for size in max_position])  # (A,1)
    fraction = middle / extent * 2 - 1
    omega = frequencies(theta, width // (2 * axes), position.device)
    angle = (fraction[..., None] * omega).permute(0, 2, 3, 1).flatten(2)  # (B,N,freq*A), axes fastest
    angle = torch.nn.functional.pad(angle, (width // 2 - angle.shape[-1], 0))  # angle 0 does not rotate
    angle = angle.unflatten(-1, (heads, -1))  # (B,N,heads,head_dim/2)
    return torch.stack([angle.cos(), angle.sin()])


class RopeCache:
    """`rope_table` of the last few position tensors, keyed by tensor identity.

    All sampling steps of a clip share one position tensor, and so do training steps on clips of one shape
    (`training_inputs.build_tokens`).
    """

    def __init__(self, limit: int = 4) -> None:
        self.limit = limit
        self.entries: list[tuple[Tensor, Tensor]] = []  # (positions, table), oldest first

    def get(
        self,
        position: Tensor,
        width: int,
        heads: int,
        theta: float,
        max_position: tuple[float, ...],
        dtype: torch.dtype,
        axes: int | None = None,
    ) -> Tensor:
        """`rope_table` of the positions, in `dtype`. axes: of the first axes only; a cache serves one value of it."""
        for cached_position, table in self.entries:
            if cached_position is position and table.dtype == dtype:
                return table
        with torch.inference_mode(False):  # a later training step may save the table for its backward pass
            table = rope_table(position[:, :axes], width, heads, theta, max_position).to(dtype)
        self.entries = [*self.entries[1 - self.limit :], (position, table)]
        return table


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate x (B,N,heads,head_dim) by `rope` (2,B,N,heads,head_dim/2).

    out = x * cos + flip(x) * [-sin, sin], where flip swaps the halves of a head. This form concatenates nothing in
    memory, so the compiler can fuse it in both passes.
    """
    cos, sin = rope[..., None, :].unbind(0)  # (B,N,heads,1,head_dim/2)
    halves = x.unflatten(-1, (2, -1))
    sign = 2 * torch.arange(2, device=x.device, dtype=x.dtype)[:, None] - 1  # -1 for the first half, 1 for the second
    return (halves * cos + halves.flip(-2) * (sin * sign)).flatten(-2)

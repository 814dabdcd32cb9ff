"""Where the Triton kernels apply: device, dtype, LoRA ranks, tile sizes."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

TRITON = importlib.util.find_spec("triton") is not None  # as where torch is built for CUDA; kernels of our own need it


RANKS = (16, 32, 64)  # of adapters, that kernels of our own take


def takes(x: Tensor) -> bool:
    """Whether kernels of our own for adapted linears take tensors like x."""
    return TRITON and x.is_cuda and x.dtype == torch.bfloat16


def power_of_two(count: int) -> bool:
    """Whether a tile of a kernel of our own may have so many rows or channels."""
    return count & (count - 1) == 0

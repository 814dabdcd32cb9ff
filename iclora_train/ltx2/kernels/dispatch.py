"""Where the Triton kernels apply: device, dtype, LoRA ranks, tile sizes."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None  # it comes with PyTorch's CUDA builds
LORA_RANKS = (16, 32, 64)  # the ranks that the kernels are written for


def supports_triton(x: Tensor) -> bool:
    """Whether the Triton kernels for linears with LoRA take tensors with x's device and dtype."""
    return HAS_TRITON and x.is_cuda and x.dtype == torch.bfloat16


def is_power_of_two(count: int) -> bool:
    """Whether a Triton tile may have `count` rows or channels."""
    return count & (count - 1) == 0

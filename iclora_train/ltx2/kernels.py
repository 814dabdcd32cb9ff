"""PyTorch's fused attention kernels with their log-sum-exp: forward and backward of one block of queries and keys."""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol

import torch
from torch import Tensor

_ops = torch.ops.aten
TRITON = importlib.util.find_spec("triton") is not None  # as where torch is built for CUDA; kernels of our own need it


class Kernel(Protocol):
    """softmax(q k^T / sqrt(head_dim) + bias) v; q (B,heads,n,D), k and v (B,heads,m,D), bias (B,heads,n,m) or None."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        """Output, log-sum-exp (B,heads,n) fp32, and what `backward` wants to have back."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, bias: Tensor | None, seed: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k, v, where exp(logits - total) is the share of a key, and `out` what the shares made."""


class OnCPU:
    """PyTorch's blocked FlashAttention for CPUs."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        out, total = _ops._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
        return out, total, None

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, bias: Tensor | None, seed: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = _ops._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, total, 0.0, False, attn_mask=bias
        )
        return found


class CuDNN:
    """The fastest on Hopper; half precision only."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        out, total, *rest = _ops._scaled_dot_product_cudnn_attention(q, k, v, bias, True)
        return out, total.squeeze(-1), rest

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, bias: Tensor | None, seed: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        from_q, from_k, most_q, most_k, philox, offset, _ = seed
        found: tuple[Tensor, Tensor, Tensor] = _ops._scaled_dot_product_cudnn_attention_backward(
            grad, q, k, v, out, total[..., None].contiguous(), philox, offset, bias, from_q, from_k, most_q, most_k,
            0.0, False,
        )  # fmt: skip
        return found


class MemoryEfficient:
    """xFormers' kernel: any precision, any GPU."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        out, total, *rest = _ops._scaled_dot_product_efficient_attention(q, k, v, bias, True)
        return out, total[..., : q.shape[2]], rest  # it pads the queries to a multiple of 32

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, bias: Tensor | None, seed: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        padded = torch.nn.functional.pad(total, (0, -total.shape[-1] % 32), value=torch.inf)
        found: tuple[Tensor, Tensor, Tensor, Tensor] = _ops._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, bias, out, padded.contiguous(), *seed, 0.0, (True, True, True, False)
        )
        return found[:3]


def kernel_for(q: Tensor) -> Kernel:
    """The kernel for tensors like q."""
    if q.device.type == "cpu":
        return OnCPU()
    half = q.dtype in (torch.bfloat16, torch.float16)
    if half and torch.backends.cudnn.is_available() and torch.cuda.get_device_capability(q.device) >= (8, 0):
        return CuDNN()
    return MemoryEfficient()

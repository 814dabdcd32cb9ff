"""Fused attention kernels with their log-sum-exp: forward and backward of one block of queries and keys."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.flash_attention import Flash, has_flash

_ops = torch.ops.aten
_ALIGNED = 8  # elements; 16 bytes in half precision


class Kernel(Protocol):
    """softmax(q k^T / sqrt(head_dim) + bias) v; q (B,heads,n,D), k and v (B,heads,m,D), bias of keys
    (B,1,1,m) fp32, or None."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        """Output, log-sum-exp (B,heads,n) fp32, and what `backward` wants to have back."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, bias: Tensor | None, seed: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k, v, where exp(logits - total) is the share of a key, and `out` what the shares made."""


class OnCPU:
    """PyTorch's blocked FlashAttention for CPUs."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        out, total = _ops._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=_spread(bias, q))
        return out, total, None

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, bias: Tensor | None, seed: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = _ops._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, total, 0.0, False, attn_mask=_spread(bias, q)
        )
        return found


class CuDNN:
    """The fastest of PyTorch's own on Hopper; half precision only."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        out, total, *rest = _ops._scaled_dot_product_cudnn_attention(q, k, v, _spread(bias, q), True)
        return out, total.squeeze(-1), rest

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, bias: Tensor | None, seed: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        from_q, from_k, most_q, most_k, philox, offset, _ = seed
        found: tuple[Tensor, Tensor, Tensor] = _ops._scaled_dot_product_cudnn_attention_backward(
            grad, q, k, v, out, total[..., None].contiguous(), philox, offset, _spread(bias, q), from_q, from_k, most_q,
            most_k, 0.0, False,
        )  # fmt: skip
        return found


class MemoryEfficient:
    """xFormers' kernel: any precision, any GPU."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        out, total, *rest = _ops._scaled_dot_product_efficient_attention(q, k, v, _spread(bias, q), True)
        return out, total[..., : q.shape[2]], rest  # it pads the queries to a multiple of 32

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, bias: Tensor | None, seed: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        padded = torch.nn.functional.pad(total, (0, -total.shape[-1] % 32), value=torch.inf)
        found: tuple[Tensor, Tensor, Tensor, Tensor] = _ops._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, _spread(bias, q), out, padded.contiguous(), *seed, 0.0, (True, True, True, False)
        )
        return found[:3]


def _spread(bias: Tensor | None, q: Tensor) -> Tensor | None:
    """(B,heads,n,m) with memory for one row only, in q's precision, aligned as the kernels want it."""
    if bias is None:
        return None
    count = bias.shape[-1]
    padded = torch.nn.functional.pad(bias.to(q.dtype), (0, -count % _ALIGNED))
    return padded[..., :count].expand(len(q), q.shape[1], q.shape[2], -1)


def kernel_for(q: Tensor) -> Kernel:
    """The kernel for tensors like q."""
    if q.device.type == "cpu":
        return OnCPU()
    if has_flash(q):
        return Flash()
    half = q.dtype in (torch.bfloat16, torch.float16)
    if half and torch.backends.cudnn.is_available() and torch.cuda.get_device_capability(q.device) >= (8, 0):
        return CuDNN()
    return MemoryEfficient()

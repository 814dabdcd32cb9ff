"""The attention backends, and the one place that chooses among them.

A backend computes softmax(q k^T / sqrt(head_dim) + bias) v in two forms. `attend` is plain attention. `forward` and
`backward` also exchange the log-sum-exp (LSE) of the logits of each query, so that attention over several blocks of
keys can be merged (`merge_attention`, `model.weighted_attention`).

To add a backend, write a class with the interface of `AttentionBackend` and put an instance into `BACKENDS`, before
the backends that it should replace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from iclora_train.ltx2.kernels import flash_attention as flash

if TYPE_CHECKING:
    from torch._ops import OpOverload

_ops = torch.ops.aten
_ALIGNMENT = 8  # elements; 16 bytes in half precision


class AttentionBackend(Protocol):
    """Attention of q (B,heads,n,D) to k and v (B,heads,m,D), with a bias of the keys (B,1,1,m) in fp32, or None."""

    @property
    def saved_ops(self) -> frozenset[OpOverload]:
        """The operators that `attend` may call. torch.compile must save their outputs for the backward pass rather
        than recompute them (`runtime.save_policy`)."""

    def supports(self, q: Tensor) -> bool:
        """Whether the backend computes attention of queries with q's device, dtype and head_dim."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Plain attention without a bias, differentiable."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        """The output, the LSE (B,heads,n) in fp32, and a state that `backward` needs."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, state: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k, v. The attention probabilities are exp(logits - lse); `out` is the output of the whole
        softmax. Both may come from a merge with other blocks of keys."""


class TorchBackend:
    """Plain attention by `scaled_dot_product_attention`, inside which PyTorch chooses the kernel."""

    saved_ops = frozenset({
        _ops._scaled_dot_product_cudnn_attention.default,
        _ops._scaled_dot_product_flash_attention.default,
        _ops._scaled_dot_product_efficient_attention.default,
        _ops._scaled_dot_product_flash_attention_for_cpu.default,
    })  # fmt: skip

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class CpuBackend(TorchBackend):
    """PyTorch's blocked FlashAttention for CPUs."""

    def supports(self, q: Tensor) -> bool:
        return q.device.type == "cpu"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        out, lse = _ops._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=_expand_bias(bias, q))
        return out, lse, None

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, state: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads: tuple[Tensor, Tensor, Tensor] = _ops._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, False, attn_mask=_expand_bias(bias, q)
        )
        return grads


class CudnnBackend(TorchBackend):
    """cuDNN's attention: the fastest of PyTorch's kernels on Hopper; half precision only, Ampere and newer."""

    def supports(self, q: Tensor) -> bool:
        half = q.dtype in (torch.bfloat16, torch.float16)
        return half and q.device.type == "cuda" and _has_cudnn_attention(q.device.index)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        out, lse, *state = _ops._scaled_dot_product_cudnn_attention(q, k, v, _expand_bias(bias, q), True)
        return out, lse.squeeze(-1), state

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, state: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        cum_seq_q, cum_seq_k, max_q, max_k, philox_seed, philox_offset, _ = state
        grad, out = _with_strides_of(q, grad), _with_strides_of(q, out)
        grads: tuple[Tensor, Tensor, Tensor] = _ops._scaled_dot_product_cudnn_attention_backward(
            grad, q, k, v, out, lse[..., None].contiguous(), philox_seed, philox_offset, _expand_bias(bias, q),
            cum_seq_q, cum_seq_k, max_q, max_k, 0.0, False,
        )  # fmt: skip
        return grads


class EfficientBackend(TorchBackend):
    """xFormers' memory-efficient attention: any precision, any GPU."""

    def supports(self, q: Tensor) -> bool:
        return True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        out, lse, *state = _ops._scaled_dot_product_efficient_attention(q, k, v, _expand_bias(bias, q), True)
        return out, lse[..., : q.shape[2]], state  # the kernel pads the queries to a multiple of 32

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, state: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        padded = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf)
        grads: tuple[Tensor, Tensor, Tensor, Tensor] = _ops._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, _expand_bias(bias, q), out, padded.contiguous(), *state, 0.0, (True, True, True, False)
        )
        return grads[:3]


@torch.compiler.assume_constant_result
def _has_cudnn_attention(device: int | None) -> bool:
    return torch.backends.cudnn.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def _with_strides_of(q: Tensor, tensor: Tensor) -> Tensor:
    """The values of a tensor of q's shape in a tensor of q's strides.

    PyTorch keeps a cuDNN graph for every shape and stride of q, k and v. The graph also holds the strides of the output
    and of its gradient in its first call, and reads those of later calls by them, beyond their memory if need be.
    """
    if tensor.stride() == q.stride():
        return tensor
    return torch.empty_strided(q.shape, q.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _expand_bias(bias: Tensor | None, q: Tensor) -> Tensor | None:
    """The bias in q's dtype as (B,heads,n,m), a stride-0 view of one row whose memory is aligned for the kernels."""
    if bias is None:
        return None
    keys = bias.shape[-1]
    padded = torch.nn.functional.pad(bias.to(q.dtype), (0, -keys % _ALIGNMENT))
    return padded[..., :keys].expand(len(q), q.shape[1], q.shape[2], -1)


# In order of preference (`backend_for`). The last one supports every tensor.
BACKENDS: tuple[AttentionBackend, ...] = (flash.FlashBackend(), CudnnBackend(), CpuBackend(), EfficientBackend())


def backend_for(q: Tensor) -> AttentionBackend:
    """The first of `BACKENDS` that supports q's device, dtype and head_dim."""
    for backend in BACKENDS:
        if backend.supports(q):
            return backend
    raise ValueError(f"no attention backend supports {q.dtype} on {q.device}")


def saved_ops() -> frozenset[OpOverload]:
    """The attention operators of all backends, whose outputs are saved rather than recomputed."""
    return frozenset().union(*(backend.saved_ops for backend in BACKENDS))


def attention_note(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """The line in which a run names its attention backend; None if FlashAttention 4 does not suit device and model."""
    if not flash.applies(device, dtype, head_dim):
        return None
    if flash.is_loadable():
        return f"attention: flash-attn-4 {flash.INSTALLED_VERSION}"
    return f"attention: PyTorch's; flash-attn-4 is faster on this GPU: {flash.INSTALL}"

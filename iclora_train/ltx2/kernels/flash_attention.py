"""FlashAttention for Hopper GPUs, where the package flash-attn-4 is installed: the one door to it.

Its kernels (Shah et al., arXiv 2407.08608, made anew in CuTe) are faster there than cuDNN's, which PyTorch chooses
(docs/log/measurements.md). They know no bias, but a bias of keys is a product with channels of its own.
"""

from __future__ import annotations

import importlib
import math
import os
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from iclora_train.config import ConfigError

WIDTH = 128  # channels of a head; at 64, with a bias, 4.0.0b36 left rows of a gradient zero (333 queries, 1,024 keys)
HOPPER = (9, 0)  # the only ones it was tried on
_BIAS = 8  # channels for a bias: as few as keep rows aligned
_PIECES = 3  # numbers in half precision that an fp32 number is the sum of


def _installed() -> str:
    try:
        return version("flash-attn-4")
    except PackageNotFoundError:
        return ""


INSTALLED = _installed()  # its version


def has_flash(q: Tensor) -> bool:
    """Whether tensors like q (B,heads,N,D) can be given to `flash_attention`."""
    return bool(INSTALLED) and _suits(q.device, q.dtype, q.shape[-1])


def attention_note(device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """What computes attention of heads of `width` channels, where there is a choice."""
    if not _suits(device, dtype, width):
        return None
    if INSTALLED:
        return f"attention: flash-attn-4 {INSTALLED}"
    return "attention: PyTorch's; on this GPU that of flash-attn-4 is faster: pip install 'iclora_train[flash]'"


def _suits(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    half = dtype in (torch.bfloat16, torch.float16)
    return half and width == WIDTH and device.type == "cuda" and _is_hopper(device.index)


@torch.compiler.assume_constant_result
def _is_hopper(device: int | None) -> bool:
    return torch.cuda.get_device_capability(device) == HOPPER


@cache
def _library() -> Any:
    """The package's own functions; what it compiles is kept on disk. ConfigError where it cannot be loaded."""
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    warnings.filterwarnings("ignore", "Argument aux_data", UserWarning)  # it says so of itself while compiling
    warnings.filterwarnings("ignore", "", DeprecationWarning, "flash_attn|quack|cutlass")  # of one another's names
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the same, while they are loaded
            return importlib.import_module("flash_attn.cute.interface")
    except ImportError as error:
        raise ConfigError(
            f"flash-attn-4 {INSTALLED} is installed, but cannot be loaded ({error}): uninstall it, or "
            "pip install 'iclora_train[flash]'"
        ) from error


def flash_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v for (B,heads,N,D); k and v may have another N, of which the bias (B,1,1,N) fp32
    is, to which no gradient goes."""
    out: Tensor = _Attention.apply(q, k, v, bias)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out, total, _ = Flash().forward(q, k, v, bias)
        ctx.save_for_backward(q, k, v, out, total, bias)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, total, bias = ctx.saved_tensors
        return *Flash().backward(grad, q, k, v, out, total, bias, None), None


class Flash:
    """A `kernels.Kernel`."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, None]:
        out, total = flash_forward(*_biased(q, k, bias), v, 1 / math.sqrt(q.shape[-1]))
        return out, total, None

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, bias: Tensor | None, seed: None
    ) -> tuple[Tensor, Tensor, Tensor]:
        width = q.shape[-1]
        of_q, of_k, of_v = flash_backward(grad, *_biased(q, k, bias), v, out, total, 1 / math.sqrt(width))
        return of_q[..., :width], of_k[..., :width], of_v


def _biased(q: Tensor, k: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """q and k with channels more, whose product is sqrt(D) times the bias (B,1,1,m) in fp32, to its last digit."""
    if bias is None:
        return q, k
    left, width = math.sqrt(q.shape[-1]) * bias.transpose(2, 3), q.shape[-1]  # (B,1,m,1)
    ones = torch.nn.functional.pad(q, (0, _BIAS))
    ones[..., width : width + _PIECES] = 1
    pieces = torch.nn.functional.pad(k, (0, _BIAS))
    for number in range(_PIECES):
        piece = left.to(k.dtype)
        pieces[..., width + number] = piece.squeeze(-1)
        left = left - piece.float()
    return ones, pieces


@torch.library.custom_op("iclora_train::flash_forward", mutates_args=())
def flash_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v (B,heads,n,D'), which lies token by token, and the log-sum-exps (B,heads,n) fp32."""
    tokens = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    out, total, *_ = _library()._flash_attn_fwd(*tokens, softmax_scale=scale, return_lse=True)
    return out.transpose(1, 2), total


@flash_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, n, _ = q.shape
    out = q.new_empty(batch, n, heads, v.shape[-1]).transpose(1, 2)
    return out, q.new_empty(batch, heads, n, dtype=torch.float32)


@torch.library.custom_op("iclora_train::flash_backward", mutates_args=())
def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, which lie token by token, where exp(scale q k^T - total) are the shares that made `out`."""
    tokens = [tensor.transpose(1, 2) for tensor in (q, k, v, out, grad)]
    of_q, of_k, of_v = (tensor.new_empty(tensor.shape) for tensor in tokens[:3])
    _library()._flash_attn_bwd(
        *tokens, total.contiguous(), softmax_scale=scale, dq=of_q, dk=of_k, dv=of_v,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return of_q.transpose(1, 2), of_k.transpose(1, 2), of_v.transpose(1, 2)


@flash_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    of_q, of_k, of_v = (t.new_empty(t.transpose(1, 2).shape).transpose(1, 2) for t in (q, k, v))
    return of_q, of_k, of_v

"""FlashAttention 4 for Hopper GPUs, from the package flash-attn-4: the only file that imports it.

On Hopper these kernels (Shah et al., arXiv 2407.08608, rewritten in CuTe) are faster than cuDNN's, which PyTorch uses
(docs/log/measurements.md). They do not take a bias. A bias of the keys is therefore written into extra channels of q
and k, whose product is the bias.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

HEAD_DIM = 128  # at 64, with a bias, 4.0.0b36 left rows of a gradient at zero (333 queries, 1,024 keys)
HOPPER = (9, 0)  # compute capability; no other was tested
PINNED = "4.0.0b36"  # the version in pyproject.toml, whose functions this file calls
INSTALL = "pip install 'iclora_train[flash]'"
FUNCTIONS = ("_flash_attn_fwd", "_flash_attn_bwd")
_BIAS_CHANNELS = 8  # extra channels for a bias: the fewest that keep rows aligned
_TERMS = 3  # half-precision numbers whose sum is an fp32 number


def _installed() -> str:
    try:
        return version("flash-attn-4")
    except PackageNotFoundError:
        return ""


INSTALLED_VERSION = _installed()  # "" without the package


def supports_flash(q: Tensor) -> bool:
    """Whether `flash_attention` takes tensors like q (B,heads,N,D)."""
    return bool(INSTALLED_VERSION) and applies(q.device, q.dtype, q.shape[-1]) and is_loadable()


def applies(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether device, dtype and head_dim suit FlashAttention 4, whether or not it is installed."""
    half = dtype in (torch.bfloat16, torch.float16)
    return half and head_dim == HEAD_DIM and device.type == "cuda" and _is_hopper(device.index)


@torch.compiler.assume_constant_result
def _is_hopper(device: int | None) -> bool:
    return torch.cuda.get_device_capability(device) == HOPPER


@torch.compiler.assume_constant_result
def is_loadable() -> bool:
    """Whether the package is installed and can be imported; the first failure is logged."""
    return bool(INSTALLED_VERSION) and _load() is not None


@cache
def _load() -> Any | None:
    """The package's module, which caches compiled kernels on disk. None, after a warning, if it cannot be used."""
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    warnings.filterwarnings("ignore", "Argument aux_data", UserWarning)  # the package's own call, while it compiles
    warnings.filterwarnings("ignore", "", DeprecationWarning, "flash_attn|quack|cutlass")  # from one another's names
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the same, during the import
            module = importlib.import_module("flash_attn.cute.interface")
        for name in FUNCTIONS:
            getattr(module, name)  # private functions, which another version may lack
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning(
            "flash-attn-4 %s is installed but cannot be loaded (%s); attention falls back to PyTorch's. "
            "To install version %s, which is known to work: %s",
            INSTALLED_VERSION, reason, PINNED, INSTALL,
        )  # fmt: skip
        return None
    return module


def flash_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v for q (B,heads,n,D), k and v (B,heads,m,D), bias of the keys (B,1,1,m) in fp32.

    The bias gets no gradient.
    """
    out: Tensor = _Attention.apply(q, k, v, bias)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out, lse, _ = FlashBackend().forward(q, k, v, bias)
        ctx.save_for_backward(q, k, v, out, lse, bias)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, bias = ctx.saved_tensors
        return *FlashBackend().backward(grad, q, k, v, out, lse, bias, None), None


def _append_bias(q: Tensor, k: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """q and k with extra channels, whose product is sqrt(D) times the bias (B,1,1,m), exact to fp32's last digit.

    Three of q's extra channels are 1. k's hold the bias as the sum of three half-precision numbers.
    """
    if bias is None:
        return q, k
    rest, head_dim = math.sqrt(q.shape[-1]) * bias.transpose(2, 3), q.shape[-1]  # (B,1,m,1)
    q_bias = torch.nn.functional.pad(q, (0, _BIAS_CHANNELS))
    q_bias[..., head_dim : head_dim + _TERMS] = 1
    k_bias = torch.nn.functional.pad(k, (0, _BIAS_CHANNELS))
    for i in range(_TERMS):
        term = rest.to(k.dtype)
        k_bias[..., head_dim + i] = term.squeeze(-1)
        rest = rest - term.float()
    return q_bias, k_bias


@torch.library.custom_op("iclora_train::flash_forward", mutates_args=())
def flash_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v (B,heads,n,D') and the LSE (B,heads,n) in fp32. The output's memory is (B,n,heads,D')."""
    by_token = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    out, lse, *_ = _module()._flash_attn_fwd(*by_token, softmax_scale=scale, return_lse=True)
    return out.transpose(1, 2), lse


@flash_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, n, _ = q.shape
    out = q.new_empty(batch, n, heads, v.shape[-1]).transpose(1, 2)
    return out, q.new_empty(batch, heads, n, dtype=torch.float32)


@torch.library.custom_op("iclora_train::flash_backward", mutates_args=())
def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, whose memory is (B,n,heads,D). The attention probabilities are exp(scale q k^T - lse)."""
    by_token = [tensor.transpose(1, 2) for tensor in (q, k, v, out, grad)]
    grad_q, grad_k, grad_v = (tensor.new_empty(tensor.shape) for tensor in by_token[:3])
    _module()._flash_attn_bwd(
        *by_token, lse.contiguous(), softmax_scale=scale, dq=grad_q, dk=grad_k, dv=grad_v,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return grad_q.transpose(1, 2), grad_k.transpose(1, 2), grad_v.transpose(1, 2)


@flash_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (t.new_empty(t.transpose(1, 2).shape).transpose(1, 2) for t in (q, k, v))
    return grad_q, grad_k, grad_v


def _module() -> Any:
    module = _load()
    if module is None:
        raise RuntimeError(f"flash-attn-4 cannot be loaded: {INSTALL}")
    return module


class FlashBackend:
    """FlashAttention 4 as an `attention_backends.AttentionBackend`."""

    saved_ops = frozenset({torch.ops.iclora_train.flash_forward.default})

    def supports(self, q: Tensor) -> bool:
        return supports_flash(q)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attention(q, k, v)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, None]:
        out, lse = flash_forward(*_append_bias(q, k, bias), v, 1 / math.sqrt(q.shape[-1]))
        return out, lse, None

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, state: None
    ) -> tuple[Tensor, Tensor, Tensor]:
        head_dim = q.shape[-1]
        grad_q, grad_k, grad_v = flash_backward(grad, *_append_bias(q, k, bias), v, out, lse, 1 / math.sqrt(head_dim))
        return grad_q[..., :head_dim], grad_k[..., :head_dim], grad_v

"""Merging two attention results on the same queries but different keys, by their log-sum-exps (LSE).

The same merge as in FlashAttention and ring attention. On a GPU one kernel reads and writes each number once and
computes in fp32. Both results are as large as the queries, so their memory traffic matters next to the attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.dispatch import HAS_TRITON

ROWS, WARPS = 32, 4  # a tile's rows (queries), and a program's warps


def merge_attention(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    """Merge other_out (B,heads,n,D) with other_lse (B,heads,n) fp32 into `out` and `lse`, in place."""
    if out.is_cuda and HAS_TRITON:
        _launch(out, lse, other_out, other_lse)
        return
    out.lerp_(other_out, torch.sigmoid(other_lse - lse)[..., None].to(out.dtype))
    lse.copy_(torch.logaddexp(lse, other_lse))


def _launch(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    import triton  # noqa: PLC0415 (absent without a GPU)

    from iclora_train.ltx2.kernels.merge_attention_triton import merge  # noqa: PLC0415

    batch, heads, n, head_dim = out.shape
    merge[(triton.cdiv(n, ROWS), heads, batch)](
        out, lse, other_out, other_lse, n,
        *out.stride(), *lse.stride(), *other_out.stride(), *other_lse.stride(),
        head_dim, triton.next_power_of_2(head_dim), ROWS, num_warps=WARPS,
    )  # fmt: skip

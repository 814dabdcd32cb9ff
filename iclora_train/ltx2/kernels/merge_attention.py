"""Two results of attention on the same queries but different keys, joined by their log-sum-exps.

On a GPU one kernel reads and writes each number once, in fp32 in between: the results are as large as the queries, and
what is done to them counts beside the attention itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.dispatch import TRITON

ROWS, WARPS = 32, 4  # of a program's tile


def merge_attention(out: Tensor, total: Tensor, more: Tensor, theirs: Tensor) -> None:
    """Takes `more` (B,heads,n,D) with log-sum-exps `theirs` (B,heads,n) fp32 into `out` and `total`, in place."""
    if out.is_cuda and TRITON:
        _launch(out, total, more, theirs)
        return
    out.lerp_(more, torch.sigmoid(theirs - total)[..., None].to(out.dtype))
    total.copy_(torch.logaddexp(total, theirs))


def _launch(out: Tensor, total: Tensor, more: Tensor, theirs: Tensor) -> None:
    import triton  # noqa: PLC0415 (not where there is no GPU)

    from iclora_train.ltx2.kernels.merge_attention_triton import joined  # noqa: PLC0415

    batch, heads, n, width = out.shape
    joined[(triton.cdiv(n, ROWS), heads, batch)](
        out, total, more, theirs, n,
        *out.stride(), *total.stride(), *more.stride(), *theirs.stride(),
        width, triton.next_power_of_2(width), ROWS, num_warps=WARPS,
    )  # fmt: skip

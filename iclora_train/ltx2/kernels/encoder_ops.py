"""The VAE encoder's operations between convolutions, one kernel each: tensors are channels-last, (B,F,H,W,C).

On a GPU the convolutions take most of the time, and each pass over a tensor beside them costs a few percent."""

from __future__ import annotations

import torch
from torch import Tensor

ELEMENTS = 4096  # of a tile
WARPS = 4
MAX_LEAD = 3  # frames before a chunk: two for a causal convolution, one for a downsampling in time


def norm_silu_pad(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, before: Tensor | None, lead: int, norm_eps: float | None
) -> tuple[Tensor, Tensor]:
    """The sum x + bias + residual, and the input of the next causal convolution.

    x, residual (B,F,H,W,C), contiguous; bias (C). The sum (B,F,H,W,C) is x itself if there is nothing to add.
    The input (B,lead+F,H,W,C) is silu(sum / rms over C) after `lead` frames: `before` (B,lead,H,W,C), or the first
    frame repeated. norm_eps: epsilon of the norm; None for the sum itself.
    """
    import triton  # noqa: PLC0415 (absent without a GPU)

    from iclora_train.ltx2.kernels.encoder_ops_triton import norm_silu_pad_kernel  # noqa: PLC0415

    batch, frames, height, width, channels = x.shape
    padded = x.new_empty(batch, lead + frames, height, width, channels)
    added = bias is not None or residual is not None
    total = torch.empty_like(x) if added else x
    tile = triton.next_power_of_2(channels)
    rows = max(ELEMENTS // tile, 1)
    count = batch * frames * height * width
    flags = (bias is not None, residual is not None, norm_eps is not None, before is None)
    norm_silu_pad_kernel[(triton.cdiv(count, rows),)](
        x, x if bias is None else bias, x if residual is None else residual, total, padded,
        count, frames * height * width, height * width, norm_eps or 0.0, *map(int, flags), lead,
        channels, tile, MAX_LEAD, rows, num_warps=WARPS,
    )  # fmt: skip
    if before is not None:
        padded[:, :lead] = before
    return total, padded


def space_to_depth(
    x: Tensor, bias: Tensor, shortcut: Tensor, skip: int, stride: tuple[int, int, int], group: int
) -> Tensor:
    """Space and time of x + bias to channels, plus the shortcut's, averaged over groups of channels.

    x (B,F,H,W,C) and bias (C) -> (B,F/t,H/h,W/w,C t h w). shortcut (B,skip+F,H,W,C') without its first `skip` frames
    has `group` times as many channels after the same rearrangement.
    """
    import triton  # noqa: PLC0415 (absent without a GPU)

    from iclora_train.ltx2.kernels.encoder_ops_triton import space_to_depth_kernel  # noqa: PLC0415

    batch, frames, height, width, channels = x.shape
    t, h, w = stride
    out = x.new_empty(batch, frames // t, height // h, width // w, channels * t * h * w)
    tile = triton.next_power_of_2(out.shape[-1])
    rows = max(ELEMENTS // tile, 1)
    count = out[..., 0].numel()
    space_to_depth_kernel[(triton.cdiv(count, rows),)](
        x, bias, shortcut, out, count, *out.shape[1:4], frames, skip + frames, skip,
        channels, shortcut.shape[-1], out.shape[-1], tile, t, h, w, group, rows, num_warps=WARPS,
    )  # fmt: skip
    return out

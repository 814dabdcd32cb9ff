"""3-D neighbourhood attention (each position attends to a window around it) in plain PyTorch and bounded memory.

The windows are NATTEN's (`na3d`): centred where possible and shifted inwards at the borders, so that all windows have
the same size. diffusers either needs NATTEN or builds one mask over all positions (N x N, gigabytes at real sizes)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = (4, 8, 8)  # queries that share one gathered block of keys, along (T, H, W)


def _plan(length: int, kernel: int, block: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: start of each block of queries (n), start of its keys (n), and which of these keys are in the
    window of each query (n, block, span). The last block is shifted inwards, so some queries may be computed twice."""
    block, span = min(block, length), min(block + kernel - 1, length)
    starts = torch.arange(0, length, block, device=device).clamp(max=length - block)  # (n)
    queries = starts[:, None] + torch.arange(block, device=device)  # (n, block)
    windows = (queries - kernel // 2).clamp(0, length - kernel)  # (n, block) first key of each query
    first = windows[:, 0].clamp(max=length - span)  # (n)
    keys = first[:, None, None] + torch.arange(span, device=device)  # (n, 1, span)
    return starts, first, (keys >= windows[..., None]) & (keys < windows[..., None] + kernel)


def neighborhood_attention(query: Tensor, key: Tensor, value: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    """(B, T, H, W, heads, D) each -> the same. The query is already scaled. Each axis must be at least its kernel."""
    grid = query.shape[1:4]
    assert all(length >= k for length, k in zip(grid, kernel, strict=True)), (grid, kernel)
    plans = [_plan(*axis, query.device) for axis in zip(grid, kernel, BLOCK, strict=True)]
    (t_starts, t_keys, t_mask), (h_starts, h_keys, h_mask), (w_starts, w_keys, w_mask) = plans
    block, spans = [mask.shape[1] for _, _, mask in plans], [mask.shape[2] for _, _, mask in plans]
    columns = w_starts[:, None] + torch.arange(block[2], device=query.device)  # (n, bw)
    key_columns = w_keys[:, None] + torch.arange(spans[2], device=query.device)  # (n, sw)
    out = torch.empty_like(value)
    rows = list(zip(h_starts.tolist(), h_keys.tolist(), h_mask, strict=True))
    for t, kt, mask_t in zip(t_starts.tolist(), t_keys.tolist(), t_mask, strict=True):
        for h, kh, mask_h in rows:
            mask = mask_t[None, :, None, None, :, None, None] & mask_h[None, None, :, None, None, :, None]
            mask = mask & w_mask[:, None, None, :, None, None, :]  # (n, bt, bh, bw, st, sh, sw)
            mask = mask.flatten(4).flatten(1, 3)[:, None]  # (n, 1, queries, keys)
            keys = (slice(kt, kt + spans[0]), slice(kh, kh + spans[1]))
            queries = (slice(t, t + block[0]), slice(h, h + block[1]))
            for clip in range(len(query)):
                attended = functional.scaled_dot_product_attention(
                    _gather(query[clip][queries], columns),
                    _gather(key[clip][keys], key_columns),
                    _gather(value[clip][keys], key_columns),
                    attn_mask=mask,
                    scale=1.0,
                )  # (n, heads, queries, D)
                attended = attended.transpose(1, 2).unflatten(1, tuple(block))  # (n, bt, bh, bw, heads, D)
                out[clip][queries][:, :, columns] = attended.permute(1, 2, 0, 3, 4, 5)
    return out


def _gather(rows: Tensor, columns: Tensor) -> Tensor:
    """Rows (t, h, W, heads, D) at the columns (n, w) of n blocks -> (n, heads, t h w, D)."""
    t, h, _, heads, width = rows.shape
    picked = rows[:, :, columns]  # (t, h, n, w, heads, D)
    return picked.permute(2, 4, 0, 1, 3, 5).reshape(len(columns), heads, t * h * columns.shape[1], width)


class NeighborhoodProcessor:
    """Attention processor of diffusers' LTX2VideoVaeNeighborhoodAttention that calls `neighborhood_attention`."""

    def __call__(self, attn: Any, hidden_states: Tensor, block_mask: None = None) -> Tensor:
        """(B, T, H, W, C) -> the same."""
        query, key, value = attn.project_qkv(hidden_states)
        attended = neighborhood_attention(query, key, value, attn.kernel_size)
        out: Tensor = attn.to_out[0](attended.flatten(4))
        return out

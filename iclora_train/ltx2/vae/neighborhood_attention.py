"""Attention of every position to a 3-D window around it, in plain PyTorch and bounded memory.

The windows are NATTEN's (`na3d`): centred where possible and shifted inwards at the borders, so that each holds as many
positions. diffusers builds one mask over all positions for it (N x N, gigabytes at real sizes) or fetches NATTEN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = (4, 8, 8)  # queries that share one gathered block of keys, along (T, H, W)


def _plan(length: int, kernel: int, block: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: where each block of queries begins (n), where its keys begin (n), and which of them each query
    sees (n, block, span). The last block is shifted inwards, so some queries may be computed twice."""
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
    (t_starts, t_keys, t_seen), (h_starts, h_keys, h_seen), (w_starts, w_keys, w_seen) = plans
    block, spans = [seen.shape[1] for _, _, seen in plans], [seen.shape[2] for _, _, seen in plans]
    columns = w_starts[:, None] + torch.arange(block[2], device=query.device)  # (n, bw)
    key_columns = w_keys[:, None] + torch.arange(spans[2], device=query.device)  # (n, sw)
    out = torch.empty_like(value)
    rows = list(zip(h_starts.tolist(), h_keys.tolist(), h_seen, strict=True))
    for t, kt, seen_t in zip(t_starts.tolist(), t_keys.tolist(), t_seen, strict=True):
        for h, kh, seen_h in rows:
            seen = seen_t[None, :, None, None, :, None, None] & seen_h[None, None, :, None, None, :, None]
            seen = seen & w_seen[:, None, None, :, None, None, :]  # (n, bt, bh, bw, st, sh, sw)
            mask = seen.flatten(4).flatten(1, 3)[:, None]  # (n, 1, queries, keys)
            keys = (slice(kt, kt + spans[0]), slice(kh, kh + spans[1]))
            place = (slice(t, t + block[0]), slice(h, h + block[1]))
            for clip in range(len(query)):
                part = functional.scaled_dot_product_attention(
                    _gather(query[clip][place], columns),
                    _gather(key[clip][keys], key_columns),
                    _gather(value[clip][keys], key_columns),
                    attn_mask=mask,
                    scale=1.0,
                )  # (n, heads, queries, D)
                part = part.transpose(1, 2).unflatten(1, tuple(block))  # (n, bt, bh, bw, heads, D)
                out[clip][place][:, :, columns] = part.permute(1, 2, 0, 3, 4, 5)
    return out


def _gather(rows: Tensor, columns: Tensor) -> Tensor:
    """(t, h, W, heads, D) and the columns of n blocks (n, w) -> (n, heads, t h w, D)."""
    t, h, _, heads, width = rows.shape
    picked = rows[:, :, columns]  # (t, h, n, w, heads, D)
    return picked.permute(2, 4, 0, 1, 3, 5).reshape(len(columns), heads, t * h * columns.shape[1], width)


class NeighborhoodProcessor:
    """The attention of diffusers' LTX2VideoVaeNeighborhoodAttention by `neighborhood_attention`."""

    def __call__(self, attn: Any, hidden_states: Tensor, block_mask: None = None) -> Tensor:
        """(B, T, H, W, C) -> the same."""
        query, key, value = attn.project_qkv(hidden_states)
        seen = neighborhood_attention(query, key, value, attn.kernel_size)
        out: Tensor = attn.to_out[0](seen.flatten(4))
        return out

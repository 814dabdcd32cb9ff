"""Self-attention in which references count with weights, exact and in O(N) memory.

A reference token j with weight w_j gets log(w_j) added to the logits of target->j and of j->target (ltx-core, ComfyUI).
That bias is constant along rows or columns of a few rectangles of the attention matrix, so each rectangle is computed
by a plain fused kernel, and the results are joined by their log-sum-exps, as attention over blocks of keys is (Rabe and
Staats, arXiv 2112.05682). A bias of a row only shifts its log-sum-exp; one of a key is a vector that the kernel adds.
Keys of weight 0 are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.attention_backends import AttentionBackend, backend_for
from iclora_train.ltx2.kernels.merge_attention import merge_attention

FEW = 8  # keys of one weight get a part of their own unless they are fewer than one in so many
BLOCKED = -1e3  # a logit that far under the others has probability exactly 0 in fp32


@dataclass(frozen=True)
class Rectangle:
    """A rectangle of the attention matrix: queries, keys, and what is added to its logits, in fp32."""

    rows: slice
    columns: slice | Tensor  # a run of keys, or their numbers (n,)
    row_bias: Tensor | None = None  # (B,1,rows)
    key_bias: Tensor | None = None  # (B,1,1,columns)

    def keys(self, x: Tensor) -> Tensor:
        """The part's keys of x (B,heads,N,D)."""
        return x[:, :, self.columns] if isinstance(self.columns, slice) else x.index_select(2, self.columns)


class AttentionBias:
    """Weights (B,N) of tokens in `group` (N,) as rectangles of the attention matrix.

    between="comfyui": references see one another fully. between="ltx": as soon as any weight is set, they do not.
    Made once per forward pass; on a GPU that waits for the weights.
    """

    def __init__(self, weight: Tensor, group: Tensor, between: str = "comfyui") -> None:
        if between not in ("comfyui", "ltx"):
            raise ValueError(f"between={between!r} is not one of comfyui, ltx")
        counts = torch.unique_consecutive(group, return_counts=True)[1].tolist()
        ends = torch.tensor(counts).cumsum(0).tolist()
        target, *references = (slice(end - count, end) for end, count in zip(ends, counts, strict=True))
        behind = slice(target.stop, ends[-1])
        log_weight = torch.where(weight > 0, weight.clamp(min=torch.finfo(torch.float32).tiny).log(), BLOCKED)
        log_weight = torch.where(group == 0, 0.0, log_weight.float())[:, None]  # (B,1,N)
        self.parts = [Rectangle(slice(0, ends[-1]), target, log_weight)]
        for reference in references:
            self.parts += _seen_by_target(target, reference, log_weight[..., reference])
        self.parts += [Rectangle(rows, rows) for rows in (references if between == "ltx" else [behind])]


def _seen_by_target(target: slice, reference: slice, log_weight: Tensor) -> list[Rectangle]:
    """Target queries on one reference (B,1,n): a part for the keys that weigh alike, one for the others, none for 0."""
    most = log_weight.amax(-1, keepdim=True)  # (B,1,1)
    alike = log_weight == most
    if bool(alike.all()):
        return [Rectangle(target, reference, most)] if bool((most > BLOCKED).any()) else []
    if len(log_weight) > 1:  # the clips of a batch have different masks
        return [Rectangle(target, reference, key_bias=log_weight[:, :, None])]
    there = log_weight > BLOCKED
    if FEW * int(alike.sum()) < int(there.sum()):
        alike = torch.zeros_like(alike)
    found = [Rectangle(target, _numbers(alike, reference), most)] if bool(alike.any()) else []
    others = there & ~alike
    if bool(others.any()):
        found.append(Rectangle(target, _numbers(others, reference), key_bias=log_weight[others][None, None, None]))
    return found


def _numbers(chosen: Tensor, run: slice) -> slice | Tensor:
    """Where `chosen` (1,1,n) holds, as numbers of tokens."""
    return run if bool(chosen.all()) else chosen.flatten().nonzero().flatten() + run.start


@torch.compiler.disable
def weighted_attention(q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) v for (B,heads,N,head_dim).

    Its kernels are as fast without a compiler, whose code would fit one mask only.
    """
    out: Tensor = _Weighted.apply(q, k, v, bias)
    return out


class _Weighted(torch.autograd.Function):
    """Backward of a part is the kernel's own, given the joined output and the joined log-sum-exp less the part's row
    bias: exp(logits - that) are its shares of the whole softmax (as in ring attention, arXiv 2310.01889)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias) -> Tensor:
        kernel = backend_for(q)
        first, *others = bias.parts
        out, total, seed = _forward(kernel, first, q, k, v)
        seeds = [seed]
        for part in others:
            more, theirs, seed = _forward(kernel, part, q, k, v)
            merge_attention(out[:, :, part.rows], total[:, :, part.rows], more, theirs)
            seeds.append(seed)
        ctx.save_for_backward(q, k, v, out, total)
        ctx.bias, ctx.seeds, ctx.kernel = bias, seeds, kernel
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, total = ctx.saved_tensors
        sums = [torch.zeros_like(t) for t in (q, k, v)]  # of two parts: added in fp32 and rounded once, all the same
        for part, seed in zip(ctx.bias.parts, ctx.seeds, strict=True):
            rows = [t[:, :, part.rows] for t in (grad, q, out, total)]
            shift = rows[3] if part.row_bias is None else rows[3] - part.row_bias
            found = ctx.kernel.backward(
                rows[0], rows[1], part.keys(k), part.keys(v), rows[2], shift, part.key_bias, seed
            )
            sums[0][:, :, part.rows] += found[0]
            for total_grad, piece in zip(sums[1:], found[1:], strict=True):
                if isinstance(part.columns, slice):
                    total_grad[:, :, part.columns] += piece
                else:
                    total_grad.index_add_(2, part.columns, piece)
        return sums[0], sums[1], sums[2], None


def _forward(kernel: AttentionBackend, part: Rectangle, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Any]:
    out, total, seed = kernel.forward(q[:, :, part.rows], part.keys(k), part.keys(v), part.key_bias)
    return out, total if part.row_bias is None else total + part.row_bias, seed

"""Self-attention with a weight for each reference token: exact, in O(N) memory.

A reference token j with weight w_j adds log(w_j) to the logits of target->j and of j->target (ltx-core, ComfyUI). This
bias is constant along the rows or the columns of a few rectangles of the attention matrix. Each rectangle is one call
of a fused attention kernel, and the outputs are merged by their log-sum-exp (LSE), as in attention over blocks of keys
(Rabe and Staats, arXiv 2112.05682). A bias per query only shifts the LSE. A bias per key is a vector that the kernel
adds to the logits. Keys of weight 0 are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.attention_backends import AttentionBackend, backend_for
from iclora_train.ltx2.kernels.merge_attention import merge_attention

# The keys of the largest weight get a rectangle without a key bias if they are at least 1 in 8 of the attended keys.
MIN_SHARE_INVERSE = 8
BLOCKED = -1e3  # a logit this far below the others has probability exactly 0 in fp32


@dataclass(frozen=True)
class Rectangle:
    """A rectangle of the attention matrix: its queries, its keys, and the fp32 bias on its logits."""

    queries: slice
    keys: slice | Tensor  # contiguous keys, or the indices (n,) of keys
    query_bias: Tensor | None = None  # (B,1,queries)
    key_bias: Tensor | None = None  # (B,1,1,keys)

    def select_keys(self, x: Tensor) -> Tensor:
        """The rectangle's keys of x (B,heads,N,D)."""
        return x[:, :, self.keys] if isinstance(self.keys, slice) else x.index_select(2, self.keys)


class AttentionBias:
    """Attention weights (B,N) of tokens in `group` (N,) as rectangles of the attention matrix.

    between="comfyui": references attend to each other. between="ltx": they do not, once any weight is set.
    absent (B,N) bool: references of weight 0 that a clip does not have; other references do not attend to them either,
    or they would reach the target through these. None: a clip has all of its references.
    Built once per forward pass. On a GPU this makes the host wait for the weights.
    """

    def __init__(self, weight: Tensor, group: Tensor, between: str = "comfyui", absent: Tensor | None = None) -> None:
        if between not in ("comfyui", "ltx"):
            raise ValueError(f"between={between!r} is not one of comfyui, ltx")
        counts = torch.unique_consecutive(group, return_counts=True)[1].tolist()
        ends = torch.tensor(counts).cumsum(0).tolist()
        target, *references = (slice(end - count, end) for end, count in zip(ends, counts, strict=True))
        all_references = slice(target.stop, ends[-1])
        log_weight = torch.where(weight > 0, weight.clamp(min=torch.finfo(torch.float32).tiny).log(), BLOCKED)
        log_weight = torch.where(group == 0, 0.0, log_weight.float())[:, None]  # (B,1,N)
        self.rectangles = [Rectangle(slice(0, ends[-1]), target, log_weight)]
        for reference in references:
            self.rectangles += _target_to_reference(target, reference, log_weight[..., reference])
        if between == "ltx":
            self.rectangles += [Rectangle(rows, rows) for rows in references]
        elif absent is None:
            self.rectangles.append(Rectangle(all_references, all_references))
        else:
            self.rectangles += _between_references(references, all_references, absent)


def _between_references(references: list[slice], all_references: slice, absent: Tensor) -> list[Rectangle]:
    """Each reference on itself and on those that its clip has; absent (B,N) bool."""
    rectangles = []
    for reference in references:
        blocked = absent[:, all_references].clone()
        blocked[:, reference.start - all_references.start : reference.stop - all_references.start] = False
        shared = blocked[:1]
        if bool((blocked == shared).all()):  # the same in every clip: no key needs a bias
            keys = (~shared[0]).nonzero().flatten() + all_references.start
            rectangles.append(Rectangle(reference, all_references if not bool(shared.any()) else keys))
        else:
            rectangles.append(Rectangle(reference, all_references, key_bias=(blocked * BLOCKED)[:, None, None]))
    return rectangles


def _target_to_reference(target: slice, reference: slice, log_weight: Tensor) -> list[Rectangle]:
    """Target queries on the keys of one reference, log_weight (B,1,n).

    One rectangle holds the keys of the largest weight, another one the remaining keys. Keys of weight 0 are in none.
    """
    largest = log_weight.amax(-1, keepdim=True)  # (B,1,1)
    is_largest = log_weight == largest
    if bool(is_largest.all()):
        return [Rectangle(target, reference, largest)] if bool((largest > BLOCKED).any()) else []
    if len(log_weight) > 1:  # the clips of a batch have different masks
        return [Rectangle(target, reference, key_bias=log_weight[:, :, None])]
    attended = log_weight > BLOCKED
    if MIN_SHARE_INVERSE * int(is_largest.sum()) < int(attended.sum()):
        is_largest = torch.zeros_like(is_largest)
    rectangles = [Rectangle(target, _indices(is_largest, reference), largest)] if bool(is_largest.any()) else []
    rest = attended & ~is_largest
    if bool(rest.any()):
        rectangles.append(Rectangle(target, _indices(rest, reference), key_bias=log_weight[rest][None, None, None]))
    return rectangles


def _indices(mask: Tensor, reference: slice) -> slice | Tensor:
    """The tokens of a reference for which `mask` (1,1,n) is true: its slice if these are all, else their indices."""
    return reference if bool(mask.all()) else mask.flatten().nonzero().flatten() + reference.start


@torch.compiler.disable
def weighted_attention(q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) v for (B,heads,N,head_dim).

    Not compiled: compilation would not make its kernels faster, and compiled code would fit only one mask.
    """
    out: Tensor = _WeightedAttention.apply(q, k, v, bias)
    return out


class _WeightedAttention(torch.autograd.Function):
    """Attention over all rectangles, merged by LSE.

    The backward pass of a rectangle is its kernel's backward, called with the merged output and with the merged LSE
    minus the rectangle's query bias: exp(logits - LSE) is then the share of a key in the whole softmax (as in ring
    attention, arXiv 2310.01889).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias) -> Tensor:
        backend = backend_for(q)
        first, *rest = bias.rectangles
        out, lse, state = _attend_rectangle(backend, first, q, k, v)
        states = [state]
        for rectangle in rest:
            next_out, next_lse, state = _attend_rectangle(backend, rectangle, q, k, v)
            merge_attention(out[:, :, rectangle.queries], lse[:, :, rectangle.queries], next_out, next_lse)
            states.append(state)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.bias, ctx.states, ctx.backend = bias, states, backend
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse = ctx.saved_tensors
        # In half precision too: `+=` adds in fp32 and rounds once, and a row is the sum of at most two rectangles.
        grad_q, grad_k, grad_v = (torch.zeros_like(t) for t in (q, k, v))
        for rectangle, state in zip(ctx.bias.rectangles, ctx.states, strict=True):
            grad_rows, q_rows, out_rows, lse_rows = (t[:, :, rectangle.queries] for t in (grad_out, q, out, lse))
            if rectangle.query_bias is not None:
                lse_rows = lse_rows - rectangle.query_bias
            dq, dk, dv = ctx.backend.backward(
                grad_rows, q_rows, rectangle.select_keys(k), rectangle.select_keys(v), out_rows, lse_rows,
                rectangle.key_bias, state,
            )  # fmt: skip
            grad_q[:, :, rectangle.queries] += dq
            for grad, part in ((grad_k, dk), (grad_v, dv)):
                if isinstance(rectangle.keys, slice):
                    grad[:, :, rectangle.keys] += part
                else:
                    grad.index_add_(2, rectangle.keys, part)
        return grad_q, grad_k, grad_v, None


def _attend_rectangle(
    backend: AttentionBackend, rectangle: Rectangle, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Any]:
    """Output, LSE with the query bias, and the backend's state for its backward pass."""
    out, lse, state = backend.forward(
        q[:, :, rectangle.queries], rectangle.select_keys(k), rectangle.select_keys(v), rectangle.key_bias
    )
    return out, lse if rectangle.query_bias is None else lse + rectangle.query_bias, state

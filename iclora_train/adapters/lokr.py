"""Convert a LoKr, whose weight change is a Kronecker product, to a plain LoRA of a given rank.

A LoKr (LyCORIS) changes the weight of a linear (out,in) by scale * kron(w1, w2), with w1 (a,b) and w2 (c,d), a c = out,
b d = in. Each of w1 and w2 is stored whole, or as a product (w1_a w1_b). With a Tucker core t2 (r,r,1,1), as
convolutions have, w2 is w2_a^T t2 w2_b.

With w1 = sum_i s_i u_i v_i^T and w2 = sum_j t_j p_j q_j^T, the product is
sum_ij s_i t_j kron(u_i, p_j) kron(v_i, q_j)^T, which is a singular value decomposition. The largest `rank` products
s_i t_j therefore give the best LoRA of that rank, and the product, as large as the weight, is never formed.
Source of names and scale: ComfyUI (comfy/weight_adapter/lokr.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from iclora_train.adapters.algebra import truncated_svd
from iclora_train.adapters.alpha import Scale
from iclora_train.adapters.file import tensor_findings
from iclora_train.adapters.low_rank import LowRank, squared_norm
from iclora_train.config import require

NAMES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_NEGLIGIBLE = 1e-6  # a singular value relative to the largest one, below which it is rounding


def lokr_findings(name: str, parts: Mapping[str, Tensor]) -> Iterator[str]:
    """Problems of the tensors of one module, by their NAMES."""
    for key, tensor in parts.items():
        yield from tensor_findings(f"{name}.{key}", tensor)
    for side in ("lokr_w1", "lokr_w2"):
        pair = {key for key in (f"{side}_a", f"{side}_b") if key in parts}
        if (side in parts) == (len(pair) == 2) or len(pair) == 1:
            present = ", ".join(sorted(parts))
            yield f"{name} must have {side}, or {side}_a and {side}_b; it has {present}: export the adapter again"
            return
    try:
        w1, w2 = _w1(parts), _w2(parts)
    except RuntimeError:
        shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in sorted(parts.items()))
        yield f"{name} has {shapes}, which do not multiply"
        return
    if any(w.ndim != 2 or not w.numel() for w in (w1, w2)):
        yield f"{name} has w1 {tuple(w1.shape)} and w2 {tuple(w2.shape)}; those of a linear are matrices"


def to_lora(name: str, parts: Mapping[str, Tensor], scale: Scale, into: LowRank) -> tuple[Tensor, Tensor]:
    """A (rank,in), B (out,rank) for a module's weight change, with at most `into.rank` rows. scale: alpha / dimension
    of a module; without a product, w1 and w2 are not scaled."""
    divisor, device = dimension(parts), into.generator.device
    w1 = _w1(parts).to(device, torch.float32)
    w2 = _w2(parts).to(device, torch.float32) * (1.0 if divisor is None else scale(name, divisor))
    require(bool(w2.isfinite().all()), f"{name}: alpha makes the LoKr larger than fp32 can hold; export it again")
    if not w1.any() or not w2.any():
        a, b = torch.zeros(1, w1.shape[1] * w2.shape[1]), torch.zeros(w1.shape[0] * w2.shape[0], 1)
        into.note(name, 0.0, 0.0, 1)
        return a, b
    u, s, v = torch.linalg.svd(w1, full_matrices=False)  # (a,k), (k), (k,b)
    q, p, _ = truncated_svd(w2, into.rank, into.generator)  # (n,d), (c,n), each times the root of a singular value
    products = (s[:, None] * q.square().sum(1)).flatten()  # (k n)
    order = products.argsort(descending=True)
    chosen = order[: into.rank]
    chosen = chosen[products[chosen] > _NEGLIGIBLE * products[chosen[0]]]
    i, j = chosen // len(q), chosen % len(q)
    root = s[i].sqrt()  # (rank)
    a = torch.einsum("rb,rd->rbd", root[:, None] * v[i], q[j]).flatten(1)
    b = torch.einsum("ar,cr->acr", u[:, i] * root, p[:, j]).flatten(0, 1)
    norm = squared_norm(w1)
    lost = norm * squared_norm(w2 - p @ q) + squared_norm(products[order[len(chosen) :]])
    into.note(
        name, lost, norm * squared_norm(w2), _rank_bound(parts, "lokr_w1", w1) * _rank_bound(parts, "lokr_w2", w2)
    )
    return a.cpu(), b.cpu()


def _rank_bound(parts: Mapping[str, Tensor], side: str, w: Tensor) -> int:
    """The highest rank that w1 or w2 can have."""
    return min(*w.shape, *(parts[f"{side}_b"].shape[:1] if side not in parts else ()))


def dimension(parts: Mapping[str, Tensor]) -> int | None:
    """The number by which alpha is divided: the inner side of the product w2, or else of w1; None without a product."""
    side = next((side for side in ("lokr_w2", "lokr_w1") if side not in parts), None)
    return None if side is None else parts[f"{side}_b"].shape[0]


def _w1(parts: Mapping[str, Tensor]) -> Tensor:
    whole = parts.get("lokr_w1")
    return parts["lokr_w1_a"].float() @ parts["lokr_w1_b"].float() if whole is None else whole


def _w2(parts: Mapping[str, Tensor]) -> Tensor:
    """w2; of a 1x1 convolution as a matrix."""
    w2, core = parts.get("lokr_w2"), parts.get("lokr_t2")
    if w2 is None and core is None:
        w2 = parts["lokr_w2_a"].float() @ parts["lokr_w2_b"].float()
    elif w2 is None:
        assert core is not None
        w2 = torch.einsum("rs...,rc,sd->cd...", core.float(), parts["lokr_w2_a"].float(), parts["lokr_w2_b"].float())
    return w2.flatten(1) if w2.ndim == 4 and w2.shape[2:] == (1, 1) else w2

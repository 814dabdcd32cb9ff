"""Convert a DoRA, which also sets the lengths of the rows of a weight, to a plain LoRA of a given rank.

A DoRA (arXiv 2402.09353) makes m V / |V| of a weight W (out,in), with V = W + scale B A and the Frobenius norm of each
row of V. m is stored as (out) or (out,1); older files of LyCORIS store (1,in) and take the norm of each column. The
change m V / |V| - W has full rank and depends on W, so a LoRA leaves out a part of it.
Sources: peft (tuners/lora/dora.py), LyCORIS (modules/locon.py). ComfyUI divides by the norms of the rows of W, not V.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from iclora_train.adapters.algebra import truncated_svd
from iclora_train.adapters.file import FLOATS
from iclora_train.adapters.low_rank import LowRank, squared_norm
from iclora_train.config import require


def magnitude_findings(name: str, magnitude: Tensor, out: int, inputs: int) -> Iterator[str]:
    """Problems of the magnitude of a module's DoRA."""
    shape = tuple(magnitude.shape)
    if magnitude.dtype not in FLOATS or not magnitude.isfinite().all():
        yield f"{name} has a magnitude (DoRA) that is not made of finite numbers; export the adapter again"
    elif shape not in ((out,), (out, 1), (1, inputs)):
        yield f"{name} has a magnitude (DoRA) of shape {shape}; it must be ({out}), ({out}, 1) or (1, {inputs})"


def to_lora(name: str, a: Tensor, b: Tensor, magnitude: Tensor, into: LowRank) -> tuple[Tensor, Tensor]:
    """The best A (rank,in), B (out,rank) for a module's weight change. b includes the scale."""
    require(
        into.weight is not None,
        f"{name} has a magnitude (DoRA): the change of a weight depends on the weight, so give the base with --base",
    )
    assert into.weight is not None
    device = into.generator.device
    weight = into.weight(name).to(device, torch.float32)
    changed = weight + b.to(device) @ a.to(device)
    by_column = magnitude.ndim == 2 and magnitude.shape[0] == 1 != weight.shape[0]
    norm = torch.linalg.vector_norm(changed, dim=0 if by_column else 1, keepdim=True)
    lengths = magnitude.to(device, torch.float32).reshape(norm.shape)
    change = lengths * changed / norm.clamp_min(torch.finfo(norm.dtype).tiny) - weight
    require(bool(change.isfinite().all()), f"{name}: the DoRA is larger than fp32 can hold; export the adapter again")
    if not change.any():
        into.note(name, 0.0, 0.0, 1)
        return torch.zeros_like(a[:1]), torch.zeros_like(b[:, :1])
    new_a, new_b, _ = truncated_svd(change, into.rank, into.generator)
    into.note(name, squared_norm(change - new_b @ new_a), squared_norm(change), min(change.shape))
    return new_a.cpu(), new_b.cpu()

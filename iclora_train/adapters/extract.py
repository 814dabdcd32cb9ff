"""The adapter that lies between a base and a merged or fine-tuned copy of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from iclora_train.adapters.algebra import low_rank
from iclora_train.adapters.base_spec import BaseSpec, model_part, open_checkpoint
from iclora_train.adapters.convert import ReferenceFactors, with_factors
from iclora_train.adapters.file import Adapter
from iclora_train.config import ConfigError, require
from iclora_train.ltx2.weights.assign import mismatches

Advance = Callable[[int, int], None]  # tensors done, tensors in all


@dataclass(frozen=True)
class Extracted:
    """energy: module -> share of the squared Frobenius norm of the difference that its halves keep; total: of all
    modules together; beyond: tensors that differ and are no linear weights, which no adapter can hold."""

    adapter: Adapter
    energy: dict[str, float]
    total: float
    beyond: list[str]


def extract(
    base: str,
    merged: str,
    rank: int,
    factors: ReferenceFactors,
    task: str,
    generator: torch.Generator,
    advance: Advance = lambda done, total: None,
) -> Extracted:
    """The best adapter of `rank` for merged - base in every linear that differs, computed on the generator's device.

    ConfigError when the two have different tensors, are the same, or when `factors` leaves the reference open.
    """
    metadata = with_factors({"task": task, "rank": str(rank), **BaseSpec.open(base).metadata}, factors)
    old, new = model_part(open_checkpoint(base)), model_part(open_checkpoint(merged))
    wrong = mismatches({n: at.shape for n, at in new.stored.items()}, {n: at.shape for n, at in old.stored.items()})
    require(not wrong, f"{merged} is not a copy of {base}: {', '.join(wrong[:3])}")
    weights, energy, beyond = {}, {}, []
    kept = whole = 0.0
    for i, name in enumerate(sorted(old.stored)):
        difference = new.tensor(name, generator.device).float() - old.tensor(name, generator.device).float()
        if name.endswith(".weight") and difference.ndim == 2 and difference.any():
            module = name.removesuffix(".weight")
            a, b, energy[module] = low_rank(difference, rank, generator)
            weights[module] = (a.cpu(), b.cpu())
            norm = float(difference.double().square().sum())
            kept, whole = kept + energy[module] * norm, whole + norm
        elif difference.any():
            beyond.append(name)
        advance(i + 1, len(old.stored))
    if not weights:
        raise ConfigError(f"{merged} and {base} have the same linears: there is nothing to extract")
    return Extracted(Adapter(weights, metadata), energy, kept / whole, beyond)

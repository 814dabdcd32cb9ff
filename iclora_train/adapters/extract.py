"""Extract an adapter from the difference of a base and a merged or fine-tuned copy of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from iclora_train.adapters.algebra import truncated_svd
from iclora_train.adapters.base_spec import BaseSpec, model_tensors, open_checkpoint
from iclora_train.adapters.convert import ReferenceFactors, with_factors
from iclora_train.adapters.file import Adapter
from iclora_train.config import ConfigError, require
from iclora_train.ltx2.weights.assign import mismatches

Advance = Callable[[int, int], None]  # finished tensors, all tensors


@dataclass(frozen=True)
class Extracted:
    """An extracted adapter, and how much of the difference it contains.

    energy: module -> share of the squared Frobenius norm of the module's difference. total: the same over all modules.
    not_linear: tensors that differ but are not weights of linears, so an adapter cannot contain the difference.
    """

    adapter: Adapter
    energy: dict[str, float]
    total: float
    not_linear: list[str]


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

    ConfigError if the two have different tensors, if they are equal, or if `factors` does not set the reference factor.
    """
    metadata = with_factors({"task": task, "rank": str(rank), **BaseSpec.open(base).metadata}, factors)
    old, new = model_tensors(open_checkpoint(base)), model_tensors(open_checkpoint(merged))
    wrong = mismatches({n: t.shape for n, t in new.stored.items()}, {n: t.shape for n, t in old.stored.items()})
    require(not wrong, f"{merged} is not a copy of {base}: {', '.join(wrong[:3])}")
    weights, energy, not_linear = {}, {}, []
    extracted = total = 0.0
    for i, name in enumerate(sorted(old.stored)):
        difference = new.tensor(name, generator.device).float() - old.tensor(name, generator.device).float()
        if name.endswith(".weight") and difference.ndim == 2 and difference.any():
            module = name.removesuffix(".weight")
            a, b, energy[module] = truncated_svd(difference, rank, generator)
            weights[module] = (a.cpu(), b.cpu())
            norm = float(difference.double().square().sum())
            extracted, total = extracted + energy[module] * norm, total + norm
        elif difference.any():
            not_linear.append(name)
        advance(i + 1, len(old.stored))
    if not weights:
        raise ConfigError(f"{merged} and {base} have the same linears: the difference to extract is zero")
    return Extracted(Adapter(weights, metadata), energy, extracted / total, not_linear)

"""The dtype of adapter files, and the change of an adapter when its matrices are rounded to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from iclora_train.adapters.file import Adapter, save
from iclora_train.adapters.metadata import ROUNDING

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def save_rounded(path: Path, adapter: Adapter, dtype: str) -> float:
    """Write the file with A and B in bf16 or fp32. Returns the `rounding_error`, which the metadata state if it is not
    0."""
    error = rounding_error(adapter.weights, DTYPES[dtype])
    metadata = {key: value for key, value in adapter.metadata.items() if key != ROUNDING}
    if error:
        metadata[ROUNDING] = f"{error:.1e}"
    save(path, replace(adapter, metadata=metadata), DTYPES[dtype])
    return error


def rounding_error(weights: Mapping[str, tuple[Tensor, Tensor]], dtype: torch.dtype) -> float:
    """The change of all products B A by rounding A and B to `dtype`, relative to their Frobenius norm.

    With M = [B, -B'] and N = [A; A'], B A - B' A' = M N, and its squared norm is the sum over (M^T M) * (N N^T), whose
    sides are twice the rank: the products, as large as the weights of the model, are never formed.
    """
    change = norm = 0.0
    for a, b in weights.values():
        rounded_a, rounded_b = a.to(dtype), b.to(dtype)
        if torch.equal(rounded_a.to(a.dtype), a) and torch.equal(rounded_b.to(b.dtype), b):
            continue
        change += _squared_norm(
            torch.cat([a.double(), rounded_a.double()]), torch.cat([b.double(), -rounded_b.double()], 1)
        )
    for a, b in weights.values() if change else ():
        norm += _squared_norm(a.double(), b.double())
    return (max(change, 0.0) / norm) ** 0.5 if norm else 0.0


def _squared_norm(a: Tensor, b: Tensor) -> float:
    """The squared Frobenius norm of b a, for a (rank,in) and b (out,rank)."""
    return float(((b.T @ b) * (a @ a.T)).sum())

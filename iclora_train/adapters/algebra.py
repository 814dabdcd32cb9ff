"""Adapters as low-rank matrices: their sum, their recompression, and the best low-rank part of a difference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

from iclora_train.adapters.base_spec import FAMILY, FINGERPRINT, VERSION
from iclora_train.adapters.file import DOWNSCALE, TEMPORAL, Adapter
from iclora_train.config import ConfigError
from iclora_train.ltx2.base_model import EMBEDDED

WeightedAdapters = Sequence[tuple[Adapter, float]]  # adapters and their strengths
_OVERSAMPLING, _POWERS = 16, 4  # of the randomised range finder


def delta(halves: Iterable[tuple[Tensor, Tensor, float]]) -> Tensor:
    """The sum of strength x B A over (A (rank,in), B (out,rank), strength), fp32 (out,in)."""
    return reduce(torch.add, (strength * (b.float() @ a.float()) for a, b, strength in halves))


def of_module(adapters: WeightedAdapters, name: str) -> list[tuple[Tensor, Tensor, float]]:
    """What `delta` needs of one module."""
    return [(*adapter.weights[name], strength) for adapter, strength in adapters if name in adapter.weights]


def modules(adapters: WeightedAdapters) -> list[str]:
    """All modules that any of them changes."""
    return sorted({name for adapter, _ in adapters for name in adapter.weights})


def combine(adapters: WeightedAdapters, rank: int | None = None) -> Adapter:
    """One adapter that does what all do at their strengths: A stacked, strength x B beside one another. Exact.

    rank: recompress every module to at most this rank. ConfigError when bases or reference factors disagree; an adapter
    that takes no reference fits any factor.
    """
    metadata = combined_metadata(adapters)
    weights = {}
    for name in modules(adapters):
        halves = of_module(adapters, name)
        _require_same_shape(name, halves)
        a = torch.cat([a.float() for a, _, _ in halves])
        b = torch.cat([strength * b.float() for _, b, strength in halves], dim=1)
        weights[name] = (a, b) if rank is None else recompress(a, b, rank)
    largest = max(a.shape[0] for a, _ in weights.values())
    return Adapter(weights, {**metadata, "rank": str(largest)})


def _require_same_shape(name: str, halves: list[tuple[Tensor, Tensor, float]]) -> None:
    shapes = {(b.shape[0], a.shape[1]) for a, b, _ in halves}
    if len(shapes) > 1:
        raise ConfigError(f"{name}: the adapters fit linears of different shapes {sorted(shapes)}: different bases?")


def combined_metadata(adapters: WeightedAdapters) -> dict[str, str]:
    """What all agree on, and what they were made of. ConfigError when bases or reference factors disagree."""
    chosen = [adapter for adapter, _ in adapters]
    embedded = any(adapter.metadata.get(FAMILY) in EMBEDDED for adapter in chosen)  # one set of weights, no siblings
    for key in (FAMILY, VERSION, FINGERPRINT) if embedded else (FAMILY, VERSION):
        require_agreement(key, [adapter.metadata.get(key) for adapter in chosen])
    guided = [adapter for adapter in chosen if adapter.in_context] or chosen
    for key in (DOWNSCALE, TEMPORAL):
        require_agreement(key, [adapter.metadata.get(key, "1") for adapter in guided])
    first = guided[0].metadata
    same = {key: value for key, value in first.items() if all(c.metadata.get(key) == value for c in guided)}
    tasks = [adapter.metadata.get("task", "unnamed") for adapter in chosen]
    triggers = dict.fromkeys(c.metadata["trigger"] for c in chosen if c.metadata.get("trigger"))
    made_of = " ".join(f"{task}:{strength:g}" for task, (_, strength) in zip(tasks, adapters, strict=True))
    return {**same, "task": "+".join(tasks), "trigger": " ".join(triggers), "combined": made_of}


def require_agreement(key: str, values: Sequence[str | None]) -> None:
    """ConfigError unless all adapters say the same of `key`."""
    if len(set(values)) > 1:
        said = ", ".join("nothing" if value is None else value for value in values)
        raise ConfigError(f"the adapters disagree on {key} ({said}): they cannot work in one clip together")


def recompress(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best A (rank,in), B (out,rank) for B A in the Frobenius norm, without forming the product.

    With B = Q R and A' = P S the singular values of B A are those of R S', a matrix of the old rank.
    """
    q, r = torch.linalg.qr(b.float())  # (out,old), (old,old)
    p, s = torch.linalg.qr(a.float().T)  # (in,old), (old,old)
    u, sigma, v = torch.linalg.svd(r @ s.T, full_matrices=False)
    root = sigma[:rank].sqrt()
    return (root[:, None] * v[:rank]) @ p.T, (q @ u[:, :rank]) * root


def low_rank(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """A (rank,in), B (out,rank) of the truncated SVD of a matrix (out,in), and the share of its energy they keep.

    Exact for small matrices; else subspace iteration from a random start on `generator`'s device (Halko, Martinsson and
    Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1).
    """
    width = min(rank + _OVERSAMPLING, *matrix.shape)
    if 2 * width >= min(matrix.shape):
        u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
    else:
        start = torch.randn(matrix.shape[1], width, generator=generator, device=generator.device)
        basis = torch.linalg.qr(matrix @ start.to(matrix)).Q  # (out,width)
        for _ in range(_POWERS):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        u, sigma, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ u
    energy = float(sigma[:rank].double().square().sum() / matrix.double().square().sum())
    root = sigma[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root, min(energy, 1.0)

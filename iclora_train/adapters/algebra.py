"""Adapters as low-rank matrices: weighted sum, recompression to a lower rank, truncated SVD of a weight difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from iclora_train.adapters.file import Adapter
from iclora_train.adapters.metadata import (
    DOWNSCALE,
    FAMILY,
    FINGERPRINT,
    LOW_RANK,
    ROUNDING,
    TEMPORAL,
    VERSION,
    reference_layouts,
    shown,
)
from iclora_train.adapters.references import MORE
from iclora_train.adapters.slots import combined_slots
from iclora_train.adapters.sound_context import AUDIO_REFERENCE, VIDEO_GIVEN
from iclora_train.config import ConfigError
from iclora_train.ltx2.base_model import EMBEDDED

WeightedAdapters = Sequence[tuple[Adapter, float]]  # adapters and their strengths
WeightedFactors = tuple[Tensor, Tensor, float]  # A (rank,in), B (out,rank), strength
_OVERSAMPLING, _POWER_ITERATIONS = 16, 4  # settings of the randomised range finder


def weight_delta(factors: Iterable[WeightedFactors]) -> Tensor:
    """The sum of strength * B A over all factors, fp32 (out,in)."""
    return reduce(torch.add, (strength * (b.float() @ a.float()) for a, b, strength in factors))


def factors_of(adapters: WeightedAdapters, module: str) -> list[WeightedFactors]:
    """The factors of one module, from every adapter that changes it."""
    return [(*adapter.weights[module], strength) for adapter, strength in adapters if module in adapter.weights]


def changed_modules(adapters: WeightedAdapters) -> list[str]:
    """Names of the modules that at least one adapter changes."""
    return sorted({name for adapter, _ in adapters for name in adapter.weights})


def combine(adapters: WeightedAdapters, rank: int | None = None) -> Adapter:
    """One adapter that equals the weighted sum of all: A concatenated along the rank, and likewise strength * B. Exact.

    rank: recompress every module to at most this rank. ConfigError if bases or reference factors disagree; an adapter
    that takes no reference fits any factor.
    """
    metadata = combined_metadata(adapters)
    weights = {}
    for name in changed_modules(adapters):
        factors = factors_of(adapters, name)
        _require_same_shape(name, factors)
        a = torch.cat([a.float() for a, _, _ in factors])
        b = torch.cat([strength * b.float() for _, b, strength in factors], dim=1)
        weights[name] = (a, b) if rank is None else recompress(a, b, rank)
    largest = max(a.shape[0] for a, _ in weights.values())
    return Adapter(weights, {**metadata, "rank": str(largest)}, slots_of(adapters, metadata))


def slots_of(adapters: WeightedAdapters, metadata: Mapping[str, str]) -> Tensor | None:
    """The weighted sum (n,D) of the learned slots of all adapters; metadata: `combined_metadata` of them."""
    slots = [(adapter.slots, strength) for adapter, strength in adapters]
    return combined_slots(slots, len(reference_layouts(metadata)))


def _require_same_shape(name: str, factors: list[WeightedFactors]) -> None:
    shapes = {(b.shape[0], a.shape[1]) for a, b, _ in factors}
    if len(shapes) > 1:
        raise ConfigError(f"{name}: the adapters fit linears of different shapes {sorted(shapes)}: different bases?")


def combined_metadata(adapters: WeightedAdapters) -> dict[str, str]:
    """The metadata on which all adapters agree, with a list of the adapters.

    An adapter that declares no base fits any base. Next to an adapter that declares a reference factor, one that
    declares none is a plain LoRA. ConfigError if declared bases or reference factors disagree.
    """
    parts = [adapter for adapter, _ in adapters]
    declared = [adapter.metadata for adapter in parts if FAMILY in adapter.metadata]  # official files declare no base
    embedded = any(metadata[FAMILY] in EMBEDDED for metadata in declared)  # embedded: equal weights required
    for key in (FAMILY, VERSION, FINGERPRINT) if embedded else (FAMILY, VERSION):
        require_agreement(key, [metadata.get(key) for metadata in declared])
    with_reference = [adapter for adapter in parts if adapter.in_context and DOWNSCALE in adapter.metadata]
    with_reference = with_reference or [adapter for adapter in parts if adapter.in_context] or parts
    for key in (DOWNSCALE, TEMPORAL):
        require_agreement(key, [adapter.metadata.get(key, "1") for adapter in with_reference])
    first = with_reference[0].metadata
    common = {key: value for key, value in first.items() if all(a.metadata.get(key) == value for a in with_reference)}
    for key in (ROUNDING, LOW_RANK, MORE):
        common.pop(key, None)
    common |= _more_references(with_reference)
    for key in (AUDIO_REFERENCE, VIDEO_GIVEN):  # an adapter without them takes what the others are given
        values = [adapter.metadata[key] for adapter in parts if key in adapter.metadata]
        require_agreement(key, values)
        if values:
            common[key] = values[0]
    common |= {key: declared[0][key] for key in (FAMILY, VERSION) if declared and key in declared[0]}
    tasks = [adapter.metadata.get("task", "unnamed") for adapter in parts]
    triggers = dict.fromkeys(a.metadata["trigger"] for a in parts if a.metadata.get("trigger"))
    sources = " ".join(f"{task}:{strength:g}" for task, (_, strength) in zip(tasks, adapters, strict=True))
    return {**common, "task": "+".join(tasks), "trigger": " ".join(triggers), "combined": sources}


def _more_references(adapters: Sequence[Adapter]) -> dict[str, str]:
    """The further references of the adapter that has most of them; the other adapters use as many as they have.

    ConfigError if two adapters have the same reference in different ways.
    """
    most = max(adapters, key=lambda adapter: len(adapter.references))
    for adapter in adapters:
        for layout, other in zip(most.references[1:], adapter.references[1:], strict=False):
            require_agreement(f"{MORE}, {layout.name}", [layout.in_words, other.in_words])
    return {MORE: most.metadata[MORE]} if MORE in most.metadata else {}


def require_agreement(key: str, values: Sequence[str | None]) -> None:
    """ConfigError unless all adapters have the same value of `key`."""
    if len(set(values)) > 1:
        texts = ", ".join("nothing" if value is None else shown(value) for value in values)
        raise ConfigError(f"the adapters disagree on {key} ({texts}): they cannot be used together in one clip")


def recompress(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best A (rank,in), B (out,rank) for B A in the Frobenius norm, without forming the product.

    With the QR decompositions B = Q R and A' = P S, B A has the singular values of R S', a matrix whose sides are the
    old rank.
    """
    q, r = torch.linalg.qr(b.float())  # (out,old), (old,old)
    p, s = torch.linalg.qr(a.float().T)  # (in,old), (old,old)
    u, sigma, v = torch.linalg.svd(r @ s.T, full_matrices=False)
    root = sigma[:rank].sqrt()
    return (root[:, None] * v[:rank]) @ p.T, (q @ u[:, :rank]) * root


def truncated_svd(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """A (rank,in), B (out,rank) of the truncated SVD of a matrix (out,in), and the share of its energy in B A.

    Exact for small matrices; else subspace iteration from a random start on `generator`'s device (Halko, Martinsson and
    Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1).
    """
    width = min(rank + _OVERSAMPLING, *matrix.shape)
    if 2 * width >= min(matrix.shape):
        u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
    else:
        start = torch.randn(matrix.shape[1], width, generator=generator, device=generator.device)
        basis = torch.linalg.qr(matrix @ start.to(matrix)).Q  # (out,width)
        for _ in range(_POWER_ITERATIONS):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        u, sigma, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ u
    energy = float(sigma[:rank].double().square().sum() / matrix.double().square().sum())
    root = sigma[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root, min(energy, 1.0)

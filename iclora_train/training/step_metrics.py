"""Metrics of training steps. They stay on the device and are read together, because a read makes the host wait."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from iclora_train.config import Config, ConfigError
from iclora_train.diffusion.loss import ClipLosses

SIGMA_BUCKETS = 4  # equal ranges of noise levels for which the loss is logged separately
LOCALITY = "locality"  # column that flow.locality adds
AUDIO = "loss_audio"  # column that model.audio=on adds
_LOSSES = ("loss", "locality", "audio")  # of `_BatchMetrics`, on the device

Row = dict[str, float]


class DivergedError(ConfigError):
    """The loss or its gradient is NaN or infinite. No checkpoint contains the result of that step."""


@dataclass(frozen=True)
class _BatchMetrics:
    """Clips of a batch: keys and noise levels (B,) on the host, the losses of `ClipLosses` (B,)."""

    keys: list[str]
    sigma: Tensor
    loss: Tensor
    locality: Tensor  # NaN for all clips of a batch in which no clip has a region
    audio: Tensor  # NaN for clips without a sound of their own, or without model.audio


@dataclass(frozen=True)
class _StepMetrics:
    """An optimizer step: its number, the batches of this rank, its gradient norm () on the device, learning rate."""

    number: int
    batches: list[_BatchMetrics]
    grad_norm: Tensor
    lr: float


class DeferredMetrics:
    """Metrics of the steps since the last `collect`. sources: names of data.sources, whose clips are counted."""

    def __init__(self, sources: Sequence[str] = ()) -> None:
        self.sources = sources
        self.batches: list[_BatchMetrics] = []  # of the unfinished step
        self.steps: list[_StepMetrics] = []

    def add(self, keys: list[str], losses: ClipLosses) -> None:
        """Add a batch: the keys of its clips, and its losses."""
        loss = losses.flow.detach()
        locality = torch.full_like(loss, math.nan) if losses.locality is None else losses.locality.detach()
        audio = losses.audio_of_heard().detach()
        self.batches.append(_BatchMetrics(keys, losses.sigma, loss, locality, audio))

    def end_step(self, number: int, grad_norm: Tensor, lr: float) -> None:
        """The batches added since the last call are those of optimizer step `number`."""
        self.steps.append(_StepMetrics(number, self.batches.copy(), grad_norm, lr))
        self.batches.clear()

    def collect(self, gather: Callable[[Any], list[Any]]) -> tuple[list[Row], DivergedError | None]:
        """A row for each step since the last call, up to the first step that is not finite, which is the error.

        A row: step, loss, loss by noise level, locality, clips of each source, gradient norm, learning rate, of the
        clips of all ranks.
        `gather` (`core.process_group`) returns the values of all ranks.
        """
        steps = self.steps.copy()
        self.steps.clear()
        if not steps:
            return [], None
        batches, norms = _on_host(steps)
        rows: list[Row] = []
        for step, norm, by_rank in zip(steps, norms, zip(*gather(batches), strict=True), strict=True):
            # in the order of `batch_sampler.BatchPlan`, so that no sum depends on the number of ranks
            in_order = list(chain.from_iterable(zip(*by_rank, strict=True)))
            error = _divergence(step.number, in_order, norm)
            if error is not None:
                return rows, error
            names = ("sigma", *_LOSSES)
            sigma, loss, locality, audio = (torch.cat([getattr(batch, name) for batch in in_order]) for name in names)
            means = {**_mean_losses(sigma, loss), **_mean_of(LOCALITY, locality), **_mean_of(AUDIO, audio)}
            drawn = Counter(key.partition("-")[0] for batch in in_order for key in batch.keys) if self.sources else {}
            means |= {drawn_name(source): drawn[source] for source in self.sources}
            rows.append({"step": step.number, **means, "grad_norm": norm, "lr": step.lr})
        return rows, None


def _on_host(steps: list[_StepMetrics]) -> tuple[list[list[_BatchMetrics]], list[float]]:
    """The batches of each step with their losses on the host, and the gradient norm of each step."""
    batches = [batch for step in steps for batch in step.batches]
    losses = [torch.cat([getattr(batch, name) for batch in batches]) for name in _LOSSES]
    norms = torch.stack([step.grad_norm for step in steps])
    on_host = torch.cat([values.float() for values in (*losses, norms)]).cpu()  # one copy: the host waits once
    *losses, norms = on_host.split([*map(len, losses), len(norms)])
    counts = [len(batch.keys) for batch in batches]
    parts = zip(batches, *(values.split(counts) for values in losses), strict=True)
    # clones, because a pickled view takes the whole tensor along
    copies = iter([replace(b, loss=x.clone(), locality=y.clone(), audio=z.clone()) for b, x, y, z in parts])
    return [list(islice(copies, len(step.batches))) for step in steps], norms.tolist()


def step_columns(config: Config) -> list[str]:
    """Names of the values in a row of `DeferredMetrics.collect`."""
    buckets = [bucket_name(i) for i in range(SIGMA_BUCKETS)]
    drawn = [drawn_name(source) for source in source_names(config)]
    optional = [LOCALITY] * bool(config.flow.locality) + [AUDIO] * (config.model.audio == "on")
    return ["step", "loss", *buckets, *optional, *drawn, "grad_norm", "lr"]


def source_names(config: Config) -> list[str]:
    """Names of data.sources; none without them."""
    return [source.label for source in config.data.sources or ()]


def drawn_name(source: str) -> str:
    """Column with the number of clips of a source in a step."""
    return f"drawn_{source}"


def bucket_name(i: int) -> str:
    """Column of the i-th range of noise levels, e.g. loss_0.25_0.50."""
    return f"loss_{i / SIGMA_BUCKETS:.2f}_{(i + 1) / SIGMA_BUCKETS:.2f}"


def _mean_losses(sigma: Tensor, loss: Tensor) -> Row:
    """Mean loss, and mean loss in each range of noise levels."""
    row = {"loss": float(loss.mean())}
    for i in range(SIGMA_BUCKETS):
        in_bucket = loss[(sigma * SIGMA_BUCKETS).long().clamp(max=SIGMA_BUCKETS - 1) == i]
        row[bucket_name(i)] = float(in_bucket.mean()) if len(in_bucket) else math.nan
    return row


def _mean_of(column: str, values: Tensor) -> Row:
    """Mean of a further term of the loss over the clips that have it; empty if none has."""
    measured = values[~values.isnan()]
    return {column: float(measured.mean())} if len(measured) else {}


def _divergence(number: int, batches: list[_BatchMetrics], norm: float) -> DivergedError | None:
    """The error of step `number`, whose `batches` are those of all ranks, if a loss or its gradient is not finite."""
    remedy = "under another run=<name>; checkpoints up to here are intact"
    bad = [
        f"{batch.keys[i]} at sigma {batch.sigma[i]:.3f}"
        for batch in batches
        for i in (~batch.loss.isfinite()).nonzero().flatten().tolist()
    ]
    if bad:
        return DivergedError(
            f"the loss is not a finite number at step {number} ({', '.join(bad)}): lower optim.optimizer.lr or "
            f"optim.clip_norm, or leave out the clip, {remedy}"
        )
    if not math.isfinite(norm):
        return DivergedError(f"the gradient is not finite at step {number}: lower optim.optimizer.lr {remedy}")
    return None

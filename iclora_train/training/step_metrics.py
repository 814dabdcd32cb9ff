"""Metrics of training steps. They stay on the device and are read together, because a read makes the host wait."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iclora_train.config import Config, ConfigError
from iclora_train.diffusion.loss import ClipLosses

SIGMA_BUCKETS = 4  # equal ranges of noise levels for which the loss is logged separately
LOCALITY = "locality"  # column that flow.locality adds

Row = dict[str, float]


class DivergedError(ConfigError):
    """The loss or its gradient is NaN or infinite. No checkpoint contains the result of that step."""


@dataclass(frozen=True)
class _ClipMetrics:
    """Clips: keys and noise levels (n,) on the host, flow losses and `ClipLosses.locality` (n,) on the device."""

    keys: list[str]
    sigma: Tensor
    loss: Tensor
    locality: Tensor  # NaN for all clips of a batch in which no clip has a region


@dataclass(frozen=True)
class _StepMetrics:
    """An optimizer step: its number, its clips, its gradient norm () on the device, its learning rate."""

    number: int
    clips: _ClipMetrics
    grad_norm: Tensor
    lr: float


class DeferredMetrics:
    """Metrics of the steps since the last `collect`."""

    def __init__(self) -> None:
        self.batches: list[_ClipMetrics] = []  # of the unfinished step
        self.steps: list[_StepMetrics] = []

    def add(self, keys: list[str], losses: ClipLosses) -> None:
        """Add a batch: the keys of its clips, and its losses."""
        loss = losses.flow.detach()
        locality = torch.full_like(loss, math.nan) if losses.locality is None else losses.locality.detach()
        self.batches.append(_ClipMetrics(keys, losses.sigma, loss, locality))

    def end_step(self, number: int, grad_norm: Tensor, lr: float) -> None:
        """Combine the batches added since the last call into optimizer step `number`."""
        keys = [key for batch in self.batches for key in batch.keys]
        names = ("sigma", "loss", "locality")
        sigma, loss, locality = (torch.cat([getattr(batch, name) for batch in self.batches]) for name in names)
        self.steps.append(_StepMetrics(number, _ClipMetrics(keys, sigma, loss, locality), grad_norm, lr))
        self.batches.clear()

    def collect(self, gather: Callable[[Tensor], Tensor]) -> tuple[list[Row], DivergedError | None]:
        """A row for each step since the last call, up to the first step that is not finite, which is the error.

        A row: step, loss, loss by noise level, locality, gradient norm, learning rate. `gather` stacks the tensors of
        all processes along a new first dimension, or returns the tensor of the only process unchanged.
        """
        steps = self.steps.copy()
        self.steps.clear()
        if not steps:
            return [], None
        loss = torch.cat([step.clips.loss for step in steps]).float()
        sigma = torch.cat([step.clips.sigma for step in steps]).to(loss)
        locality = torch.cat([step.clips.locality for step in steps]).to(loss)
        gathered = gather(torch.stack([sigma, loss, locality]))  # (3,n), or (ranks,3,n)
        norms = torch.stack([step.grad_norm for step in steps]).float()
        on_host = torch.cat([loss, norms, gathered.flatten()]).cpu()  # one copy, so the host waits once
        loss, norms, gathered = on_host.split([len(loss), len(norms), gathered.numel()])
        counts = [len(step.clips.keys) for step in steps]
        by_step = gathered.reshape(-1, 3, len(loss)).split(counts, dim=2)  # (ranks,3,clips) each
        rows: list[Row] = []
        for step, rank_losses, norm, values in zip(steps, loss.split(counts), norms, by_step, strict=True):
            # contiguous (ranks,clips), so that sums have the same bits however many steps are read together
            sigmas, losses, localities = values.transpose(0, 1).clone(memory_format=torch.contiguous_format)
            error = _divergence(step, rank_losses, losses, norm)
            if error is not None:
                return rows, error
            means = {**_mean_losses(sigmas, losses), **_mean_locality(localities)}
            rows.append({"step": step.number, **means, "grad_norm": float(norm), "lr": step.lr})
        return rows, None


def step_columns(config: Config) -> list[str]:
    """Names of the values in a row of `DeferredMetrics.collect`."""
    buckets = [bucket_name(i) for i in range(SIGMA_BUCKETS)]
    return ["step", "loss", *buckets, *([LOCALITY] if config.flow.locality else []), "grad_norm", "lr"]


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


def _mean_locality(locality: Tensor) -> Row:
    """Mean of the locality term over the batches that have a region; empty if none has."""
    measured = locality[~locality.isnan()]
    return {LOCALITY: float(measured.mean())} if len(measured) else {}


def _divergence(step: _StepMetrics, rank_losses: Tensor, losses: Tensor, norm: Tensor) -> DivergedError | None:
    """The error of a step whose losses or gradient are not finite. All processes report the same step.

    rank_losses: losses of this process's clips. losses: losses of all processes.
    """
    remedy = "under another run=<name>; checkpoints up to here are intact"
    if not losses.isfinite().all():
        keys, sigma = step.clips.keys, step.clips.sigma
        bad = [f"{keys[i]} at sigma {sigma[i]:.3f}" for i in (~rank_losses.isfinite()).nonzero().flatten().tolist()]
        return DivergedError(
            f"the loss is not a finite number at step {step.number} ({', '.join(bad) or 'in another process'}): lower "
            f"optim.optimizer.lr or optim.clip_norm, or leave out the clip, {remedy}"
        )
    if not norm.isfinite():
        return DivergedError(f"the gradient is not finite at step {step.number}: lower optim.optimizer.lr {remedy}")
    return None

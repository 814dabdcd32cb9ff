"""What each step found, kept on its device until somebody looks: looking makes the host wait for the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.diffusion.loss import ClipLosses

BUCKETS = 4  # of noise levels, in which the loss is shown
LOCALITY = "locality"  # name of the figure that flow.locality adds

Row = dict[str, float]


class DivergedError(ConfigError):
    """The loss or its gradient is NaN or infinite; no checkpoint holds what came of it."""


@dataclass(frozen=True)
class _Clips:
    """Clips: names and noise levels (n,) on the host, flow losses and `ClipLosses.locality` (n,) on the device."""

    keys: list[str]
    sigma: Tensor
    loss: Tensor
    apart: Tensor  # NaN where no clip of a batch has a region


@dataclass(frozen=True)
class _Step:
    """An optimizer step: its number, its clips, its gradient norm () on the device, its learning rate."""

    number: int
    clips: _Clips
    grad_norm: Tensor
    lr: float


class DeferredMetrics:
    """The steps since the last look."""

    def __init__(self) -> None:
        self.batches: list[_Clips] = []  # of the step that is under way
        self.steps: list[_Step] = []

    def add(self, keys: list[str], found: ClipLosses) -> None:
        """A batch of clips, by name, and its losses."""
        loss = found.flow.detach()
        apart = torch.full_like(loss, math.nan) if found.locality is None else found.locality.detach()
        self.batches.append(_Clips(keys, found.sigma, loss, apart))

    def end_step(self, number: int, grad_norm: Tensor, lr: float) -> None:
        """The batches since the last one were step `number`."""
        keys = [key for batch in self.batches for key in batch.keys]
        names = ("sigma", "loss", "apart")
        sigma, loss, apart = (torch.cat([getattr(batch, name) for batch in self.batches]) for name in names)
        self.steps.append(_Step(number, _Clips(keys, sigma, loss, apart), grad_norm, lr))
        self.batches.clear()

    def collect(self, gather: Callable[[Tensor], Tensor]) -> tuple[list[Row], DivergedError | None]:
        """A row for each step since the last call, up to the first one that is not finite, which is the error.

        A row: step, loss, loss by noise level, locality, gradient norm, learning rate. gather puts the tensors of all
        processes into one more dimension in front, or gives back the one that there is.
        """
        steps = self.steps.copy()
        self.steps.clear()
        if not steps:
            return [], None
        own = torch.cat([step.clips.loss for step in steps]).float()
        sigma = torch.cat([step.clips.sigma for step in steps]).to(own)
        apart = torch.cat([step.clips.apart for step in steps]).to(own)
        seen = gather(torch.stack([sigma, own, apart]))  # (3,n), or (ranks,3,n)
        norms = torch.stack([step.grad_norm for step in steps]).float()
        found = torch.cat([own, norms, seen.flatten()]).cpu()
        own, norms, seen = found.split([len(own), len(norms), seen.numel()])
        counts = [len(step.clips.keys) for step in steps]
        rows: list[Row] = []
        for step, mine, norm, all_of_it in zip(
            steps, own.split(counts), norms, seen.reshape(-1, 3, len(own)).split(counts, dim=2), strict=True
        ):
            sigmas, losses, aparts = all_of_it.transpose(0, 1).clone(memory_format=torch.contiguous_format)  # (ranks,n)
            problem = _problem(step, mine, losses, norm)
            if problem is not None:
                return rows, problem
            figures = {**_losses(sigmas, losses), **_locality(aparts)}
            rows.append({"step": step.number, **figures, "grad_norm": float(norm), "lr": step.lr})
        return rows, None


def bucket_name(i: int) -> str:
    """Name of the i-th bucket of noise levels, e.g. loss_0.25_0.50."""
    return f"loss_{i / BUCKETS:.2f}_{(i + 1) / BUCKETS:.2f}"


def _losses(sigma: Tensor, loss: Tensor) -> Row:
    """Mean loss, and by bucket of noise levels."""
    row = {"loss": float(loss.mean())}
    for i in range(BUCKETS):
        inside = loss[(sigma * BUCKETS).long().clamp(max=BUCKETS - 1) == i]
        row[bucket_name(i)] = float(inside.mean()) if len(inside) else math.nan
    return row


def _locality(apart: Tensor) -> Row:
    """Mean of what changes inside of regions, of the batches that have any."""
    known = apart[~apart.isnan()]
    return {LOCALITY: float(known.mean())} if len(known) else {}


def _problem(step: _Step, own: Tensor, losses: Tensor, norm: Tensor) -> DivergedError | None:
    """What to say of a step whose losses or gradient are not finite; every process finds the same step."""
    kept = "under another run=<name>; checkpoints up to here are intact"
    if not losses.isfinite().all():
        keys, sigma = step.clips.keys, step.clips.sigma
        bad = [f"{keys[i]} at sigma {sigma[i]:.3f}" for i in (~own.isfinite()).nonzero().flatten().tolist()]
        return DivergedError(
            f"the loss is not a finite number at step {step.number} ({', '.join(bad) or 'in another process'}): lower "
            f"optim.optimizer.lr or optim.clip_norm, or leave out the clip, {kept}"
        )
    if not norm.isfinite():
        return DivergedError(f"the gradient is not finite at step {step.number}: lower optim.optimizer.lr {kept}")
    return None

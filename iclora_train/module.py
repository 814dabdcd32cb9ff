"""The LightningModule: base, adapter, optimizer. Glue; the mathematics is in `flow`, `reference` and `step`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from hydra.utils import instantiate
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from iclora_train import lora
from iclora_train.batches import Batch
from iclora_train.config import Config, ConfigError, Optim, require
from iclora_train.flow import masked_loss
from iclora_train.ltx2.base import Base
from iclora_train.precision import compile_as_set, transformer_of
from iclora_train.step import draw, lay_out, step_generator

BUCKETS = 4  # of noise levels, in which the loss is shown


class DivergedError(ConfigError):
    """The loss or its gradient is NaN or infinite; nothing was changed by that step."""


class ICLoRA(LightningModule):
    """An adapter on a frozen base, trained to predict the velocity of the target beside its references."""

    def __init__(self, config: Config, base: Base, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.config, self.geometry = config, base.geometry
        self.transformer = transformer_of(base, config.model, device).train()
        self.transformer.recompute = config.model.recompute
        self.adapter = lora.attach(self.transformer, config.model.lora, config.seed)
        compile_as_set(self.transformer, base, config.model)
        self.average = [p.detach().clone() for p in self.adapter] if config.optim.ema is not None else None
        self.recent: list[Tensor] = []  # (2,B) sigma and loss of each batch since the last row of the log
        self.grad_norm = self.lr = 0.0  # of the last optimizer step
        # Every rank loads the base itself: nothing of it is sent to the others.
        self._ddp_params_and_buffers_to_ignore = [n for n, p in self.named_parameters() if not p.requires_grad]
        self.to(device)  # moves nothing, but Lightning's own `device` then says where it is before the Trainer does

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a batch; the loss of each clip is kept for the log."""
        sigma, loss = self.losses(batch, step_generator(self.config.seed, batch_idx, self.global_rank))
        self._refuse_nan(loss, sigma, batch["keys"])
        self.recent.append(torch.stack([sigma, loss.detach()]))
        return loss.mean()

    def losses(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise level and loss of each clip, both (B,), at levels and noise from the generator."""
        draws = draw(batch["target"], self.config.flow, generator)
        tokens, wanted = lay_out(batch, draws, self.config.task, self.geometry)
        learned = wanted.shape[1]
        predicted = self.transformer(tokens, batch["text"], count=learned)
        return draws.sigma, masked_loss(predicted, wanted, tokens.loss_mask[:, :learned])

    def _refuse_nan(self, loss: Tensor, sigma: Tensor, keys: list[str]) -> None:
        if loss.isfinite().all():
            return
        bad = ", ".join(f"{keys[i]} at sigma {sigma[i]:.3f}" for i in (~loss.isfinite()).nonzero().flatten().tolist())
        raise DivergedError(
            f"the loss is not a finite number at step {self.global_step + 1} ({bad}): lower optim.optimizer.lr or "
            "optim.clip_norm, or leave out the clip, under another run=<name>; checkpoints up to here are intact"
        )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm to optim.clip_norm and keep what it was."""
        self.grad_norm = float(torch.nn.utils.clip_grad_norm_(self.adapter, self.config.optim.clip_norm))
        if not math.isfinite(self.grad_norm):
            raise DivergedError(
                f"the gradient is not finite at step {self.global_step + 1}: lower optim.optimizer.lr under another "
                "run=<name>; checkpoints up to here are intact"
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer of optim.optimizer under our schedule, which steps once per optimizer step."""
        settings, optimizer = self.config.optim, self.optimizer()
        steps = self.trainer.max_steps
        schedule = LambdaLR(optimizer, lambda step: rate(step, settings, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer(self) -> Optimizer:
        """A fresh optimizer of optim.optimizer over the adapter."""
        optim = self.config.optim.optimizer
        require("_target_" in optim, "optim.optimizer._target_ is missing: name a class, e.g. torch.optim.AdamW")
        made: Optimizer = instantiate(optim, self.adapter, _convert_="all")
        return made

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """A step of the optimizer, and the averaged copy moved after it."""
        self.lr = float(optimizer.param_groups[0]["lr"])
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None:
            assert self.config.optim.ema is not None
            decay = min(self.config.optim.ema, (1 + self.global_step) / (10 + self.global_step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.adapter], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the `with` the adapter is what is exported: its averaged copy, if optim.ema keeps one."""
        kept = [p.detach().clone() for p in self.adapter]
        self._set(self.average or kept)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.adapter, values, strict=True):
            parameter.copy_(value)

    def cpu(self) -> Self:
        """Lightning's farewell to the GPU; weights that lie in host memory stay there."""
        self.transformer.offload.end()
        return super().cpu()

    def on_fit_start(self) -> None:
        if self.average is not None:
            self.average = [value.to(self.device) for value in self.average]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The base is not saved: only what is trained, and its average."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["average"] = self.average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete the weights with those of the base, so that Lightning's strict loading still checks every key."""
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}
        self.average = checkpoint["average"]

    def take_row(self) -> dict[str, float]:
        """What is logged of the steps since the last call: loss, loss by noise level, gradient norm, learning rate."""
        own = torch.cat(self.recent, dim=1)
        self.recent.clear()
        seen = self.all_gather(own)  # (2,n), or (ranks,2,n)
        assert isinstance(seen, Tensor)
        sigma, loss = seen.reshape(-1, *own.shape).cpu().unbind(1)
        row = {"loss": float(loss.mean())}
        for i in range(BUCKETS):
            inside = loss[(sigma * BUCKETS).long().clamp(max=BUCKETS - 1) == i]
            row[bucket_name(i)] = float(inside.mean()) if len(inside) else math.nan
        return {**row, "grad_norm": self.grad_norm, "lr": self.lr}


def bucket_name(i: int) -> str:
    """Name of the i-th bucket of noise levels, e.g. loss_0.25_0.50."""
    return f"loss_{i / BUCKETS:.2f}_{(i + 1) / BUCKETS:.2f}"


def rate(step: int, optim: Optim, max_steps: int) -> float:
    """Share of the full learning rate at optimizer step `step` (from 0): linear warm-up, then the chosen decay."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    start = max(optim.decay_from * max_steps, optim.warmup_steps)
    if optim.decay == "constant" or step <= start:
        return 1.0
    done = min((step - start) / max(max_steps - start, 1), 1.0)
    return 1 - done if optim.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))

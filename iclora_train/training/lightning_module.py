"""The LightningModule: base, adapter, optimizer, EMA. Glue only: the mathematics is in `diffusion`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from iclora_train.adapters import lora
from iclora_train.config import Config, Optim
from iclora_train.core.process_group import gather
from iclora_train.core.ranks import global_rank
from iclora_train.data.batch import Batch
from iclora_train.diffusion.audio_inputs import require_audio_reference, require_sound
from iclora_train.diffusion.clean_cells import CleanCells
from iclora_train.diffusion.loss import ClipLosses, joint_losses, training_losses
from iclora_train.diffusion.random_draws import draw_audio_reference, draw_random, step_generator
from iclora_train.diffusion.training_inputs import drop_captions
from iclora_train.ltx2.audio.codec import audio_geometry
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.build import build_transformer, compile_from_settings
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.training.optimizer import create_optimizer, learning_rate
from iclora_train.training.step_metrics import DeferredMetrics, DivergedError, Row, source_names


class ICLoRA(LightningModule):
    """A LoRA adapter on a frozen base, trained to predict the velocity of the target given its references.

    empty_text: the text features (T,D) of the empty caption, which flow.caption_dropout_p needs.
    """

    empty_text: Tensor | None

    def __init__(
        self,
        config: Config,
        base: BaseModel,
        device: torch.device | str = "cpu",
        empty_text: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config, self.geometry = config, base.geometry
        self.clean_cells = CleanCells(config.task.conditions, base.geometry.temporal)
        self.audio = audio_geometry(base.checkpoint) if config.model.audio == "on" else None
        self.transformer = build_transformer(base, config.model, device, self.audio is not None).train()
        runner_of(self.transformer).activation_checkpointing = config.model.activation_checkpointing
        self.adapter = lora.attach(self.transformer, config.model.lora, config.seed)
        self.slots: list[nn.Parameter] = []  # the learned slots of task.reference_slots, one tensor
        if config.task.reference_slots:
            self.slots = [lora.attach_slots(self.transformer, len(config.task.reference_names))]
        self.adapter += self.slots
        self.ranks = lora.ranks(self.transformer)
        compile_from_settings(self.transformer, base, config.model)
        self.average = [p.detach().clone() for p in self.adapter] if config.optim.ema is not None else None
        self.register_buffer("empty_text", empty_text, persistent=False)
        self.step_metrics = DeferredMetrics(source_names(config))
        self.stopped = False  # by a signal
        self.lr = 0.0  # learning rate of the last optimizer step, of linears without a factor on it
        self.to(device)  # moves only empty_text; sets Lightning's `device` before the Trainer does

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Tensors that DistributedDataParallel does not send: every rank loads the base itself. Buffers are included,
        because fused weights (`lora_linear.FusedLinear`) are buffers and would be sent before every forward pass."""
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        return frozen + [name for name, _ in self.named_buffers()]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The training loss of a batch. The losses of its clips are added to `step_metrics`.

        The gradient of a step is the mean over its batches, whichever ranks trained them: Lightning divides the loss by
        `accumulate_grad_batches`, DistributedDataParallel the gradients by the number of ranks.
        """
        microbatch = batch_idx % self.trainer.accumulate_grad_batches
        slot = microbatch * self.trainer.world_size + self.global_rank  # as `batch_sampler.BatchSampler`
        losses = self.losses(batch, step_generator(self.config.seed, self.global_step, slot))
        self.step_metrics.add(batch.keys, losses)
        return losses.total(self.config.flow)

    def losses(self, batch: Batch, generator: torch.Generator) -> ClipLosses:
        """Losses of a batch. All random values are drawn from the generator."""
        task = self.config.task
        of_references = (task.more_references, batch.mask, task.reference_uses)
        draws = draw_random(batch.target, self.config.flow, generator, self.clean_cells, *of_references)
        if self.audio is not None:  # drawn last: the draws before it are those without sound
            noise = torch.randn(require_sound(batch)[0].shape, generator=generator)
            require_audio_reference(batch, self.config.task)
            use_audio = draw_audio_reference(draws.use_references, self.config.task.reference_sound, generator)
            draws = replace(draws, audio_noise=noise, use_audio=use_audio)
            return joint_losses(self.transformer, batch, draws, self.config.task, self.geometry, self.audio)
        batch = drop_captions(batch, draws, self.empty_text)
        base_alone = partial(lora.adapter_off, self.transformer) if self.config.flow.preserve_base else None
        return training_losses(self.transformer, batch, draws, self.config.task, self.geometry, base_alone)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient norm to optim.clip_norm. The norm before clipping is added to `step_metrics`."""
        norm = torch.nn.utils.clip_grad_norm_(self.adapter, self.config.optim.clip_norm)
        self.step_metrics.end_step(self.global_step + 1, norm, self.lr)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer of optim.optimizer, and the schedule of the learning rate, which steps with the optimizer."""
        settings, optimizer = self.config.optim, self.optimizer()
        steps = self.trainer.max_steps
        schedule = LambdaLR(optimizer, lambda step: lr_factor(step, settings, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer(self) -> Optimizer:
        """A new optimizer of optim.optimizer for the adapter's parameters."""
        groups = lora.parameter_groups(self.transformer, self.config.model.lora)
        return create_optimizer(self.config.optim.optimizer, groups, self.slots)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step of the optimizer, and an update of the averaged copy (EMA)."""
        self.lr = learning_rate(optimizer)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None:
            assert self.config.optim.ema is not None
            decay = min(self.config.optim.ema, (1 + self.global_step) / (10 + self.global_step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.adapter], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the `with` the adapter has the weights that are exported: the averaged copy if optim.ema is set."""
        trained = [p.detach().clone() for p in self.adapter]
        self._copy_to_adapter(self.average or trained)
        try:
            yield
        finally:
            self._copy_to_adapter(trained)

    @torch.no_grad()
    def _copy_to_adapter(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.adapter, values, strict=True):
            parameter.copy_(value)

    def cpu(self) -> Self:
        """Lightning calls this when training ends. Weights offloaded to host memory stay there.

        Rank 0 frees its GPU for the evaluation. On the other ranks, and after a signal, the base stays on the GPU: the
        process ends, and the copies of all ranks might not fit into the node's host memory.
        """
        runner_of(self.transformer).weight_offload.stop()
        return self if self.stopped or global_rank() > 0 else super().cpu()

    def on_fit_start(self) -> None:
        if self.average is not None:
            self.average = [value.to(self.device) for value in self.average]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the trained parameters and their average, without the base. DivergedError if a step since the last
        `collect_metrics` was not finite (`callbacks.MetricsRecorder` is called before, and logs the rows)."""
        _, diverged = self.collect_metrics()
        if diverged is not None:
            raise diverged
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["average"] = self.average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the weights of the base, so that Lightning's strict loading checks every key. Set the number of batches
        that this rank has trained: it decides when gradients are complete, and differs between numbers of ranks."""
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}
        self.average = checkpoint["average"]
        batches = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        change = batches - progress["current"]["ready"]
        for name in ("total", "current"):
            progress[name] = {event: number + change for event, number in progress[name].items()}

    def collect_metrics(self) -> tuple[list[Row], DivergedError | None]:
        """The rows of the steps since the last call, and the error of the step after them (`DeferredMetrics.collect`).
        The only place in training where the host waits for the device."""
        return self.step_metrics.collect(gather)


def lr_factor(step: int, optim: Optim, max_steps: int) -> float:
    """Factor on the learning rate at optimizer step `step` (from 0): linear warm-up, then optim.decay."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    start = max(optim.decay_from * max_steps, optim.warmup_steps)
    if optim.decay == "constant" or step <= start:
        return 1.0
    decayed = min((step - start) / max(max_steps - start, 1), 1.0)  # share of the decay that has passed
    return 1 - decayed if optim.decay == "linear" else 0.5 * (1 + math.cos(math.pi * decayed))

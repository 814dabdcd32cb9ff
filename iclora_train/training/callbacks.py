"""One row of numbers per optimizer step while training: collected, measured where that is due, handed to `sinks`.

Looking at what a step found makes the host wait for a GPU, so it is done every few steps, and before anything is
measured or saved; on a CPU after every step. The rows are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning import Callback, Trainer

from iclora_train.data.batch import Batch
from iclora_train.ltx2.build import base_dtype
from iclora_train.training.dry_run import peak_memory
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.loggers import MetricLogger
from iclora_train.training.step_metrics import Row
from iclora_train.training.throughput import ThroughputMeter, batch_work, matmul_peak
from iclora_train.training.validation import ValidationClips

EVERY = 10  # optimizer steps between two measurements of throughput, and between two looks at a GPU


class MetricsRecorder(Callback):
    """Collects the row of every optimizer step and hands it to the sinks; held-out losses, the figures of the clips
    that are made, and throughput join it when they are due. A run that diverges ends here (`DivergedError`).

    log_every: steps between two rows with throughput, and between two looks; without it `EVERY`, and on a CPU every
    step is looked at. Throughput leaves out the first step, which may compile, held-out losses, clips and checkpoints.
    """

    def __init__(
        self,
        sinks: list[MetricLogger],
        every: int,
        heldout: Callable[[ICLoRA], Row] | None,
        log_every: int | None = None,
    ) -> None:
        self.sinks, self.every, self.heldout = sinks, every, heldout
        self.log_every, self.look_every = log_every or EVERY, log_every
        self.first = self.done = 0
        self.clips: ValidationClips | None = None

    def setup(self, trainer: Trainer, module: ICLoRA, stage: str) -> None:  # type: ignore[override]
        watching = trainer.callbacks  # type: ignore[attr-defined]
        self.clips = next((callback for callback in watching if isinstance(callback, ValidationClips)), None)

    def on_train_start(self, trainer: Trainer, module: ICLoRA) -> None:  # type: ignore[override]
        self.first = self.done = trainer.global_step
        self.look_every = self.look_every or (1 if module.device.type == "cpu" else EVERY)
        peak = matmul_peak(module.device, base_dtype(module.config.model.precision))
        self.meter = ThroughputMeter(peak, trainer.world_size)
        untrained = self.heldout(module) if self.done == 0 and self.heldout is not None else {}
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink.start(self.done)
        if untrained:
            self._write(trainer, [{"step": 0, **untrained}])

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if self.done > self.first:
            self.meter.resume()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: ICLoRA, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        step, lora = trainer.global_step, module.config.model.lora
        work = batch_work(batch, module.transformer.config, lora.rank, tuple(lora.targets))
        self.meter.add(work, step_done=step > self.done)
        if step == self.done:  # gradients are still being accumulated
            return
        self.done = step
        last = step == trainer.max_steps
        measured = [self.heldout] if self.heldout is not None and (step % self.every == 0 or last) else []
        if self.clips is not None and self.clips.due(trainer):
            measured.append(partial(self.clips.make, trainer))
        assert self.look_every is not None
        if measured or last or step == self.first + 1 or step % self.look_every == 0 or step % self.log_every == 0:
            rows = self._look(trainer, module)
            if last or step % self.log_every == 0:
                rows[-1] |= self._throughput(module)
            if measured:
                self.meter.pause()
                for measure in measured:
                    rows[-1] |= measure(module)
            self._write(trainer, rows)
            self.meter.resume()

    def on_save_checkpoint(self, trainer: Trainer, module: ICLoRA, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """What led to a checkpoint is looked at before it is written, and its rows are in the log."""
        self._write(trainer, self._look(trainer, module))
        self.meter.pause()

    def on_train_end(self, trainer: Trainer, module: ICLoRA) -> None:  # type: ignore[override]
        self._write(trainer, self._look(trainer, module))

    def _look(self, trainer: Trainer, module: ICLoRA) -> list[Row]:
        rows, diverged = module.collect_metrics()
        if diverged is not None:
            self._write(trainer, rows)
            raise diverged
        return rows

    def _throughput(self, module: ICLoRA) -> Row:
        figures = self.meter.collect()
        return figures and {**figures, "memory_gib": peak_memory(module.device)}

    def _write(self, trainer: Trainer, rows: list[Row]) -> None:
        if trainer.is_global_zero and rows:
            for sink in self.sinks:
                sink.write(rows)

    def teardown(self, trainer: Trainer, module: ICLoRA, stage: str) -> None:  # type: ignore[override]
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink.close()

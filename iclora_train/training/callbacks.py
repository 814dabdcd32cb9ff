"""Collects one row of metrics per optimizer step, adds validation and throughput when due, and passes rows to loggers.

Reading the metrics of a step makes the host wait for the GPU. On a GPU the metrics are therefore read every few steps,
and always before validation and before a checkpoint; on a CPU after every step. The rows are the same either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from lightning import Callback, Trainer

from iclora_train.core.process_group import gather
from iclora_train.data.batch import Batch
from iclora_train.ltx2.build import base_dtype
from iclora_train.training.dry_run import peak_memory
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.loggers import MetricLogger
from iclora_train.training.preemption import Preemption, StopRequestedError
from iclora_train.training.step_metrics import Row
from iclora_train.training.throughput import ThroughputMeter, batch_work, matmul_peak, throughput_row
from iclora_train.training.validation_clips import ValidationClips

LOG_EVERY = 10  # optimizer steps between two throughput rows, and between two reads of metrics from a GPU


@dataclass
class PendingRow:
    """The row of a step, whose validations are not done yet. due: of "losses" and "clips"."""

    row: Row
    due: list[str]


class MetricsRecorder(Callback):
    """Writes a row for every optimizer step to `loggers`, and ends a run that diverges (`DivergedError`).

    Validation losses (`validate`, every `validate_every` steps), metrics of the validation clips, and throughput are
    added to the row of their step. A signal interrupts them: then the checkpoint holds the row, and a run that resumes
    from it validates first.

    log_every: steps between two rows with throughput, and between two reads of metrics. None: LOG_EVERY, and on a CPU
    metrics are read after every step. Throughput excludes validation, checkpoints and the first step (which compiles).
    """

    def __init__(
        self,
        loggers: list[MetricLogger],
        validate_every: int,
        validate: Callable[[ICLoRA], Row] | None,
        preemption: Preemption,
        log_every: int | None = None,
    ) -> None:
        self.loggers, self.validate_every, self.validate = loggers, validate_every, validate
        self.preemption = preemption
        self.pending: PendingRow | None = None
        self.started = False  # the loggers
        self.log_every, self.read_every = log_every or LOG_EVERY, log_every
        self.first_step = self.last_step = 0  # the step at which training started; the last finished step
        self.clips: ValidationClips | None = None

    def setup(self, trainer: Trainer, module: ICLoRA, stage: str) -> None:  # type: ignore[override]
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self.clips = next((callback for callback in callbacks if isinstance(callback, ValidationClips)), None)

    def on_fit_start(self, trainer: Trainer, module: ICLoRA) -> None:  # type: ignore[override]
        """Do what a signal has interrupted. (`on_train_start` is not called when the last step is done.)"""
        if self.pending is not None:
            self._start_loggers(trainer, int(self.pending.row["step"]))
            self._validate(trainer, module, self.pending)

    def on_train_start(self, trainer: Trainer, module: ICLoRA) -> None:  # type: ignore[override]
        self.first_step = self.last_step = trainer.global_step
        self.read_every = self.read_every or (1 if module.device.type == "cpu" else LOG_EVERY)
        peak = matmul_peak(module.device, base_dtype(module.config.model.precision))
        self.meter = ThroughputMeter(peak)
        untrained = self.validate(module) if self.first_step == 0 and self.validate is not None else {}
        self._start_loggers(trainer, self.first_step)
        if untrained:
            self._write(trainer, [{"step": 0, **untrained}])

    def _start_loggers(self, trainer: Trainer, step: int) -> None:
        if trainer.is_global_zero and not self.started:
            for logger in self.loggers:
                logger.start(step)
        self.started = True

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if self.last_step > self.first_step:
            self.meter.resume()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: ICLoRA, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        step, work = trainer.global_step, batch_work(batch, module.transformer.config, module.ranks)
        self.meter.add(work, step_done=step > self.last_step)
        if step == self.last_step:  # gradients are still being accumulated
            return
        self.last_step = step
        is_last = step == trainer.max_steps
        due = ["losses"] if self.validate and (step % self.validate_every == 0 or is_last) else []
        due += ["clips"] if self.clips is not None and self.clips.due(trainer) else []
        assert self.read_every is not None
        throughput_due = is_last or step % self.log_every == 0
        if due or throughput_due or step == self.first_step + 1 or step % self.read_every == 0:
            rows = self._collect(trainer, module)
            if throughput_due:
                rows[-1] |= self._throughput(module)
            if due:
                self.meter.pause()
                self._write(trainer, rows[:-1])
                self._validate(trainer, module, PendingRow(rows[-1], due))
            else:
                self._write(trainer, rows)
            self.meter.resume()

    def _validate(self, trainer: Trainer, module: ICLoRA, pending: PendingRow) -> None:
        """Do the validations and write the row. `self.pending` keeps it if a signal ends training before."""
        self.pending = pending
        try:
            while pending.due and self.preemption.stopping is None:
                pending.row |= self._validation(pending.due[0], module, int(pending.row["step"]))
                del pending.due[0]
        except StopRequestedError as stop:
            self.preemption.stopping = stop.number
        if not pending.due:
            self.pending = None
            self._write(trainer, [pending.row])

    def _validation(self, name: str, module: ICLoRA, step: int) -> Row:
        if name == "losses":
            assert self.validate is not None
            return self.validate(module)
        # They may have been switched off since the checkpoint that holds the row.
        return {} if self.clips is None else self.clips.sample_clips(module, step)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: the row that is not written yet."""
        return {} if self.pending is None else {"pending": asdict(self.pending)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pending = PendingRow(**state_dict["pending"])

    def on_save_checkpoint(self, trainer: Trainer, module: ICLoRA, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Check and log all steps up to a checkpoint before it is written."""
        self._write(trainer, self._collect(trainer, module))
        self.meter.pause()

    def on_train_end(self, trainer: Trainer, module: ICLoRA) -> None:  # type: ignore[override]
        self._write(trainer, self._collect(trainer, module))

    def _collect(self, trainer: Trainer, module: ICLoRA) -> list[Row]:
        rows, diverged = module.collect_metrics()
        if diverged is not None:
            self._write(trainer, rows)
            raise diverged
        return rows

    def _throughput(self, module: ICLoRA) -> Row:
        ranks = gather((self.meter.collect(), peak_memory(module.device)))
        row = throughput_row([interval for interval, _ in ranks])
        return row and {**row, "memory_gib": max(memory for _, memory in ranks)}

    def _write(self, trainer: Trainer, rows: list[Row]) -> None:
        if trainer.is_global_zero and rows:
            for logger in self.loggers:
                logger.write(rows)

    def teardown(self, trainer: Trainer, module: ICLoRA, stage: str) -> None:  # type: ignore[override]
        if trainer.is_global_zero:
            for logger in self.loggers:
                logger.close()

"""A signal ends training after the current optimizer step, on all ranks at the same one, with its checkpoint written.

Signals reach the ranks at different moments, or only one of them. So before the last batch of each step every rank puts
the signal that it has recorded (0: none) into an all-reduce, and reads the maximum when it has queued the step:

    host  | queue step k | wait: GPU in k? | queue step k + 1 | wait: GPU in k + 1? |
    GPU           step k - 1               | step k                                 | step k + 1

The wait ends when the GPU begins the batch that was queued last, so the host is at most one batch ahead. It never waits
for the end of a batch. From a signal to the end of its last step there are at most STEPS_TO_STOP steps.

Until the first step of a process is done there is nothing to save. There, signals end the process at once.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from iclora_train.core.process_group import gather
from iclora_train.core.stop_signals import (
    forget_signal,
    recorded_signal,
    start_recording,
    stop_recording,
    unless_stopped,
)
from iclora_train.training.lightning_module import ICLoRA

T = TypeVar("T")
STEPS_TO_STOP = 3  # one that runs, one that is queued, and the one whose all-reduce sees the signal
GRACE = 60.0  # seconds in which a run should end; schedulers rarely give less
SAVING = 10.0  # of them for the checkpoint


class StopTraining(BaseException):  # Lightning turns a KeyboardInterrupt into exit code 1
    """Leaves `Trainer.fit` on all ranks. number: of the signal. line: for the screen."""

    def __init__(self, number: int, line: str) -> None:
        super().__init__(line)
        self.number, self.line = number, line


class StopRequestedError(Exception):
    """A signal has ended work that the ranks do together. All ranks raise it together. number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def gather_work(work: Callable[[], T]) -> list[T]:
    """The results of `work` on all ranks, in order of rank. All ranks call this together.

    StopRequestedError on all ranks when a recorded signal has interrupted the work of one of them. `work` must not
    wait for other ranks. State that the checkpoint needs is to be restored outside of it (`ICLoRA.averaged`).
    """
    result = unless_stopped(lambda: (work(),))
    results = gather((result, recorded_signal() or 0))
    if any(result is None for result, _ in results):
        raise StopRequestedError(max(number for _, number in results))
    return [result[0] for result, _ in results if result is not None]


class Preemption(Callback):
    """Decides whether this step is the last one. It is the first callback; the last, `CheckpointSaver`, ends training.

    stopping: the signal because of which training ends with this step, the same on all ranks; None: it goes on.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stopping: int | None = None
        self.first_step = self.steps = 0  # the step at which training started; the steps since then
        self.step_began: float | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Keep Lightning from handling signals: its handlers wait for other ranks and requeue SLURM jobs themselves."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.first_step = trainer.global_step
        self.agreement = _Agreement(module.device)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.step_began is None:
            self.step_began = time.monotonic()
        self.agreement.begin_batch(ends_step=(batch_idx + 1) % trainer.accumulate_grad_batches == 0)

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        number = self.agreement.end_batch()
        done = trainer.global_step - self.first_step
        if done == self.steps:  # gradients are still being accumulated
            return
        self.steps = done
        self.stopping = self.stopping or number
        assert self.step_began is not None
        if done == 1:
            start_recording()
        elif done == 4:  # the first ones compile, and capture CUDA graphs (`dry_run.STEPS`)
            self._warn_of_long_steps(time.monotonic() - self.step_began)
        self.step_began = None

    def _warn_of_long_steps(self, seconds: float) -> None:
        needed = STEPS_TO_STOP * seconds + SAVING
        if needed > GRACE:
            self.console.print(
                f"note: a step takes {seconds:.0f} s, so a run that is told to stop needs up to {needed:.0f} s for its "
                f"checkpoint. Give it this time, under SLURM with --signal=USR1@{60 * -(-int(needed) // 60)}"
            )

    def on_train_end(self, *_: object) -> None:
        stop_recording()

    def on_exception(self, trainer: Trainer, module: ICLoRA, exception: BaseException) -> None:  # type: ignore[override]
        module.stopped = isinstance(exception, StopTraining)
        if not module.stopped:  # a run that stops ignores further signals until it has ended
            forget_signal()


class _Agreement:
    """The signal that any rank has recorded, exchanged while the GPU works."""

    def __init__(self, device: torch.device) -> None:
        self.several = dist.is_initialized() and dist.get_world_size() > 1
        self.number = torch.zeros((), dtype=torch.int32, device=device)
        self.exchange: dist.Work | None = None
        self.ends_step = False
        self.gpu = _GpuProgress(device) if device.type == "cuda" else None

    def begin_batch(self, ends_step: bool) -> None:
        """Called before a batch is queued. Before the last batch of a step the all-reduce starts."""
        self.ends_step = ends_step
        if ends_step and self.several:
            self.number.fill_(recorded_signal() or 0)
            self.exchange = dist.all_reduce(self.number, dist.ReduceOp.MAX, async_op=True)
        if self.gpu is not None:
            self.gpu.mark(self.number, self.exchange)

    def end_batch(self) -> int | None:
        """Called when a batch is queued. The signal that ends training with this step; None if it goes on."""
        number = self.number if self.gpu is None else self.gpu.wait()
        exchange, self.exchange = self.exchange, None
        if not self.ends_step:
            return None
        if exchange is None:
            return recorded_signal()
        if self.gpu is None:
            exchange.wait()
        return int(number) or None


class _GpuProgress:
    """Bounds how far the host is ahead of the GPU, and copies the exchanged signal beside the computation."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.reached = torch.cuda.Event(blocking=True)  # the host sleeps while it waits
        self.on_host = torch.zeros((), dtype=torch.int32, pin_memory=True)

    def mark(self, number: Tensor, exchange: dist.Work | None) -> None:
        """Remember this point of the compute stream, or, if there is one, the end of the exchange that begins here."""
        if exchange is None:
            self.reached.record(torch.cuda.current_stream(self.stream.device))
            return
        with torch.cuda.stream(self.stream):
            exchange.wait()  # this stream waits, not the host
            self.on_host.copy_(number, non_blocking=True)
            self.reached.record(self.stream)

    def wait(self) -> Tensor:
        """Wait until the GPU has reached the marked point. The exchanged signal () on the host."""
        self.reached.synchronize()
        return self.on_host

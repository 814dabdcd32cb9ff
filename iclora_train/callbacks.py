"""What is shown and logged while training: one row of numbers per optimizer step, to a CSV, to W&B, to the screen."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

from lightning import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from iclora_train import wandb_door
from iclora_train.files import write_whole
from iclora_train.heldout import ValidationClips
from iclora_train.module import ICLoRA
from iclora_train.watch import CONDITIONS

Row = dict[str, float]
LINE_EVERY = 5.0  # seconds between lines where there is no terminal


class Sink(Protocol):
    """Where rows go. `start` tells the step that training goes on from; `close` comes also after an error."""

    def start(self, step: int) -> None: ...
    def write(self, row: Row) -> None: ...
    def close(self) -> None: ...


class Record(Callback):
    """Collects the row of every optimizer step and hands it to the sinks; held-out losses, and the figures of the clips
    that are made, join it when they are due.
    """

    def __init__(self, sinks: list[Sink], every: int, heldout: Callable[[ICLoRA], Row] | None) -> None:
        self.sinks, self.every, self.heldout = sinks, every, heldout
        self.done = 0
        self.clips: ValidationClips | None = None

    def setup(self, trainer: Trainer, module: ICLoRA, stage: str) -> None:  # type: ignore[override]
        watching = trainer.callbacks  # type: ignore[attr-defined]
        self.clips = next((callback for callback in watching if isinstance(callback, ValidationClips)), None)

    def on_train_start(self, trainer: Trainer, module: ICLoRA) -> None:  # type: ignore[override]
        self.done = trainer.global_step
        untrained = self.heldout(module) if self.done == 0 and self.heldout is not None else {}
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink.start(self.done)
        if untrained:
            self._write(trainer, {"step": 0, **untrained})

    def on_train_batch_end(self, trainer: Trainer, module: ICLoRA, *_: object) -> None:  # type: ignore[override]
        step = trainer.global_step
        if step == self.done:  # gradients are still being accumulated
            return
        self.done = step
        row = {"step": step, **module.take_row()}
        if self.heldout is not None and (step % self.every == 0 or step == trainer.max_steps):
            row |= self.heldout(module)
        if self.clips is not None and self.clips.due(trainer):
            row |= self.clips.make(trainer, module)
        self._write(trainer, row)

    def _write(self, trainer: Trainer, row: Row) -> None:
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink.write(row)

    def teardown(self, trainer: Trainer, module: ICLoRA, stage: str) -> None:  # type: ignore[override]
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink.close()


class CsvLog:
    """metrics.csv: one line a step, an empty cell where nothing was measured.

    Going on from step n, the lines after n are dropped: a killed run that is started again ends with the same bytes as
    one that was not. A log that an earlier version began goes on with its columns and the new ones.
    """

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self.columns = path, columns
        self.file: IO[str] | None = None

    def start(self, step: int) -> None:
        kept = []
        if step and self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            header, *rows = csv.reader(line for line in lines if line.endswith("\n"))
            kept = [dict(zip(header, row, strict=True)) for row in rows if int(row[0]) <= step]
            self.columns = [*self.columns, *(name for name in header if name not in self.columns)]
        text = io.StringIO()
        table = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(kept)
        with write_whole(self.path) as whole:
            whole.write(text.getvalue().encode())
        self.file = self.path.open("a", newline="")

    def write(self, row: Row) -> None:
        assert self.file is not None
        cells = ["" if math.isnan(row.get(name, math.nan)) else repr(row[name]) for name in self.columns]
        csv.writer(self.file, lineterminator="\n").writerow(cells)
        self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class WandbLog:
    """Weights & Biases (`wandb_door.start`)."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], arguments: dict[str, Any]) -> None:
        self.folder, self.name, self.config, self.arguments = folder, name, config, arguments
        self.run: Any = None

    def start(self, step: int) -> None:
        self.run = wandb_door.start(self.folder, self.name, self.config, self.arguments)
        self.run.define_metric("*", step_metric="step")

    def write(self, row: Row) -> None:
        assert self.run is not None
        self.run.log({name: value for name, value in row.items() if not math.isnan(value)})

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


class ProgressBar:
    """Step of total, loss, clips per second and time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, clips_per_step: float, console: Console) -> None:
        self.total, self.clips_per_step, self.console = total, clips_per_step, console
        left, about = TimeRemainingColumn(), TextColumn("{task.description}")
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), left, about)
        self.bar = Progress(*columns, console=console) if console.is_terminal else None
        self.task = TaskID(0)
        self.began = self.shown = 0.0
        self.first = 0

    def start(self, step: int) -> None:
        self.began = self.shown = time.monotonic()
        self.first = step
        if step:
            self.console.print(f"going on from step {step}")
        if self.bar is not None:
            self.task = self.bar.add_task("", total=self.total, completed=step)
            self.bar.start()

    def write(self, row: Row) -> None:
        step, now = int(row["step"]), time.monotonic()
        if "heldout_correct" in "".join(row):
            self.console.print(f"step {step}  held-out loss: " + _heldout_line(row))
        if "sampled_psnr" in row:
            other = f", to other targets {row['sampled_psnr_other']:.2f} dB" if "sampled_psnr_other" in row else ""
            self.console.print(f"step {step}  validation clips: PSNR {row['sampled_psnr']:.2f} dB{other}")
        if step == self.first:
            return
        pace = (step - self.first) / (now - self.began)
        about = f"loss {row['loss']:.4f}  {pace * self.clips_per_step:.1f} clips/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=about)
        elif now - self.shown > LINE_EVERY or step == self.total:
            self.shown = now
            left = int((self.total - step) / pace)
            self.console.print(f"step {step}/{self.total}  {about}  {left // 60}:{left % 60:02d} left")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _heldout_line(row: Row) -> str:
    """Means over the noise levels, e.g. `reference correct 0.31, swapped 0.40, none 0.39, base 0.38; control gain +18.4
    %, swap gap +23.7 %`."""
    parts = []
    for which in CONDITIONS:
        values = [value for name, value in row.items() if name.startswith(f"heldout_{which}_")]
        parts.append(f"{which} {sum(values) / len(values):.4f}")
    gain, gap = row["control_gain"], row["swap_gap"]
    return f"reference {', '.join(parts)}; control gain {100 * gain:+.1f} %, swap gap {100 * gap:+.1f} %"

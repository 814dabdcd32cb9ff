"""Where rows go that are made while training: CSV files, Weights & Biases, the screen."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from iclora_train.core import wandb_run
from iclora_train.core.atomic_files import write_atomic
from iclora_train.training.step_metrics import Row
from iclora_train.training.throughput import THROUGHPUT_COLUMNS
from iclora_train.training.validation_metrics import CONDITIONS

LINE_EVERY = 5.0  # seconds between lines where there is no terminal


class MetricLogger(Protocol):
    """Where rows go. `start` tells the step that training goes on from; `close` comes also after an error."""

    def start(self, step: int) -> None: ...
    def write(self, rows: list[Row]) -> None: ...
    def close(self) -> None: ...


class CsvLogger:
    """A line for each row that has any of `columns` besides the step, which is the first; an empty cell for what was
    not measured.

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
        with write_atomic(self.path) as whole:
            whole.write(text.getvalue().encode())
        self.file = self.path.open("a", newline="")

    def write(self, rows: list[Row]) -> None:
        assert self.file is not None
        table = csv.writer(self.file, lineterminator="\n")
        for row in rows:
            cells = ["" if math.isnan(row.get(name, math.nan)) else repr(row[name]) for name in self.columns]
            if any(cells[1:]):
                table.writerow(cells)
        self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class WandbLogger:
    """Weights & Biases (`wandb_run.start_run`)."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], arguments: dict[str, Any]) -> None:
        self.folder, self.name, self.config, self.arguments = folder, name, config, arguments
        self.run: Any = None

    def start(self, step: int) -> None:
        self.run = wandb_run.start_run(self.folder, self.name, self.config, self.arguments)
        self.run.define_metric("*", step_metric="step")

    def write(self, rows: list[Row]) -> None:
        assert self.run is not None
        for row in rows:
            self.run.log({_panel(name): value for name, value in row.items() if not math.isnan(value)})

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


def _panel(name: str) -> str:
    """The key in W&B, which puts what has the same beginning into one section."""
    return f"throughput/{name}" if name in THROUGHPUT_COLUMNS else name


class ProgressBar:
    """Step of total, loss, throughput and time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, console: Console) -> None:
        self.total, self.console = total, console
        left, about = TimeRemainingColumn(), TextColumn("{task.description}")
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), left, about)
        self.bar = Progress(*columns, console=console) if console.is_terminal else None
        self.task = TaskID(0)
        self.began = self.shown = 0.0
        self.first = 0
        self.speed = ""

    def start(self, step: int) -> None:
        self.began = self.shown = time.monotonic()
        self.first = step
        if step:
            self.console.print(f"going on from step {step}")
        if self.bar is not None:
            self.task = self.bar.add_task("", total=self.total, completed=step)
            self.bar.start()

    def write(self, rows: list[Row]) -> None:
        row = rows[-1]
        step, now = int(row["step"]), time.monotonic()
        if "heldout_correct" in "".join(row):
            self.console.print(f"step {step}  held-out loss: " + _heldout_line(row))
        if "sampled_psnr" in row:
            other = f", to other targets {row['sampled_psnr_other']:.2f} dB" if "sampled_psnr_other" in row else ""
            self.console.print(f"step {step}  validation clips: PSNR {row['sampled_psnr']:.2f} dB{other}")
        if step == self.first:
            return
        self.speed = _speed(row) if "s_per_step" in row else self.speed
        about = f"loss {row['loss']:.4f}{self.speed}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=about)
        elif now - self.shown > LINE_EVERY or step == self.total:
            self.shown = now
            left = int((self.total - step) * (now - self.began) / (step - self.first))
            self.console.print(f"step {step}/{self.total}  {about}  {left // 60}:{left % 60:02d} left")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _speed(row: Row) -> str:
    """E.g. `  1.62 s/step  5,120 tokens/s  4.9 clips/s  402 TFLOP/s  MFU 58 %  61.0 GiB`."""
    rates = f"{row['s_per_step']:.3g} s/step  {row['tokens_per_s']:,.0f} tokens/s  {row['clips_per_s']:.3g} clips/s"
    return f"  {rates}  {row['tflops']:.3g} TFLOP/s  MFU {100 * row['mfu']:.0f} %  {row['memory_gib']:.1f} GiB"


def _heldout_line(row: Row) -> str:
    """Means over the noise levels, e.g. `reference correct 0.31, swapped 0.40, none 0.39, base 0.38; control gain +18.4
    %, swap gap +23.7 %`."""
    parts = []
    for which in CONDITIONS:
        values = [value for name, value in row.items() if name.startswith(f"heldout_{which}_")]
        parts.append(f"{which} {sum(values) / len(values):.4f}")
    gain, gap = row["control_gain"], row["swap_gap"]
    return f"reference {', '.join(parts)}; control gain {100 * gain:+.1f} %, swap gap {100 * gap:+.1f} %"

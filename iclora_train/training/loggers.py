"""Loggers of training: the console, CSV files, Weights & Biases."""

from __future__ import annotations

import csv
import io
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console

from iclora_train.config import ConfigError
from iclora_train.core import wandb_run
from iclora_train.core.atomic_files import reraise_disk_full, write_atomic
from iclora_train.core.progress import ProgressBar, progress_bar
from iclora_train.core.wandb_run import failures_printed
from iclora_train.training.metrics_table import KEY, MetricsTable, read_metrics
from iclora_train.training.step_metrics import AUDIO, Row
from iclora_train.training.throughput import THROUGHPUT_COLUMNS
from iclora_train.training.validation_metrics import CONDITIONS, PLAIN_CONDITIONS


class MetricLogger(Protocol):
    """Receives rows of metrics. `start` gets the step that training resumes from (0: a new run). `close` is also called
    after an error.
    """

    def start(self, step: int) -> None: ...
    def write(self, rows: list[Row]) -> None: ...
    def close(self) -> None: ...


class CsvLogger:
    """A CSV file with a line for each row that has any of `columns` besides the step, which is the first column. A cell
    is empty where nothing was measured.

    When a run resumes from step n, lines after n are dropped, and the line of n is not written again (the checkpoint of
    a run that was stopped in a validation holds its row): a run that was killed and resumed ends with the bytes of an
    uninterrupted run. A file begun by an earlier version keeps all of its lines and columns. Damaged lines are left
    out with a warning (`metrics_table`).
    """

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self.columns = path, columns
        self.file: IO[str] | None = None
        self.last = -1  # the step of the last line of the earlier run

    def start(self, step: int) -> None:
        earlier = []
        if step and self.path.exists():
            table = self._read()
            earlier = [row for row in table.rows if int(row[KEY]) <= step]
            self.columns = [*self.columns, *(name for name in table.columns if name not in self.columns)]
            self.last = max((int(row[KEY]) for row in earlier), default=-1)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(earlier)
        with write_atomic(self.path) as file:
            file.write(text.getvalue().encode())
        self.file = self.path.open("a", newline="")

    def _read(self) -> MetricsTable:
        """The table of the earlier run, with a warning about damaged lines."""
        try:
            table = read_metrics(self.path)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read ({error.strerror}): move it away and run again") from error
        if table.problem:
            print(f"warning: {table.problem}", file=sys.stderr)
        return table

    def write(self, rows: list[Row]) -> None:
        assert self.file is not None
        table = csv.writer(self.file, lineterminator="\n")
        with reraise_disk_full(self.path):
            for row in rows:
                cells = ["" if math.isnan(row.get(name, math.nan)) else repr(row[name]) for name in self.columns]
                if any(cells[1:]) and row[KEY] > self.last:
                    table.writerow(cells)
            self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            with reraise_disk_full(self.path):
                self.file.close()


class WandbLogger:
    """A Weights & Biases run (`wandb_run.start_run`). After its first failure it is silent: it never ends training."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], arguments: dict[str, Any]) -> None:
        self.folder, self.name, self.config, self.arguments = folder, name, config, arguments
        self.run: Any = None  # None: disabled, or W&B has failed

    def start(self, step: int) -> None:
        with failures_printed("starting"):
            run = wandb_run.start_run(self.folder, self.name, self.config, self.arguments)
            if run is not None:
                run.define_metric("*", step_metric="step")
            self.run = run

    def write(self, rows: list[Row]) -> None:
        run, self.run = self.run, None
        if run is None:
            return
        with failures_printed("logging"):
            for row in rows:
                run.log({_wandb_key(name): value for name, value in row.items() if not math.isnan(value)})
            self.run = run

    def close(self) -> None:
        if self.run is not None:
            with failures_printed("sending the rest", f"`wandb sync` uploads the files in {self.folder}/wandb"):
                self.run.finish()


def _wandb_key(name: str) -> str:
    """The key in W&B, which shows keys with the same prefix as one section."""
    return f"throughput/{name}" if name in THROUGHPUT_COLUMNS else name


class ConsoleLogger:
    """Progress with loss, throughput and time left, and a line for each validation."""

    def __init__(self, total: int, console: Console) -> None:
        self.total, self.console = total, console
        self.stack = ExitStack()
        self.bar: ProgressBar | None = None
        self.first = 0
        self.speed = ""

    def start(self, step: int) -> None:
        self.first = step
        if step:
            self.console.print(f"resuming from step {step}")
        bar = progress_bar("step", self.total, completed=step, console=self.console)
        self.bar = self.stack.enter_context(bar)

    def write(self, rows: list[Row]) -> None:
        assert self.bar is not None
        row = rows[-1]
        step = int(row["step"])
        if "control_gain" in row or "adapter_gain" in row:
            self.console.print(f"step {step}  validation loss: {_validation_text(row)}")
        if "sampled_psnr" in row:
            other = f", to other targets {row['sampled_psnr_other']:.2f} dB" if "sampled_psnr_other" in row else ""
            self.console.print(f"step {step}  validation clips: PSNR {row['sampled_psnr']:.2f} dB{other}")
        if step > self.first:
            self.speed = _speed_text(row) if "s_per_step" in row else self.speed
            sound = f", sound {row[AUDIO]:.4f}" if AUDIO in row else ""
            self.bar.update(completed=step, note=f"loss {row['loss']:.4f}{sound}{self.speed}")

    def close(self) -> None:
        self.stack.close()


def _speed_text(row: Row) -> str:
    """E.g. `  1.62 s/step  5,120 tokens/s  4.9 clips/s  402 TFLOP/s  MFU 58 %  61.0 GiB`."""
    rates = f"{row['s_per_step']:.3g} s/step  {row['tokens_per_s']:,.0f} tokens/s  {row['clips_per_s']:.3g} clips/s"
    return f"  {rates}  {row['tflops']:.3g} TFLOP/s  MFU {100 * row['mfu']:.0f} %  {row['memory_gib']:.1f} GiB"


def _validation_text(row: Row) -> str:
    """Means over the noise levels, e.g. `reference correct 0.31, swapped 0.40, none 0.39, base 0.38; control gain +18.4
    %, swap gap +23.7 %`; in a task without references `adapter 0.36, base 0.38; adapter gain +5.3 %`. With the sound it
    follows after `sound:`, alone where the video is given."""
    gain = "control_gain" if "control_gain" in row else "adapter_gain"
    video = _stream_text(row, "val", gain, "swap_gap")
    if "audio_gain" not in row:
        return video
    sound = f"sound: {_stream_text(row, 'val_audio', 'audio_gain', 'audio_swap_gap')}"
    return sound if math.isnan(row[gain]) else f"{video}; {sound}"


def _stream_text(row: Row, prefix: str, gain: str, gap: str) -> str:
    """The losses of one stream, whose columns begin with `prefix`, and its metrics."""
    has_reference, means = "control_gain" in row, []
    for condition in CONDITIONS if has_reference else PLAIN_CONDITIONS:
        values = [value for name, value in row.items() if name.startswith(f"{prefix}_{condition}_")]
        mean = sum(values) / len(values) if values else math.nan
        means.append(f"{condition} not measured" if math.isnan(mean) else f"{condition} {mean:.4f}")
    gain_text = f"{gain.replace('_', ' ').removeprefix('audio ')} {100 * row[gain]:+.1f} %"
    if not has_reference:
        adapter, base = means
        return f"{adapter.replace('none', 'adapter')}, {base}; {gain_text}"
    value = row.get(gap, math.nan)
    swap_gap = "not measured" if math.isnan(value) else f"{100 * value:+.1f} %"
    return f"reference {', '.join(means)}; {gain_text}, swap gap {swap_gap}"

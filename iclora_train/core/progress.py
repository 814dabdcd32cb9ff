"""Progress of long work: a bar with throughput and time left on a terminal, a plain line every few seconds elsewhere.

A cluster's log file gets lines such as `encoding 120/512  4.8 clips/s  1:22 left`, without control characters.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from iclora_train.core.console import make_console

LINE_EVERY = 10.0  # seconds between two lines of one bar without a terminal
T = TypeVar("T")


class _RateColumn(ProgressColumn):
    """Throughput of a bar."""

    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed, task.fields["unit"]))


def _rate(per_second: float | None, unit: str) -> str:
    """E.g. `4.8 clips/s` or, below one in a second, `1.62 s/clip`. Empty without a unit."""
    if not per_second or not unit:
        return ""
    plural = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
    return f"{per_second:.1f} {plural}/s" if per_second >= 1 else f"{1 / per_second:.2f} s/{unit}"


class ProgressBar:
    """One bar, created by `progress_bar`. `total` is None as long as it is unknown."""

    def __init__(
        self, console: Console, display: Progress | None, description: str, total: int | None, unit: str, completed: int
    ) -> None:
        self._console, self._display, self._unit = console, display, unit
        self._description, self._total, self._completed, self._note = description, total, completed, ""
        self._skipped = completed  # items that needed no work
        self._printed = completed  # completed items when the last line was printed
        self._started = self._printed_at = time.monotonic()
        self._bars = [self]
        if display is not None:
            self._task = display.add_task(description, total=total, completed=completed, unit=unit, note="")

    def advance(self, count: int = 1) -> None:
        """Count `count` items as done."""
        self.update(completed=self._completed + count)

    def skip(self, count: int) -> None:
        """Count `count` items that need no work, e.g. because an earlier run did them; they do not count as speed."""
        self._skipped += count
        self.advance(count)

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; each counts as done when the next one is requested."""
        for item in items:
            yield item
            self.advance()

    def update(
        self,
        completed: int | None = None,
        total: int | None = None,
        description: str | None = None,
        note: str | None = None,
    ) -> None:
        """Set the arguments that are not None: items done, all items, the text before the bar, the text after it."""
        self._completed = self._completed if completed is None else completed
        self._total = self._total if total is None else total
        self._description = self._description if description is None else description
        self._note = self._note if note is None else note
        if self._display is not None:
            self._display.update(
                self._task,
                completed=self._completed,
                total=self._total,
                description=self._description,
                note=self._note,
            )
        elif time.monotonic() - self._printed_at > LINE_EVERY or self._completed == self._total:
            self._print()

    def add(self, description: str) -> ProgressBar:
        """A second bar below this one, with the same total and unit."""
        bar = ProgressBar(self._console, self._display, description, self._total, self._unit, 0)
        self._bars.append(bar)
        return bar

    def _close(self) -> None:
        for bar in self._bars:
            bar._print()

    def _print(self) -> None:
        """Print a line, unless nothing was completed since the last one. On a terminal the bar shows it instead."""
        if self._display is not None or self._completed == self._printed:
            return
        now, worked = time.monotonic(), self._completed - self._skipped
        rate = worked / (now - self._started) if now > self._started else 0.0
        self._printed, self._printed_at = self._completed, now
        parts = [f"{self._description} {self._completed}" + ("" if self._total is None else f"/{self._total}")]
        parts += [_rate(rate, self._unit), self._note]
        if self._total is not None and rate > 0:
            left = int((self._total - self._completed) / rate)
            parts.append(f"{left // 60}:{left % 60:02d} left")
        self._console.print("  ".join(filter(None, parts)), soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: str = "", completed: int = 0, console: Console | None = None
) -> Iterator[ProgressBar]:
    """A bar on stderr, or on `console`, for `total` items; `completed` is the number already done.

    unit: singular name of an item (`clip`), in which throughput is shown. Without it no throughput is shown.
    """
    console = console or make_console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    display = Progress(*columns, console=console) if console.is_terminal else None
    bar = ProgressBar(console, display, description, total, unit, completed)
    if display is not None:
        display.start()
    try:
        yield bar
    finally:
        if display is not None:
            display.stop()
        bar._close()


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show `text` with a spinner on stderr while the `with` block runs; show nothing if stderr is not a terminal."""
    with make_console(stderr=True).status(Text(text)):
        yield

"""What data_prep shows: progress bars with rate and time left, and the table of what was kept and dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

T = TypeVar("T")


class _Rate(ProgressColumn):
    """Clips per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} clips/s")


class Steps:
    """One bar: wrap what is iterated over, or tell that some were done in an earlier run."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._progress, self._bar = progress, progress.add_task(name, total=total)

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each counted when it is done with."""
        for item in items:
            yield item
            self._progress.advance(self._bar)

    def skip(self, count: int) -> None:
        """Count `count` clips that need no work."""
        self._progress.advance(self._bar, count)


@contextmanager
def steps(name: str, total: int) -> Iterator[Steps]:
    """A bar on stderr for `total` clips."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Steps(progress, name, total)


def show(report: dict[str, Any]) -> None:
    """The table of kept and dropped clips, on stdout."""
    table = Table("split", "clips", "windows", title="kept")
    for split, counts in report["kept"].items():
        table.add_row(split, str(counts["clips"]), str(counts["windows"]))
    console = Console()
    console.print(table)
    if report["dropped"]:
        dropped = Table("clip", "why", title="dropped")
        for clip in report["dropped"]:
            dropped.add_row(clip["clip"], clip["reason"])
        console.print(dropped)

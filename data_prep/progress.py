"""What data_prep shows: progress bars with rate and time left, and the table of what was kept and dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Column, Table
from rich.text import Text

from iclora_train.checks_config import VERDICTS
from iclora_train.progress import progress_with

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

    def beside(self, name: str) -> Steps:
        """One more bar below, for as many."""
        return Steps(self._progress, name, int(self._progress.tasks[self._bar].total or 0))

    def skip(self, count: int) -> None:
        """Count `count` clips that need no work."""
        self._progress.advance(self._bar, count)


@contextmanager
def steps(name: str, total: int) -> Iterator[Steps]:
    """A bar on stderr for `total` clips."""
    with progress_with(_Rate()) as progress:
        yield Steps(progress, name, total)


def show_checks(totals: dict[str, Any]) -> None:
    """The table of what the checks of pairs found (`checks.summarize`), on stdout."""
    pairs = ", ".join(f"{count} {verdict}" for verdict, count in totals["pairs"].items())
    table = Table(
        Column("check", no_wrap=True),
        *VERDICTS,
        "lowest",
        "median",
        "highest",
        "allowed",
        title=f"checks ({pairs})",
        box=SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    for name, found in totals["checks"].items():
        values = (_cell(found[key]) for key in ("low", "median", "high"))
        bounds = " ".join(
            f"{sign}{found[key]:g}" for sign, key in ((">=", "least"), ("<=", "most")) if found[key] is not None
        )
        table.add_row(name, *(str(found[verdict]) for verdict in VERDICTS), *values, bounds)
    Console().print(table)


def _cell(value: float | None) -> str:
    """A value in a table: four digits, a dash for none."""
    return "-" if value is None else f"{value:.4g}"


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

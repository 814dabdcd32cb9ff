"""What is shown while something takes long: a bar with the pace and the time left, or just what is going on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text


class _Pace(ProgressColumn):
    """Seconds a step."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{1 / speed:.2f} s each" if speed else "")


def progress_with(pace: ProgressColumn) -> Progress:
    """Bars on stderr: what, how far, how many of how many, the pace, the time left."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), pace, TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


@contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr for `total` steps; call what it gives with the count of steps just done."""
    with progress_with(_Pace()) as progress:
        task = progress.add_task(name, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """Tell on stderr what is going on, where that is a terminal."""
    with Console(stderr=True).status(doing):
        yield


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

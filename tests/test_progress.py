"""Progress of long work: plain lines in a log file, one bar on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from iclora_train.core import progress
from iclora_train.core.progress import progress_bar


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_file_gets_occasional_lines_without_control_characters(clock: Clock) -> None:
    file = io.StringIO()
    with progress_bar("encoding", 100, "clip", console=Console(file=file, width=20)) as bar:
        for _ in range(100):
            clock.now += 0.5
            bar.advance()
    assert file.getvalue().splitlines() == [
        "encoding 21/100  2.0 clips/s  0:39 left",
        "encoding 42/100  2.0 clips/s  0:29 left",
        "encoding 63/100  2.0 clips/s  0:18 left",
        "encoding 84/100  2.0 clips/s  0:08 left",
        "encoding 100/100  2.0 clips/s  0:00 left",
    ]


def test_skipped_items_do_not_count_as_speed(clock: Clock) -> None:
    file = io.StringIO()
    with progress_bar("making", 50, "clip", console=Console(file=file)) as bar:
        second = bar.add("encoding")
        bar.skip(40)
        clock.now += 20
        assert list(bar.track(range(10))) == list(range(10))
        second.update(completed=5, note="slow")
    assert file.getvalue().splitlines() == [
        "making 41/50  20.00 s/clip  3:00 left",
        "making 50/50  2.00 s/clip  0:00 left",
        "encoding 5/50  4.00 s/clip  slow  3:00 left",
    ]


def test_work_without_a_total_or_without_any_progress(clock: Clock) -> None:
    file = io.StringIO()
    with progress_bar("merging", None, console=Console(file=file)) as bar:
        bar.update(3, 4)
    with progress_bar("nothing", 7, console=Console(file=file)):
        pass
    assert file.getvalue() == "merging 3/4\n"


def test_a_terminal_gets_a_bar_with_rate_and_note() -> None:
    file = io.StringIO()
    with progress_bar(
        "step", 4, "step", completed=1, console=Console(file=file, force_terminal=True, width=160)
    ) as bar:
        bar.update(completed=4, note="loss 0.5")
    output = file.getvalue()
    assert "\x1b[" in output
    assert "4/4" in output
    assert "loss 0.5" in output

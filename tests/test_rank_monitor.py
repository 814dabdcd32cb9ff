"""A rank that has been killed without a word ends the run; one that is slow to start does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from iclora_train.core.rank_monitor import SILENCE, RankMonitor
from iclora_train.core.ranks import Placement
from tests.srun_ranks import free_port


@pytest.fixture
def monitor() -> Iterator[RankMonitor]:
    """The monitor of rank 0 of 2, whose thread is not started."""
    port = free_port()
    store = dist.TCPStore("localhost", port, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    yield RankMonitor(Placement(rank=0, world_size=2, main_port=port), lambda: None)
    del store


def looks(monitor: RankMonitor, number: int = SILENCE + 2) -> bool:
    """Look this often into the store. Returns whether a failure was reported."""
    for _ in range(number):
        monitor._report_silent_ranks()
    return bool(monitor.store.check(["failure"]))


def test_a_rank_that_stops_counting_is_reported(monitor: RankMonitor) -> None:
    monitor.store.add("alive/1", 1)
    assert not looks(monitor, SILENCE)
    monitor.store.add("alive/1", 1)
    assert not looks(monitor, SILENCE)
    assert looks(monitor)
    assert b"no sign of life for 50 s" in monitor.store.get("failure")


def test_a_rank_that_is_still_starting_is_waited_for(monitor: RankMonitor) -> None:
    """torchrun holds the store itself, so a rank may begin to watch minutes before another one has imported torch."""
    assert not looks(monitor)
    monitor.store.add("alive/1", 1)
    assert not looks(monitor, SILENCE)

"""A rank that has been killed without a word ends the run; one that is slow to start does not."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event

import pytest
import torch.distributed as dist

from iclora_train.core import rank_monitor
from iclora_train.core.local_ranks import free_port
from iclora_train.core.rank_monitor import SILENCE, RankMonitor
from iclora_train.core.ranks import Placement


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


def hold_store(port: int) -> None:
    """Hold the store, as the process of rank 0 does."""
    store = dist.TCPStore("localhost", port, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    time.sleep(60)
    del store


def watch_store(port: int, watching: Event) -> None:
    """Watch the ranks, with looks in quick succession."""
    rank_monitor.POLL = 0.05
    with RankMonitor(Placement(rank=1, world_size=2, main_port=port), lambda: None):
        watching.set()
        time.sleep(60)


def test_a_store_that_no_longer_answers_ends_the_rank() -> None:
    """The process that holds it is suspended, or its node is lost without closing its connections."""
    context, port = multiprocessing.get_context("forkserver"), free_port()
    watching = context.Event()
    holder = context.Process(target=hold_store, args=(port,))
    rank = context.Process(target=watch_store, args=(port, watching))
    holder.start()
    rank.start()
    try:
        assert watching.wait(60)
        rank.join(1)
        assert rank.is_alive()
        os.kill(holder.pid or 0, signal.SIGSTOP)
        rank.join(20)
        assert rank.exitcode == 1
    finally:
        for process in (holder, rank):
            process.kill()

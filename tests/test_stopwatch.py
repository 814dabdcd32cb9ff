"""The seconds by part that estimates of a preparation are made from."""

from __future__ import annotations

import time
from pathlib import Path

from data_prep.clips.windows import train_windows
from data_prep.engines.base import Failure
from data_prep.select_clips import select_clips
from data_prep.stopwatch import Stopwatch
from data_prep.write_shards import WorkUnit, process_unit
from tests.prep import config_of, listed, write_clips
from tests.tiny import write_tiny_base


def test_parts_of_the_work_are_measured_apart() -> None:
    watch = Stopwatch()
    for _ in watch.each("decode", (time.sleep(0.02) for _ in range(3))):
        with watch.part("maker"):
            time.sleep(0.001)
    seconds = watch.take()
    assert seconds["decode"] >= 0.06
    assert seconds["maker"] >= 0.003
    assert watch.take() == {}


def test_a_pair_says_what_it_cost_and_all_parts_are_named(tmp_path: Path) -> None:
    config = config_of(tmp_path / "root", write_clips(tmp_path), write_tiny_base(tmp_path / "base"))
    (probed,), _ = select_clips(listed(config)[:1], config)
    windows = train_windows([probed], config.data)[:3]
    begin = time.perf_counter()
    pairs = process_unit(WorkUnit(probed.clip, windows, config))
    elapsed = time.perf_counter() - begin
    assert not isinstance(pairs, Failure)
    for pair in pairs:
        assert set(pair.seconds) == {"decode", "maker", "checks", "compression"}
        assert min(pair.seconds.values()) > 0
    assert 0.5 * elapsed <= sum(sum(pair.seconds.values()) for pair in pairs) <= elapsed

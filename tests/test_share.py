"""Shares: several processes prepare one data set at the same time, and it has the bytes of a set that one prepared."""

from __future__ import annotations

import os
import signal
import time

import pytest

from data_prep import pipeline, write_shards
from data_prep.lost_windows import LostWindowsError
from data_prep.write_shards import WorkUnit, process_unit
from iclora_train.config import ConfigError
from iclora_train.core.atomic_files import exclusive
from tests.command import run, start
from tests.prep import config_of, contents, overrides

MANY = "data.train_windows=70"  # shards train 0 and 1, val, heldout


@pytest.fixture(scope="module")
def alone(tmp_path_factory, clips, base) -> dict[str, bytes]:
    """The files of a set that one process prepared, by path."""
    return contents(pipeline.prepare(config_of(tmp_path_factory.mktemp("alone"), clips, base, MANY)))


def test_shares_that_run_one_after_another_write_their_shards_and_the_last_one_the_index(
    tmp_path, clips, base, alone, capsys
):
    for number, shards in ((2, {"train-000001"}), (3, {"val-000000"})):
        pipeline.prepare(config_of(tmp_path, clips, base, MANY, f"share={number}/3"))
        for kind in ("pairs", "latents"):
            assert shards <= {path.stem for path in (tmp_path / kind).glob("*.tar")}
            assert not (tmp_path / kind / "train-000000.tar").exists()
            assert not (tmp_path / kind / "index.json").exists()
    assert not (tmp_path / "report.json").exists()
    assert "2 shards of other shares are missing" in capsys.readouterr().out
    pipeline.prepare(config_of(tmp_path, clips, base, MANY, "share=1/3"))
    assert contents(tmp_path) == alone
    assert pipeline.prepare(config_of(tmp_path, clips, base, MANY, "share=2/3")) == tmp_path  # nothing to do


def test_shares_that_run_together_and_one_of_which_is_killed_write_the_same_bytes(tmp_path, clips, base, alone):
    command = overrides(tmp_path / "out", clips, base, MANY, "data.workers=0")
    processes = [start(tmp_path, "data_prep", *command, f"share={k}/2", suffix=str(k)) for k in (1, 2)]
    while not list((tmp_path / "out" / "pairs").glob("train-000001.tar*")):  # of the second share
        time.sleep(0.01)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGKILL)
    for process in processes:
        process.join(120)
    assert processes[0].exitcode == 0
    assert not (tmp_path / "out" / "latents" / "index.json").exists()
    assert run(tmp_path, "data_prep", *command, "share=2/2").code == 0
    assert contents(tmp_path / "out") == alone


def test_more_shares_than_shards_are_said(tmp_path, clips, base, alone, capsys):
    pipeline.prepare(config_of(tmp_path, clips, base, MANY, "share=7/7"))
    assert "3 of 7 shares have no shard: ask for 4 at most" in capsys.readouterr().out
    pipeline.prepare(config_of(tmp_path, clips, base, MANY))  # without a share: all that is missing
    assert contents(tmp_path) == alone


@pytest.mark.parametrize("share", ["0/2", "3/2", "2", "1/0", "a/b", "1/2/3"])
def test_a_wrong_share_is_refused(share, tmp_path, clips, base):
    with pytest.raises(ConfigError, match=rf"share={share} must be k/n with k from 1 to n"):
        config_of(tmp_path, clips, base, f"share={share}")


def test_a_share_is_started_once_and_not_beside_a_process_that_prepares_everything(tmp_path, clips, base):
    share = config_of(tmp_path, clips, base, MANY, "share=1/2")
    with (
        exclusive(tmp_path / "in-progress" / "share-1-of-2", ""),
        pytest.raises(ConfigError, match="start each share once"),
    ):
        pipeline.prepare(share)
    process = start(tmp_path, "data_prep", *overrides(tmp_path, clips, base, MANY, "data.workers=0", "share=1/2"))
    while not list((tmp_path / "pairs").glob("*.tar*")):
        time.sleep(0.01)
    with pytest.raises(ConfigError, match="is being written by another process"):
        pipeline.prepare(config_of(tmp_path, clips, base, MANY))
    process.join(120)
    assert process.exitcode == 0


def die_on_clip1(unit: WorkUnit) -> object:
    if unit.clip.id == "clip1":
        os._exit(7)
    return process_unit(unit)


def test_windows_that_a_share_lost_are_listed_as_if_one_process_had_lost_them(tmp_path, clips, base, monkeypatch):
    monkeypatch.setattr(write_shards, "process_unit", die_on_clip1)
    monkeypatch.setattr(pipeline, "SHARD_CLIPS", 12)
    for name, settings in (("one", [[]]), ("many", [["share=2/2"], ["share=1/2"]])):
        *first, last = [config_of(tmp_path / name, clips, base, "data.workers=2", *more) for more in settings]
        for config in first:
            pipeline.prepare(config)
        with pytest.raises(LostWindowsError, match="10 windows are missing"):
            pipeline.prepare(last)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")

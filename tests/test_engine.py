"""Engines of one machine (Ray: test_ray.py): equal shards; only the affected clip is lost when a worker dies."""

import ctypes
import json
import os
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from data_prep import pipeline, write_shards
from data_prep.clips.windows import Window
from data_prep.encode_latents import ClipPair, LatentEncoder
from data_prep.engines import local
from data_prep.engines.base import Engine, Failure
from data_prep.engines.local import WorkerEngine, create_engine
from data_prep.lost_windows import LostWindowsError
from data_prep.write_shards import WorkUnit, process_unit, split_into_units
from iclora_train.config import ConfigError
from iclora_train.data.shard_sample import Members
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text_features import TextFeatures
from tests.clips import write_clip
from tests.engine_tasks import die_of_five, halve, leave_trace, page_faults, sleep_long, threads_of, wait_for
from tests.prep import check_results, config_of, contents, write_clips


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, clips, base) -> dict[str, bytes]:
    """All files of a run in this process, by path."""
    root = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "SHARD_CLIPS", 12)
        pipeline.prepare(config_of(root, clips, base, "data.workers=0"))
    return contents(root)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(pipeline, "SHARD_CLIPS", 12)


# --- engines ---


@pytest.fixture(params=[0, 1, 3], ids="{} workers".format)
def engine(request) -> Iterator[Engine]:
    with closing(create_engine("local", request.param)) as engine:
        yield engine


def test_results_are_ordered_and_config_errors_are_raised(engine):
    check_results(engine)


def test_workers_go_on_while_the_caller_uses_results_that_came_early(tmp_path):
    with closing(create_engine("local", 2)) as engine:
        results = engine.map(leave_trace, [(number, str(tmp_path)) for number in range(6)])
        assert [next(results), next(results)] == [0, 1]  # by now results 2 and 3 are there too
        wait_for(tmp_path / "4")
        assert list(results) == [2, 3, 4, 5]


def test_workers_begin_before_the_caller_asks_for_a_result(tmp_path):
    with closing(create_engine("local", 2)) as engine:
        results = engine.map(leave_trace, [(number, str(tmp_path)) for number in range(1, 4)])
        wait_for(tmp_path / "2")
        assert list(results) == [1, 2, 3]


def test_workers_stop_while_results_that_wait_are_large(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "MOST_BYTES", 1)
    with closing(create_engine("local", 2)) as engine:
        results = engine.map(leave_trace, [(number, str(tmp_path)) for number in range(1, 9)])
        assert next(results) == 1
        time.sleep(0.5)
        assert len(list(tmp_path.iterdir())) == 2  # one item for each worker
        assert list(results) == [*range(2, 9)]


def test_a_worker_uses_one_thread_for_everything(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    with closing(create_engine("local", 1)) as engine:
        assert next(iter(engine.map(threads_of, [clip]))) == (1, 1, 1, 0)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_a_worker_uses_the_memory_of_freed_arrays_again():
    with closing(create_engine("local", 1)) as engine:
        (faults,) = engine.map(page_faults, [2**26])
    assert faults < 10 * 32  # 64 MB are 32 pages of 2 MB, or 16384 of 4 KB


def test_items_are_read_only_a_little_ahead():
    items_read = []

    def items() -> Iterator[int]:
        for number in range(50):
            items_read.append(number)
            yield number

    with closing(WorkerEngine(2)) as engine:
        for done, _ in enumerate(engine.map(halve, items())):
            assert len(items_read) <= done + 4


def test_an_item_is_retried_once_when_its_worker_dies(tmp_path):
    with closing(create_engine("local", 2)) as engine:
        results = list(engine.map(die_of_five, [(number, str(tmp_path)) for number in range(9)]))
    lost = results.pop(5)
    assert results == [0, 1, 2, 3, 4, 6, 7, 8]
    assert isinstance(lost, Failure)
    assert "ended with exit code 7, 2 times" in lost.reason


def test_closing_stops_running_work(tmp_path):
    with closing(WorkerEngine(1)) as engine:
        work = engine.map(halve, range(100))
        next(work)
        work.close()
        assert list(engine.map(halve, [8])) == [4.0]  # not a result of the closed work
        engine.map(halve, range(100)).close()
        assert list(engine.map(halve, [8])) == [4.0]
    with closing(WorkerEngine(1)) as engine:
        engine._workers[0].submit(sleep_long, str(tmp_path / "pid"))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_unknown_engines_are_refused():
    with pytest.raises(ConfigError, match="engine='spark' is not one of local, ray"):
        create_engine("spark", 0)


# --- shards of every engine ---


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_writes_the_same_bytes(workers, tmp_path, clips, base, prepared):
    pipeline.prepare(config_of(tmp_path, clips, base, f"data.workers={workers}"))
    assert contents(tmp_path) == prepared


def die_on_clip1(unit: WorkUnit) -> object:
    if unit.clip.id == "clip1":
        os._exit(7)
    return process_unit(unit)


def test_a_clip_that_kills_its_worker_is_reported_and_the_rest_is_written(
    tmp_path, clips, base, prepared, monkeypatch, capsys
):
    monkeypatch.setattr(write_shards, "process_unit", die_on_clip1)
    config = config_of(tmp_path, clips, base, "data.workers=2")
    with pytest.raises(
        LostWindowsError, match=r"1 clips failed.*10 windows are missing \(clip1: .*exit code 7, 2 times\)"
    ):
        pipeline.prepare(config)
    lost = json.loads((tmp_path / "pairs" / "lost.json").read_text())
    assert {loss["clip"] for loss in lost} == {"clip1"}
    assert sum(len(loss["windows"]) for loss in lost) == 10
    pairs, latents = (ShardSet.open(tmp_path / kind) for kind in ("pairs", "latents"))
    assert [sample.key for sample in pairs.samples] == [sample.key for sample in latents.samples]
    assert {sample.source for sample in pairs.samples} == {"clip0", "clip2", "clip3", "clip4"}
    untouched = [name for name in prepared if "val" in name or "heldout" in name]
    assert [name for name in untouched if contents(tmp_path)[name] != prepared[name]] == []
    monkeypatch.undo()
    assert pipeline.prepare(config) == tmp_path  # reported once; then the shards can be used


def test_lost_windows_of_a_killed_run_are_reported_by_the_next_run(tmp_path, clips, base, monkeypatch):
    monkeypatch.setattr(write_shards, "process_unit", die_on_clip1)
    config = config_of(tmp_path, clips, base, "data.workers=2")
    with pytest.raises(LostWindowsError):
        pipeline.prepare(config)
    (tmp_path / "pairs" / "index.json").unlink()
    monkeypatch.setattr(write_shards, "process_unit", process_unit)
    with pytest.raises(LostWindowsError, match="10 windows are missing"):
        pipeline.prepare(config)


def test_a_clip_that_disappears_during_the_run_is_lost_but_not_the_run(tmp_path, base, monkeypatch):
    clips = write_clips(tmp_path / "clips")
    write_all = write_shards.write_shards

    def delete_and_write(*args: object) -> None:
        (clips.parent / "clip0.mp4").unlink()
        write_all(*args)

    monkeypatch.setattr(pipeline, "write_shards", delete_and_write)
    with pytest.raises(LostWindowsError, match=r"\(clip0: .*clip0\.mp4"):
        pipeline.prepare(config_of(tmp_path / "out", clips, base))


def test_units_bound_the_memory(clips, base, tmp_path):
    config = config_of(tmp_path, clips, base)
    small = [Window("a", i, tuple(range(5)), (32, 32), (0, 0), (32, 32), False, 25.0) for i in range(20)]
    assert [len(unit.windows) for unit in split_into_units(small, {"a": None}, config)] == [8, 8, 4]
    large = [Window("a", i, tuple(range(49)), (544, 960), (0, 0), (544, 960), False, 25.0) for i in range(5)]
    units = list(split_into_units(large, {"a": None}, config))
    assert [len(unit.windows) for unit in units] == [2, 2, 1]
    assert [window for unit in units for window in unit.windows] == large


# --- batches of the VAE ---


def test_out_of_memory_halves_the_batch_without_changing_latents(tmp_path, clips, base, prepared, monkeypatch):
    pipeline.prepare(config_of(tmp_path, clips, base))
    pairs, opened = ShardSet.open(tmp_path / "pairs"), BaseModel.open(str(base))
    encoder = LatentEncoder(opened, TextFeatures(tmp_path, opened))
    encode, sizes = encoder.vae.encode, []

    def small_only(video: torch.Tensor) -> torch.Tensor:
        sizes.append(len(video))
        if len(video) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(video)

    monkeypatch.setattr(encoder.vae, "encode", small_only)
    four = [pairs.read_pair(i) for i in range(4)]
    halved = encoder.encode(four)
    assert sizes == [4, 2, 2, 2, 2]  # targets and references of each half
    whole = LatentEncoder(opened, TextFeatures(tmp_path, opened)).encode(four)
    assert all((a.target - b.target).abs().max() < 1e-4 for a, b in zip(halved, whole, strict=True))
    sizes.clear()
    assert len(encoder.encode_batch([ClipPair(pairs.read_pair(i), "clip") for i in range(12)])) == 12
    assert max(sizes) == 2  # the smaller batch size is remembered
    monkeypatch.setattr(encoder.vae, "encode", lambda video: small_only(video.expand(4, *video.shape[1:])))
    with pytest.raises(ConfigError, match=r"no memory to encode one clip of 32x32x5: stop other programs, or lower"):
        encoder.encode(four[:1])


def test_batches_never_mix_buckets(tmp_path, base, monkeypatch):
    encoded: list[list[ClipPair]] = []
    encode_batch = LatentEncoder.encode_batch

    def record(self: LatentEncoder, batch: list[ClipPair]) -> list[Members]:
        encoded.append(batch)
        return encode_batch(self, batch)

    monkeypatch.setattr(LatentEncoder, "encode_batch", record)
    clips = write_clips(tmp_path / "clips", ("train", "train", "val", "heldout"))
    write_clip(clips.parent / "clip1.mp4", height=48, width=48)
    pipeline.prepare(config_of(tmp_path / "out", clips, base, "data.buckets=[32x32x5,48x32x5]", "data.train_windows=8"))
    batches = [[latent.pair.key for latent in batch] for batch in encoded]
    pairs = ShardSet.open(tmp_path / "out" / "pairs")
    train = [sample for sample in pairs.samples if sample.split == "train"]
    assert batches[:2] == [[sample.key for sample in train[:4]], [sample.key for sample in train[4:]]]
    assert [sample.bucket for sample in train[::4]] == ["48x32x5", "32x32x5"]

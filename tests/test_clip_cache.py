"""What is kept about clips until a preparation is finished equals what reading gives, and no change is missed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from data_prep import clip_cache, pipeline
from data_prep.clip_cache import ClipCache
from data_prep.clips.clip_list import Clip
from iclora_train.core.atomic_files import sha256
from tests.clips import write_clip
from tests.prep import config_of, contents, write_clips
from tests.tiny import write_tiny_base

READERS = ("probe", "analyse_scenes", "make_signature")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that read clips, one for each call. Files count as settled at once."""
    calls: list[str] = []

    def count(name: str) -> Callable[..., Any]:
        function = getattr(clip_cache, name)

        def counting(*args: Any) -> Any:
            calls.append(name)
            return function(*args)

        return counting

    for name in READERS:
        monkeypatch.setattr(clip_cache, name, count(name))
    monkeypatch.setattr(clip_cache, "SETTLED", 0.0)
    return calls


def known(cache: ClipCache, path: Path) -> list[object]:
    """Everything that a cache says about a clip, comparable."""
    info, scenes = cache.probe(path), cache.scenes(path)
    signature = cache.signature(Clip("a", path, "train"), info, "0" * 64)
    times = [list(info.times.ticks), info.times.tick, info.times.rate, info.times.is_constant]
    rest = {name: value for name, value in vars(info).items() if name != "times"}
    seen = {**asdict(signature), "hashes": signature.hashes.tolist()}
    return [cache.digest(path, sha256), times, rest, scenes.cuts, scenes.quality.tolist(), seen]


@pytest.mark.parametrize("name", ["a.mp4", "b.gif"])
def test_a_second_process_reads_nothing_again_and_knows_the_same(name, tmp_path, counted):
    path = write_clip(tmp_path / "a.mp4")
    if name == "b.gif":  # a variable rate
        from PIL import Image  # noqa: PLC0415

        frames = [Image.new("RGB", (64, 48), (10 * i, 0, 0)) for i in range(8)]
        path = tmp_path / name
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=[40, 40, 40, 700, 40, 40, 40, 40])
    first = known(ClipCache(tmp_path / "cache"), path)
    assert sorted(counted) == sorted(READERS)
    assert known(ClipCache(tmp_path / "cache"), path) == first
    assert len(counted) == len(READERS)
    assert known(ClipCache(), path) == first


def test_changed_files_are_read_again(tmp_path, counted):
    path, other = write_clip(tmp_path / "a.mp4"), write_clip(tmp_path / "b.mp4", frames=30, seed=1)
    before = known(ClipCache(tmp_path / "cache"), path)
    times = path.stat()
    shutil.copy(other, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as by `cp -p` and rsync; the change time tells
    after = known(ClipCache(tmp_path / "cache"), path)
    assert after != before
    assert after == known(ClipCache(), path)


def test_incomplete_lines_are_ignored(tmp_path, counted):
    path = write_clip(tmp_path / "a.mp4")
    before = known(ClipCache(tmp_path / "cache"), path)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-20])
    assert known(ClipCache(tmp_path / "cache"), path) == before
    assert len(counted) == 2 * len(READERS)


def test_files_that_have_just_changed_are_not_kept(tmp_path):
    ClipCache(tmp_path / "cache").digest(write_clip(tmp_path / "a.mp4"), sha256)
    assert not (tmp_path / "cache").exists()


def test_a_preparation_that_was_killed_while_it_read_the_clips_reads_only_the_rest(tmp_path, counted, monkeypatch):
    base, clips = write_tiny_base(tmp_path / "base"), write_clips(tmp_path / "clips")
    pipeline.prepare(config_of(tmp_path / "one", clips, base))
    counted.clear()
    config = config_of(tmp_path / "two", clips, base)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "settle_clips", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception, match="stopped"):
            pipeline.prepare(config)
    assert counted == ["probe"] * 5
    pipeline.prepare(config)
    assert counted == ["probe"] * 5 + ["make_signature"] * 5
    assert contents(tmp_path / "two") == contents(tmp_path / "one")

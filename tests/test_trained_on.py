"""An adapter knows the clips that it was trained on, and is not judged on them, whichever data.root they are in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep import pipeline
from eval.clips.leakage import require_unseen
from iclora_train.config import Config, ConfigError
from iclora_train.core.atomic_files import sha256
from iclora_train.core.records import DamagedFileError
from iclora_train.data.clip_hashes import (
    HASHES_FILE,
    KnownClip,
    known_clips,
    read_trained_on,
    trained_on_file,
    write_trained_on,
)
from iclora_train.data.shards import ShardSet
from iclora_train.media.shard_clip import encode_clip
from tests.clips import moving
from tests.eval_world import World, build, refused
from tests.prep import config_of, write_clips

MakeRoot = Callable[[str, dict[str, tuple[str, int]]], Config]  # name, clip -> (split, seed of its texture)


@pytest.fixture
def prepared(tmp_path: Path, base: Path) -> MakeRoot:
    """Prepares a data.root of clips that show the texture of a seed, compressed in another way in each root."""

    def prepare(name: str, clips: dict[str, tuple[str, int]]) -> Config:
        folder = tmp_path / f"clips-{name}"
        folder.mkdir()
        rows = ["id,video,caption,split"]
        for clip, (split, seed) in clips.items():
            side = 48 + 16 * len(list(tmp_path.glob("clips-*")))
            frames = np.stack([cv2.resize(frame, (side, side)) for frame in moving(24, 64, 64, seed)])
            (folder / f"{clip}.mp4").write_bytes(encode_clip(frames, 25.0, lossless=False))
            rows.append(f"{clip},{clip}.mp4,a moving texture,{split}")
        (folder / "list.csv").write_text("\n".join(rows))
        config = config_of(tmp_path / name, folder / "list.csv", base)
        pipeline.prepare(config)
        return config

    return prepare


def adapter_of(config: Config, tmp_path: Path) -> Path:
    """A file in the place of an adapter that was trained on a data.root."""
    adapter = tmp_path / "mine.safetensors"
    adapter.write_bytes(b"weights")
    write_trained_on(adapter, Path(config.data.root), ShardSet.open(Path(config.data.root, "latents")))
    return adapter


def held_out(config: Config) -> dict[str, KnownClip]:
    shards = ShardSet.open(Path(config.data.root, "pairs"))
    return known_clips(Path(config.data.root), shards, {shards.samples[i].source for i in shards.indices("heldout")})


def test_a_training_clip_that_is_held_out_in_another_root_is_found_though_it_was_compressed_again(
    prepared: MakeRoot, tmp_path: Path
) -> None:
    mine = prepared("mine", {"sea": ("train", 1), "cat": ("train", 2), "dog": ("val", 3), "fox": ("heldout", 4)})
    adapter = adapter_of(mine, tmp_path)
    trained = read_trained_on(adapter)
    assert trained is not None
    assert set(trained.clips) == {"sea", "cat"}
    assert require_unseen(mine, adapter, held_out(mine), set()) is None

    other = prepared("other", {"a": ("train", 7), "b": ("val", 8), "c": ("heldout", 9), "d": ("heldout", 2)})
    files = Path(mine.data.clips).parent, Path(other.data.clips).parent
    assert (files[0] / "cat.mp4").read_bytes() != (files[1] / "d.mp4").read_bytes()
    message = r"leakage: .*mine\.safetensors was trained on 1 of the 2 clips .*\(d (shows|is).* cat\)"
    with pytest.raises(ConfigError, match=message):
        require_unseen(other, adapter, held_out(other), set())
    assert require_unseen(other, adapter, held_out(other), {"d"}) is None  # divided on purpose


def test_without_hashes_of_frames_clips_are_compared_by_file_and_recording_and_it_says_so(
    tmp_path: Path, base: Path
) -> None:
    clips = write_clips(tmp_path / "clips", ("train", "train", "val", "heldout"))
    config = config_of(tmp_path / "old", clips, base)
    pipeline.prepare(config)
    (tmp_path / "old" / HASHES_FILE).unlink()  # as version 0.1 has left it
    adapter = adapter_of(config, tmp_path)
    note = require_unseen(config, adapter, held_out(config), set())
    assert note is not None
    assert "by recording and file only" in note
    trained = read_trained_on(adapter)
    assert trained is not None
    with pytest.raises(ConfigError, match="new is the same file as clip1"):
        require_unseen(config, adapter, {"new": KnownClip("", trained.clips["clip1"].video)}, set())


def test_a_list_of_another_adapter_is_not_used_and_a_damaged_one_is_refused(tmp_path: Path, world: World) -> None:
    adapter = tmp_path / "mine.safetensors"
    adapter.write_bytes(b"weights")
    trained_on_file(adapter).write_text(json.dumps({"adapter": "0" * 64, "clips": {}}))
    assert read_trained_on(adapter) is None
    note = require_unseen(world.config(), adapter, {"a": KnownClip()}, set())
    assert note is not None
    assert "cannot be checked" in note
    trained_on_file(adapter).write_text("{")
    with pytest.raises(DamagedFileError, match=r"mine\.trained_on\.json"):
        read_trained_on(adapter)


def test_an_evaluation_on_a_recording_of_the_training_is_refused_before_it_begins(tmp_path: Path) -> None:
    world = build(tmp_path, recording=lambda clip: f"recording of {clip}")
    listed = {"x": {"recording": "recording of dog", "video": "", "frames": []}}
    trained = {"adapter": sha256(world.adapter), "clips": listed}
    trained_on_file(world.adapter).write_text(json.dumps(trained))
    refused(world.config(), r"leakage: .*adapter\.safetensors was trained on 1 of the 2 clips")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("world"))


def test_hashes_of_a_root_are_those_of_all_its_clips(prepared: MakeRoot) -> None:
    config = prepared("all", {"sea": ("train", 1), "cat": ("train", 2), "dog": ("val", 3), "fox": ("heldout", 4)})
    stored = json.loads(Path(config.data.root, HASHES_FILE).read_text())
    assert set(stored) == {"sea", "cat", "dog", "fox"}
    assert all(len(text) == 64 for clip in stored.values() for text in clip["frames"])
    assert all(clip["frames"] for clip in stored.values())

"""data.keep: which pixels of the train windows stay on disk. Latents never depend on it."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from data_prep import pipeline
from data_prep.verify import verify
from data_prep.write_shards import kept_pixels
from iclora_train.core.fingerprint import config_hash, content_settings
from iclora_train.data.heldout import EvaluationPlan
from iclora_train.data.shard_index import ShardError
from iclora_train.data.shards import ShardSet
from tests.command import start
from tests.prep import config_of, contents, overrides, write_clips

TRAIN = ("train-000000.tar", "train-000001.tar", "train-000002.tar")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), ("train", "train", "val", "heldout", "heldout"))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(pipeline, "SHARD_CLIPS", 12)


@pytest.fixture(scope="module")
def sets(tmp_path_factory, clips, base) -> dict[str, Path]:
    """A prepared folder for each value of data.keep."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "SHARD_CLIPS", 12)
        for keep in ("lossless", "preview", "none"):
            root = tmp_path_factory.mktemp(keep)
            folders[keep] = pipeline.prepare(config_of(root, clips, base, f"data.keep={keep}"))
    return folders


def files(root: Path) -> dict[str, bytes]:
    """The files that do not hold or count pixels of train windows."""
    return {
        name: data
        for name, data in contents(root).items()
        if not name.startswith("pairs/train") and name != "pairs/index.json"
    }


def test_latents_checks_and_held_out_pairs_are_the_same_whatever_is_kept(sets):
    assert files(sets["lossless"]) == files(sets["preview"]) == files(sets["none"])
    assert "latents/train-000000.tar" in files(sets["none"])
    assert "pairs/heldout-000000.tar" in files(sets["none"])


def test_previews_are_small_videos_of_every_train_window_and_none_keeps_only_the_record(sets):
    lossless, preview, none = (ShardSet.open(sets[keep] / "pairs") for keep in ("lossless", "preview", "none"))
    for i in lossless.indices("train"):
        pair, previews = lossless.read_pair(i), preview.read_previews(i)
        assert previews.keys() == {"target", "reference0"}
        assert abs(previews["target"].astype(int) - pair.target).mean() < 12  # noise-like clips of 32x32
        assert preview.record(i).record == none.record(i).record == pair.record
        assert none.read_previews(i) == {}
    size = {keep: sum((folder / "pairs" / name).stat().st_size for name in TRAIN) for keep, folder in sets.items()}
    assert size["none"] < size["preview"] < size["lossless"]


def test_pixels_that_are_not_kept_are_an_error_with_the_remedy(sets):
    pairs = ShardSet.open(sets["preview"] / "pairs")
    with pytest.raises(ShardError, match=r"made with data\.keep=preview: .* run data_prep with data\.keep=lossless"):
        pairs.read_pair(pairs.indices("train")[0])
    assert pairs.read_pair(pairs.indices("heldout")[0]).target.shape == (5, 32, 32, 3)


def test_verify_and_evaluation_accept_every_value(sets, clips, base):
    for keep, root in sets.items():
        assert verify(str(root), 0, config_of(root, clips, base)) == []
        plan = EvaluationPlan.of(config_of(root, clips, base, f"data.keep={keep}"))
        keys = {sample.key: i for i, sample in enumerate(plan.pairs.samples)}
        assert all(plan.pairs.read_pair(keys[sample.key]).references for sample in plan.samples)


def test_a_finished_set_is_accepted_whatever_keep_says(sets, clips, base):
    before = contents(sets["preview"])
    for keep in ("none", "lossless", "null"):
        pipeline.prepare(config_of(sets["preview"], clips, base, f"data.keep={keep}"))
    assert contents(sets["preview"]) == before
    values = [config_of(Path("x"), clips, base, f"data.keep={keep}") for keep in ("none", "lossless")]
    assert content_settings(values[0]) == content_settings(values[1])
    assert config_hash(values[0]) == config_hash(values[1])


def test_latents_are_made_from_stored_pixels_and_missing_pixels_again_from_the_clips(sets, tmp_path, clips, base):
    for keep in sets:
        root = Path(shutil.copytree(sets[keep], tmp_path / keep))
        shutil.rmtree(root / "latents")
        pipeline.prepare(config_of(root, clips, base, f"data.keep={keep}"))
        assert contents(root) == contents(sets[keep])
    root = tmp_path / "preview"
    shutil.rmtree(root / "pairs")
    modified = {path: path.stat().st_mtime_ns for path in root.glob("latents/*.tar")}
    pipeline.prepare(config_of(root, clips, base, "data.keep=lossless"))
    assert contents(root) == contents(sets["lossless"])
    assert {path: path.stat().st_mtime_ns for path in root.glob("latents/*.tar")} == modified


def test_one_train_shard_of_a_finished_set_can_be_made_smaller(sets, tmp_path, clips, base):
    root = Path(shutil.copytree(sets["lossless"], tmp_path / "root"))
    (root / "pairs" / TRAIN[0]).unlink()
    pipeline.prepare(config_of(root, clips, base, "data.keep=none"))
    expected = contents(sets["lossless"])
    now = contents(root)
    assert now[f"pairs/{TRAIN[0]}"] == contents(sets["none"])[f"pairs/{TRAIN[0]}"]
    assert {name for name in now if now[name] != expected[name]} == {f"pairs/{TRAIN[0]}", "pairs/index.json"}
    assert verify(str(root)) == []


@pytest.mark.parametrize("keep", ["preview", "none"])
def test_killed_and_resumed_the_bytes_are_the_same(keep, tmp_path, clips, base, monkeypatch):
    monkeypatch.setattr(pipeline, "SHARD_CLIPS", 64)  # as in the command that is killed
    whole = pipeline.prepare(config_of(tmp_path / "whole", clips, base, f"data.keep={keep}"))
    command = [*overrides(tmp_path / "out", clips, base, f"data.keep={keep}"), "data.workers=2"]
    process = start(tmp_path, "data_prep", *command)
    while process.is_alive() and not list((tmp_path / "out").rglob("*.tar.tmp")):
        time.sleep(0.002)
    process.join(0.3)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    pipeline.prepare(config_of(tmp_path / "out", clips, base, f"data.keep={keep}", "data.workers=3"))
    latents = {name: data for name, data in contents(tmp_path / "out").items() if name.startswith("latents/")}
    assert latents == {name: data for name, data in contents(whole).items() if name.startswith("latents/")}
    assert verify(str(tmp_path / "out")) == []


def test_by_default_real_bases_keep_previews_and_nano_keeps_everything(clips, base):
    assert kept_pixels(config_of(Path("x"), clips, base, "data.keep=null"), "train") == "preview"
    assert kept_pixels(config_of(Path("x"), clips, base, "data.keep=null", "model.checkpoint=nano"), "train") == (
        "lossless"
    )
    assert kept_pixels(config_of(Path("x"), clips, base, "data.keep=none"), "heldout") == "lossless"


def test_a_damaged_preview_is_reported(sets, tmp_path):
    root = Path(shutil.copytree(sets["preview"], tmp_path / "root"))
    path = root / "pairs" / "index.json"
    assert json.loads(path.read_text())["splits"]["train"] == 30
    shard = root / "pairs" / TRAIN[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert [problem for problem in verify(str(root)) if "is damaged: delete it" in problem]

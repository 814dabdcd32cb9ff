"""Damaged and hostile files: each reader gives the right result, or one line with the file and the remedy."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from data_prep.checks import CheckLog, require_no_failure
from data_prep.checks.dataset import read_check_totals
from data_prep.checks.report import summarize
from data_prep.lost_windows import LostWindows
from data_prep.verify import verify
from iclora_train.config import ConfigError
from iclora_train.config.checks import Checks
from iclora_train.core.fingerprint import digest
from iclora_train.data.shard_index import ShardError, index_digest, require_fingerprint
from iclora_train.data.shard_sample import load_text_features, save_text_features
from iclora_train.data.shards import EMPTY_TEXT_FILE, ShardSet, ShardWriter
from tests.damage import check_reader, damaged_bytes, damaged_json, outcome

FILES = Path(__file__).parent / "version_0_1" / "shards"
MANY = ("settings", "sources")  # of a fingerprint: their fields are not read one by one
SHARDS = ["train-000000.tar", "val-000000.tar", "heldout-000000.tar"]


@pytest.fixture(params=["version 0.1", "current"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Shards of version 0.1, without checksums of index and texts, or as they are written now."""
    folder = Path(shutil.copytree(FILES, tmp_path / "shards"))
    if request.param == "current":
        for kind in ("pairs", "latents"):
            shards = ShardSet.open(folder / kind)
            (folder / kind / "index.json").unlink()
            ShardWriter(folder / kind, kind, shards.fingerprint).finish(SHARDS)
        for path in folder.rglob("*.safetensors"):
            save_text_features(path, load_text_features(path))
    return folder


def has_checksums(root: Path) -> bool:
    return "sha256" in json.loads((root / "latents/index.json").read_text())


def read_set(folder: Path) -> list[Any]:
    """Everything that a run reads of a set: the first sample of each split, captions, settings, base."""
    shards = ShardSet.open(folder)
    read = shards.read_pair if folder.name == "pairs" else shards.read_latents
    first = [shards.indices(split)[0] for split in ("train", "val", "heldout") if shards.indices(split)]
    if folder.name == "latents":
        shards.require_base("tiny", shards.made_from.base.parts)
    return [shards.samples, shards.made_from, [(read(i), shards.caption(i)) for i in first]]


@pytest.mark.parametrize("kind", ["pairs", "latents"])
def test_an_index(root: Path, kind: str) -> None:
    path = root / kind / "index.json"
    variants = chain(damaged_bytes(path.read_bytes()), damaged_json(json.loads(path.read_text()), 1, MANY))
    assert check_reader(path, lambda: read_set(root / kind), variants, detects=has_checksums(root)) > 300


@pytest.mark.parametrize("kind", ["pairs", "latents"])
def test_an_index_with_a_right_checksum(root: Path, kind: str) -> None:
    """A hostile index has right checksums: every field in turn gets other types and values."""
    path = root / kind / "index.json"
    index = json.loads(path.read_text())

    def signed(data: bytes) -> bytes:
        try:
            value = json.loads(data)
            value["fingerprint"]["sha256"] = digest(value["fingerprint"]["of"])
            return json.dumps(value | {"sha256": index_digest(value)}).encode()
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return data

    variants = ((name, signed(data)) for name, data in damaged_json(index, 1, MANY))
    assert check_reader(path, lambda: read_set(root / kind), variants, detects=False) > 100


def test_an_index_does_not_make_a_reader_allocate_what_it_claims(root: Path) -> None:
    path = root / "latents" / "index.json"
    index = json.loads(path.read_text())
    index["samples"][0]["size"] = 30_000_000_000
    path.write_text(json.dumps(index))
    tracemalloc.start()
    with pytest.raises(ShardError, match=r"does not lie in its shard\): delete it"):
        ShardSet.open(path.parent).read_latents(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("kind", ["pairs", "latents"])
def test_a_shard(root: Path, kind: str) -> None:
    path = root / kind / "val-000000.tar"
    variants = damaged_bytes(path.read_bytes(), flips=40)
    check_reader(path, lambda: read_set(root / kind), variants, detects=True)


@pytest.mark.parametrize("kind", ["pairs", "latents"])
def test_a_shard_of_an_unfinished_set(root: Path, kind: str) -> None:
    """Without an index there are no checksums, but a tar that ends too early or has a damaged header is noticed."""
    folder, path = root / kind, root / kind / "val-000000.tar"
    fingerprint = ShardSet.open(folder).fingerprint
    (folder / "index.json").unlink()

    def read() -> list[Any]:
        return [s.key for s in ShardWriter(folder, kind, fingerprint).unfinished(SHARDS).samples]

    data = path.read_bytes()
    check_reader(path, read, damaged_bytes(data, flips=60), detects=False)
    for blocks in range(1, len(data) // 512 - 2):
        path.write_bytes(data[: 512 * blocks])
        result = outcome(read, path)
        assert isinstance(result, ShardError) or not any(data[512 * blocks :]), f"cut at block {blocks}"


@pytest.mark.parametrize("name", ["latents/empty.safetensors", "texts-6573268a/12ae32cb1ec02d01eda3581b.safetensors"])
def test_text_features(root: Path, name: str) -> None:
    path = root / name

    def read() -> Any:
        if path.name == EMPTY_TEXT_FILE:
            return ShardSet.open(path.parent).empty_text().tolist()
        problems = [problem for problem in verify(str(root)) if "texts-" in problem]
        if problems:
            raise ConfigError(problems[0])
        return load_text_features(path).tolist()

    data = path.read_bytes()
    flips = 300 if path.name == EMPTY_TEXT_FILE else 20
    assert check_reader(path, read, damaged_bytes(data, flips=flips), detects=has_checksums(root)) > 8


@pytest.mark.parametrize("kind", ["pairs", "latents"])
def test_a_fingerprint(root: Path, kind: str) -> None:
    path = root / kind / "fingerprint.json"
    fingerprint = json.loads(path.read_text())
    variants = list(chain(damaged_bytes(path.read_bytes()), damaged_json(fingerprint, 1, MANY)))
    check_reader(path, lambda: require_fingerprint(path.parent, fingerprint), iter(variants), detects=True)
    (path.parent / "index.json").unlink()
    check_reader(path, lambda: require_fingerprint(path.parent, fingerprint), iter(variants), detects=True)


def test_a_damaged_fingerprint_is_restored_from_the_index_and_tars_without_one_are_refused(root: Path) -> None:
    folder = root / "latents"
    path, intact = folder / "fingerprint.json", (folder / "fingerprint.json").read_bytes()
    fingerprint = json.loads(intact)
    path.write_bytes(intact[:100])
    assert require_fingerprint(folder, fingerprint)
    assert json.loads(path.read_bytes()) == fingerprint
    (folder / "index.json").unlink()
    path.unlink()
    with pytest.raises(ShardError, match=r"\.tar has no fingerprint\.json .*: delete .*latents and run data_prep"):
        require_fingerprint(folder, fingerprint)


def test_a_report_and_the_logs_of_the_checks(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, limits = root / "report.json", Checks().limits()

    def read_report() -> Any:
        totals = read_check_totals(root)
        if totals is not None:
            require_no_failure(totals, root)
        return totals

    value = json.loads(report.read_text())
    variants = chain(damaged_bytes(report.read_bytes()), damaged_json(value, items=1))
    check_reader(report, read_report, variants, detects=False)
    assert "report.json is damaged" in capsys.readouterr().err
    log = CheckLog(root, "0a3e4711")
    for name in ("train-000000", "clips", "later"):
        path = root / "checks-0a3e4711" / f"{name}.jsonl"
        first, *rest = path.read_bytes().splitlines(keepends=True)
        lines = ((case, data + b"\n" + b"".join(rest)) for case, data in damaged_json(json.loads(first), items=1))
        variants = chain(damaged_bytes(path.read_bytes()), lines)
        assert check_reader(path, lambda: summarize((e for e, _ in log.entries()), limits), variants, False) > 100


def test_the_list_of_lost_windows(root: Path) -> None:
    path = root / "pairs" / "lost.json"
    entry = {"clip": "a", "shard": "val-000000.tar", "windows": [1, 2], "reason": "it has ended"}
    path.write_text(json.dumps([entry]))
    writer = ShardWriter(root / "pairs", "pairs", ShardSet.open(root / "pairs").fingerprint)
    variants = chain(damaged_bytes(path.read_bytes()), damaged_json([entry]))

    def read() -> None:
        LostWindows(writer, writer.folder / "lost.json").raise_if_any([])

    with pytest.raises(ConfigError, match="2 windows are missing"):
        read()
    for _, data in variants:
        path.write_bytes(data)
        outcome(read, path)


def make_special(path: Path, kind: str) -> None:
    path.unlink()
    make: dict[str, Callable[[], Any]] = {
        "a pipe": lambda: os.mkfifo(path),
        "a link to a device that never ends": lambda: path.symlink_to("/dev/zero"),
        "a folder": path.mkdir,
        "a loop of links": lambda: path.symlink_to(path),
        "nothing": lambda: None,
    }
    make[kind]()


SPECIAL_FILES = ["latents/val-000000.tar", "latents/index.json", "latents/empty.safetensors", "report.json"]
SPECIAL = ["a pipe", "a link to a device that never ends", "a folder", "a loop of links", "nothing"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", SPECIAL_FILES)
def test_something_else_than_a_file(root: Path, name: str, kind: str) -> None:
    opened = ShardSet.open(root / "latents")
    make_special(root / name, kind)
    expected = name != "report.json"
    problems = verify(str(root))
    assert any(Path(name).name in problem for problem in problems) == expected  # verify does not read report.json
    outcome(lambda: read_set(root / "latents"), name, "latents")
    assert read_check_totals(root) is None or name != "report.json"
    if name.endswith(".tar"):
        index = opened.indices("val")[0]
        for read in (opened.read_latents, opened.caption):
            assert isinstance(outcome(lambda read=read: read(index), name), ShardError)
        with pytest.raises(ShardError, match=r"val-000000\.tar"):
            opened.verify()


def test_every_damage_is_reported_by_verify(root: Path) -> None:
    """verify lists what is wrong and never ends with an exception, whatever is damaged."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.parent.name in ("pairs", "latents"):
            original = path.read_bytes()
            for name, data in [
                case for case in damaged_bytes(original, flips=1) if case[0].startswith(("zeros", "bit"))
            ]:
                path.write_bytes(data)
                problems = verify(str(root))
                if path.name == EMPTY_TEXT_FILE and not has_checksums(root):
                    continue  # other numbers of the right shape
                assert any(path.name in problem for problem in problems), f"{path}, {name}: {problems}"
                assert not any("\n" in problem for problem in problems)
            path.write_bytes(original)
    assert verify(str(root)) == []

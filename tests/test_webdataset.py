"""A webdataset of somebody else as `data.clips`: which members are used, restarting, and tars that are refused."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import webdataset

from data_prep.clips import tar_samples
from data_prep.clips import webdataset as tars
from data_prep.clips.clip_list import Clip, list_clips
from data_prep.clips.webdataset import local_clips, tars_of
from data_prep.sources import prepare_all, verify_all
from iclora_train.config import ConfigError
from iclora_train.core.atomic_files import exclusive
from tests.clips import write_clip
from tests.command import run
from tests.prep import config_of, contents, overrides
from tests.tiny import write_tiny_base


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """A tar as webdataset writes it. samples: key -> extension -> content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for key, members in samples.items():
            tar.write({"__key__": key, **members})
    return path


def write_members(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    """A tar of any members, such as links and folders."""
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def listed(clips: str | Path, root: Path, *columns: str) -> dict[str, Clip]:
    """The clips by the name of their file, without its suffix."""
    found = list_clips(local_clips(str(clips), root, columns), 0.1, columns=columns)
    return {str(clip.path.relative_to(root / "extracted").with_suffix("")): clip for clip in found}


def test_members_become_the_columns_of_a_list(tmp_path: Path) -> None:
    metadata = {
        "text": "a cat",
        "source": "tape",
        "license": "CC0",
        "split": "heldout",
        "fps": 30,
        "path": "/raw/1.mp4",
    }
    write_tar(
        tmp_path / "set/000.tar",
        {
            "a": {"mp4": b"A", "txt": b"a dog", "json": json.dumps(metadata).encode(), "jpg": b"thumbnail"},
            "b": {"webm": b"B", "json": json.dumps(metadata | {"split": "training", "mood": "calm"}).encode()},
            "c": {"control.mp4": b"C1", "target.mov": b"C2", "mask.png": b"C3", "caption": b"a bird"},
            "d": {"png": b"D", "json": b"{"},
        },
    )
    clips = listed(tmp_path / "set", tmp_path / "root", "mood")
    a, b, c, d = (clips[f"000/{name}"] for name in "abcd")
    assert (a.caption, a.source, a.licence, a.split, a.fps) == ("a dog", "tape", "CC0", "heldout", None)
    assert (b.caption, b.row["mood"], b.path.suffix) == ("a cat", "calm", ".webm")
    assert b.split != "training"
    assert c.reference is not None
    assert (c.caption, c.path.read_bytes(), c.reference.read_bytes()) == ("a bird", b"C2", b"C1")
    assert c.files["mask"].read_bytes() == b"C3"
    assert d.is_image


def test_pickles_and_other_members_are_counted_and_never_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {"mp4": b"A", "pyd": b"pickle", "mask.pkl": b"pickle", "flac": b"sound", "json": b"[]"}
    write_tar(tmp_path / "000.tar", {"a": members, "b": {"txt": b"no clip"}})
    assert list(listed(tmp_path / "000.tar", tmp_path / "root")) == ["000/a"]
    names = {path.name for path in (tmp_path / "root").rglob("*") if path.is_file()}
    assert names == {".lock", "000.json", "clips.jsonl", "a.mp4"}
    printed = capsys.readouterr().out
    assert "1 samples of 1 tars" in printed
    for kind in ("1 .pyd", "1 .mask.pkl", "1 .flac", "1 unreadable .json", "1 samples without a video or an image"):
        assert kind in printed


def test_a_range_a_pattern_and_a_folder_name_the_same_clips(tmp_path: Path) -> None:
    for name in ("000", "001", "010"):
        write_tar(tmp_path / f"set/{name}.tar", {"0": {"mp4": name.encode()}})
    expected = {name: tmp_path / f"set/{name}.tar" for name in ("000", "001", "010")}
    assert tars_of(str(tmp_path / "set")) == tars_of(f"{tmp_path}/set/*.tar") == expected
    assert tars_of(f"{tmp_path}/set/{{000..001}}.tar") == {name: expected[name] for name in ("000", "001")}
    assert tars_of(f"{tmp_path}/set/0{{00,10}}.tar") == {name: expected[name] for name in ("000", "010")}
    ids = {clip.id for clip in listed(tmp_path / "set", tmp_path / "root").values()}
    assert len(ids) == 3  # keys repeat from tar to tar
    assert ids == {clip.id for clip in listed(f"{tmp_path}/set/*.tar", tmp_path / "other").values()}


def test_folders_with_videos_and_other_sources_are_read_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "samples/000.tar", {"a": {"mp4": b"A"}})
    monkeypatch.chdir(tmp_path)
    assert local_clips("samples", tmp_path / "root") == "samples"  # the embedded clips, not the folder
    (tmp_path / "samples/b.mp4").write_bytes(b"B")
    for clips in (f"{tmp_path}/samples", "/x/**/*.mp4", "/x/list.csv"):
        assert local_clips(clips, tmp_path / "root") == clips
    assert not (tmp_path / "root").exists()


def test_names_in_a_tar_never_decide_where_files_are_written(tmp_path: Path) -> None:
    tar = write_members(
        tmp_path / "set.tar",
        entry("./sub/", tarfile.DIRTYPE),
        ("./sub/a b.mp4", b"A"),
        ("./sub/._a.mp4", b"hidden"),
        ("x" * 150 + ".mp4", b"B"),
    )
    clips = listed(tar, tmp_path / "root")
    assert sorted(clip.path.read_bytes() for clip in clips.values()) == [b"A", b"B"]
    folder = tmp_path / "root/extracted/set"
    assert {path.parent for path in folder.rglob("*")} == {folder}
    assert all(len(path.name) < 100 and " " not in path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../a.mp4", b"A")], r"member '\.\./a\.mp4' leads out of the tar's own folder"),
        ([("/etc/a.mp4", b"A")], r"member '/etc/a\.mp4' leads out of the tar's own folder"),
        ([("a.mp4", b"A"), entry("b.mp4", tarfile.SYMTYPE, "/etc/passwd")], r"member 'b\.mp4' is not a plain file"),
        ([("a.mp4", b"A"), entry("b.mp4", tarfile.LNKTYPE, "a.mp4")], r"member 'b\.mp4' is not a plain file"),
        ([entry("a.mp4", tarfile.FIFOTYPE)], r"member 'a\.mp4' is not a plain file"),
        ([("a.mp4", b"A"), ("a.mp4", b"B")], r"member 'a\.mp4' occurs twice"),
    ],
)
def test_unsafe_tars_are_refused_with_tar_and_member(
    members: list[tarfile.TarInfo | tuple[str, bytes]], message: str, tmp_path: Path
) -> None:
    tar = write_members(tmp_path / "set.tar", *members)
    with pytest.raises(ConfigError, match=rf"{tar}: .*{message}: download or write it again"):
        local_clips(str(tar), tmp_path / "root")
    assert not (tmp_path / "a.mp4").exists()
    assert not (tmp_path / "root/extracted/clips.jsonl").exists()


def cut(tar: Path) -> None:
    os.truncate(tar, 700)


def scramble(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[20:40] = b"\xff" * 20
    tar.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, scramble])
def test_a_damaged_tar_is_named_and_the_others_are_kept(damage: Callable[[Path], None], tmp_path: Path) -> None:
    for name in ("000", "001"):
        write_tar(tmp_path / f"set/{name}.tar", {"a": {"mp4": bytes(2000)}})
    damage(tmp_path / "set/001.tar")
    with pytest.raises(
        ConfigError, match=r"set/001\.tar: .*: download or write it again, or leave it out of data.clips"
    ):
        local_clips(str(tmp_path / "set"), tmp_path / "root")
    assert (tmp_path / "root/extracted/000/a.mp4").exists()


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ("set/{000..003}.tar", r"set/002.tar, set/003.tar are missing \(2 of 4 tars\): download them"),
        ("set/x*.tar", "no tar has such a name"),
        ("set/000.tar.gz", r"\.tar\.gz is not read: uncompress it"),
        ("https://host/{000..003}.tar", "only local files are read: download the tars"),
    ],
)
def test_tars_that_are_not_there_are_named(
    clips: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("000", "001"):
        write_tar(tmp_path / f"set/{name}.tar", {"a": {"mp4": b"A"}})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        local_clips(clips, tmp_path / "root")


def test_an_interrupted_extraction_goes_on_with_the_next_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("000", "001", "002"):
        write_tar(tmp_path / f"set/{name}.tar", {key: {"mp4": f"{name}{key}".encode()} for key in "ab"})
    local_clips(str(tmp_path / "set"), tmp_path / "undisturbed")
    copied: list[Path] = []
    copy = tar_samples._copy

    def interrupted(file: object, member: object, path: Path) -> None:
        copied.append(path)
        if len(copied) == 4:
            raise KeyboardInterrupt
        copy(file, member, path)  # type: ignore[arg-type]

    monkeypatch.setattr(tar_samples, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        local_clips(str(tmp_path / "set"), tmp_path / "root")
    capsys.readouterr()
    local_clips(str(tmp_path / "set"), tmp_path / "root")
    assert "extracting 2 tars" in capsys.readouterr().out
    assert contents(tmp_path / "root") == contents(tmp_path / "undisturbed")
    local_clips(str(tmp_path / "set"), tmp_path / "root")
    assert len(copied) == 4 + 4  # nothing is extracted a third time
    (tmp_path / "root/extracted/000/a.mp4").unlink()
    write_tar(tmp_path / "set/001.tar", {"a": {"mp4": b"new"}})
    clips = listed(tmp_path / "set", tmp_path / "root")
    assert len(copied) == 8 + 2 + 1
    assert clips["001/a"].path.read_bytes() == b"new"
    assert "001/b" not in clips


def test_a_preview_extracts_the_first_tar_and_the_preparation_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("000", "001", "002"):
        write_tar(tmp_path / f"set/{name}.tar", {"a": {"mp4": b"A"}})
    local_clips(str(tmp_path / "set"), tmp_path / "root", most=1)
    assert [path.name for path in (tmp_path / "root/extracted").glob("*.json")] == ["000.json"]
    local_clips(str(tmp_path / "set"), tmp_path / "root")
    assert "extracting 2 tars" in capsys.readouterr().out


def test_of_several_processes_one_extracts_and_the_others_wait_if_they_share_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "000.tar", {"a": {"mp4": b"A"}})
    with ThreadPoolExecutor(1) as other, exclusive(tmp_path / "root/extracted", "wait"):
        with pytest.raises(ConfigError, match="is being written by another process"):
            local_clips(str(tmp_path / "000.tar"), tmp_path / "root")
        waiting = other.submit(local_clips, str(tmp_path / "000.tar"), tmp_path / "root", wait=True)
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
    assert waiting.result(10) == str(tmp_path / "root/extracted/clips.jsonl")


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "000.tar", {"a": {"mp4": b"A"}})
    monkeypatch.setattr(tars.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(ConfigError, match=r"needs up to 0.00 GB, and .* has 0.00 GB free: make room, or set another"):
        local_clips(str(tmp_path / "000.tar"), tmp_path / "root")


def test_two_sources_one_of_them_a_webdataset_are_prepared_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_tiny_base(tmp_path / "base")
    splits = ("train", "train", "val", "heldout")
    samples = {}
    for i, split in enumerate(splits):
        video = write_clip(tmp_path / "clip.mp4", 12, seed=i).read_bytes()
        samples[str(i)] = {"mp4": video, "json": json.dumps({"split": split}).encode()}
        write_clip(tmp_path / f"own/{i}.mp4", 12, seed=10 + i)
    write_tar(tmp_path / "set/000.tar", samples)
    (tmp_path / "own/list.csv").write_text("video,split\n" + "".join(f"{i}.mp4,{s}\n" for i, s in enumerate(splits)))
    sources = f"data.sources=[{{clips: {tmp_path}/set, weight: 1}}, {{clips: {tmp_path}/own/list.csv, weight: 3}}]"
    place = (tmp_path / "shards", Path("samples"), base)
    more = ("data.train_windows=4", "data.heldout_windows=2", sources)
    config = config_of(*place, *more)
    assert prepare_all(config) == [tmp_path / "shards/own", tmp_path / "shards/set"]
    assert "sources: own (weight 3, 4 windows), set (weight 1, 4 windows)" in capsys.readouterr().out
    before = contents(tmp_path / "shards")
    prepare_all(config)
    assert contents(tmp_path / "shards") == before
    assert verify_all(config) == []
    changed = run(tmp_path, "data_prep", "verify", *overrides(*place, *more), "task.reference_downscale=2")
    assert changed.code == 1
    assert "task.reference_downscale: 1 -> 2" in changed.err
    (tmp_path / "shards/set/latents/train-000000.tar").write_bytes(b"")
    assert any("shards/set/latents/train-000000.tar" in problem for problem in verify_all(config))

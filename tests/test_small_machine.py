"""Machines that lack something: space for temporary files, shared memory, open files, locks, a home folder."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from iclora_train.config import Config, ConfigError
from iclora_train.config.paths import expand_home, user_path
from iclora_train.core.atomic_files import DiskFullError, exclusive, write_atomic
from iclora_train.data.datamodule import ExplainedErrors
from iclora_train.ltx2.runtime import compile as compile_module


def test_a_full_folder_of_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    video = tmp_path / "tmp/xyz/clip.mp4"
    message, out = f"{video} could not be written.*set TMPDIR=<folder>", tmp_path / "runs/out.mp4"
    with pytest.raises(DiskFullError, match=message), write_atomic(out):
        raise OSError(errno.ENOSPC, "No space left on device", str(video))
    message = f"{out} could not be written.*choose another folder"
    with pytest.raises(DiskFullError, match=message), write_atomic(out):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_with_a_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(file: object, flags: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with exclusive(tmp_path / "run", "..."):
        (tmp_path / "run/file").touch()
    warning = f"warning: the file system of {tmp_path}/run has no locks ({os.strerror(number)})"
    assert capsys.readouterr().err == f"{warning}: start only one command there\n"


def failing_loader(message: str) -> Iterator[int]:
    yield 1
    raise RuntimeError(message)


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        (
            "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)",
            "--shm-size=8g",
        ),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...", "--shm-size=8g"),
        ("Too many open files. Communication with the workers is no longer possible.", "ulimit -n 4096"),
        ("received 0 items of ancdata", "ulimit -n 4096"),
    ],
)
def test_workers_that_lack_something_are_explained(message: str, remedy: str) -> None:
    items = iter(ExplainedErrors(failing_loader(message)))
    assert next(items) == 1
    with pytest.raises(ConfigError, match=rf"data\.workers=0.*{remedy}"):
        next(items)


def test_other_errors_of_workers_stay(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(ExplainedErrors(failing_loader("shapes differ")))


def test_the_home_folder_is_expanded_in_settings_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    config = Config(runs_dir="~/runs", adapter="~/a.safetensors", videos="~")
    assert (config.runs_dir, config.adapter, config.videos) == (
        "/home/ann/runs",
        "/home/ann/a.safetensors",
        "/home/ann",
    )
    assert expand_home("~no_such_user/x") == "~no_such_user/x"
    assert user_path("a~b") == Path("a~b")


def test_compiled_code_goes_to_a_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", "/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_module._cache_folder() == f"{tmp_path}/.cache/iclora_train/compiled"
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert compile_module._cache_folder() == f"/elsewhere/iclora_train-{os.getuid()}/compiled"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert compile_module._cache_folder() == f"/elsewhere/iclora_train-{os.getuid()}/compiled"


def test_an_unknown_home_folder_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(ConfigError, match=r"~/clips: the home folder is unknown. Set the variable HOME"):
        user_path("~/clips")

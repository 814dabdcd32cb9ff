"""Files are complete or absent, also with several writers at the same time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import IO

import pytest

from iclora_train.core.atomic_files import write_atomic


def interrupted(file: IO[bytes]) -> None:
    file.write(b"half")
    raise KeyboardInterrupt


def test_the_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    with write_atomic(path) as file:
        file.write(b"half")
        assert not path.exists()
        assert [p.name for p in path.parent.iterdir()] == ["file.tmp"]
    assert path.read_bytes() == b"half"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_keeps_the_earlier_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    with pytest.raises(KeyboardInterrupt), write_atomic(path) as file:
        interrupted(file)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file.tmp").write_bytes(b"a longer file of a process that was killed")
    with write_atomic(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_each_of_two_writers_gives_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with write_atomic(path) as first:
        first.write(b"first, ")
        first.flush()
        with write_atomic(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"whole")
    assert path.read_bytes() == b"first, whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_writer_does_not_remove_the_file_of_another(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with write_atomic(path) as first:
        with pytest.raises(KeyboardInterrupt), write_atomic(path) as second:
            interrupted(second)
        first.write(b"first")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    seen = set()

    def work(number: int) -> None:
        for _ in range(20):
            with write_atomic(path) as file:
                for _ in range(50):
                    file.write(bytes([number]) * 40)
            seen.add(path.read_bytes())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= {bytes([number]) * 2000 for number in range(4)}
    assert list(tmp_path.iterdir()) == [path]

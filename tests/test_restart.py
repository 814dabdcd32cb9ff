"""After a kill at any moment, Ctrl-C or a full disk, data_prep resumes and writes the bytes of an uninterrupted run."""

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from data_prep import pipeline
from iclora_train.data.shard_index import ShardError
from tests.command import run, start
from tests.prep import config_of, contents, overrides, write_clips

MANY = "data.train_windows=150"  # three shards


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, clips, base) -> dict[str, bytes]:
    """The files of an uninterrupted run, by path."""
    root = tmp_path_factory.mktemp("uninterrupted")
    assert run(root, "data_prep", *overrides(root / "out", clips, base, MANY, "data.workers=0")).code == 0
    return contents(root / "out")


def bytes_in(folder: Path) -> int:
    """Bytes of all files below a folder, while another process writes and renames them."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def check_kills(count: int, folder: Path, clips: Path, base: Path, expected: dict[str, bytes]) -> None:
    """Kill `count` runs with SIGKILL, alternately without and with workers, once a random share of the bytes is
    written and up to 50 ms later; then finish them. A slow machine may notice the last bytes after the end of a run.
    """
    rng = random.Random(count)
    killed = 0
    for number in range(count):
        root = folder / str(number)
        root.mkdir()
        command = overrides(root / "out", clips, base, MANY)
        process = start(root, "data_prep", *command, f"data.workers={number % 2 * 2}")
        threshold = rng.uniform(0, 0.9) * sum(map(len, expected.values()))
        while process.is_alive() and bytes_in(root / "out") <= threshold:
            time.sleep(0.002)
        process.join(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        result = run(root, "data_prep", *command, "data.workers=0")
        assert result.code == 0, result.err
        assert contents(root / "out") == expected
        shutil.rmtree(root)
    assert killed >= 0.5 * count


def test_killed_at_random_moments_the_bytes_are_the_same(tmp_path, clips, base, uninterrupted):
    check_kills(2, tmp_path, clips, base, uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_twenty_random_moments_the_bytes_are_the_same(tmp_path, clips, base, uninterrupted):
    check_kills(20, tmp_path, clips, base, uninterrupted)


@pytest.mark.parametrize(
    ("number", "workers", "code", "word"),
    [
        (signal.SIGINT, 2, 130, "interrupted"),
        (signal.SIGTERM, 2, 143, "terminated"),
        (signal.SIGUSR1, 2, 138, "terminated"),
        (signal.SIGUSR1, 0, 138, "terminated"),
    ],
)
def test_a_signal_to_all_processes_ends_data_prep_with_one_line_and_leaves_no_partial_file(
    number, workers, code, word, tmp_path, clips, base, uninterrupted
):
    command = overrides(tmp_path / "out", clips, base, MANY)
    process = start(tmp_path, "data_prep", *command, f"data.workers={workers}", process_group=True)
    while not list(tmp_path.rglob("*.tar.tmp")):
        time.sleep(0.002)
    assert process.pid is not None
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    message = (tmp_path / "err.txt").read_text()
    assert message.splitlines()[-1] == f"{word}: the same command continues with the finished shards"
    assert "Traceback" not in message
    assert list(tmp_path.rglob("*.tmp")) == []
    assert run(tmp_path, "data_prep", *command, "data.workers=0").code == 0
    assert contents(tmp_path / "out") == uninterrupted


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_an_error_of_one_line_and_complete_files_stay(workers, tmp_path, clips, base, uninterrupted):
    shards = {name: data for name, data in uninterrupted.items() if name.endswith(".tar")}
    sizes = sorted(len(data) for name, data in shards.items() if name.startswith("pairs/"))
    limit = sizes[2] - 1  # the first of five shards does not fit
    command = overrides(tmp_path / "out", clips, base, MANY)
    result = run(tmp_path, "data_prep", *command, f"data.workers={workers}", largest_file=limit)
    assert result.code == 2
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert ".tar could not be written: File too large. Make room in" in line
    assert list(tmp_path.rglob("*.tmp")) == []
    assert run(tmp_path, "data_prep", *command, "data.workers=0").code == 0
    assert contents(tmp_path / "out") == uninterrupted


def test_maker_arguments_and_source_files_are_part_of_the_shards_fingerprint(tmp_path, base):
    clips = write_clips(tmp_path / "clips", ("train", "val", "heldout"))
    root = pipeline.prepare(config_of(tmp_path / "out", clips, base))
    before = contents(root)
    with pytest.raises(ShardError, match=r"pairs holds shards of other settings \(settings\.task\.maker_args\.radius"):
        pipeline.prepare(config_of(root, clips, base, "task.maker_args.radius=[1,2]"))
    shutil.copy(clips.parent / "clip1.mp4", clips.parent / "clip0.mp4")  # the same name, another content
    with pytest.raises(ShardError, match=r"sources\.clip0\.video"):
        pipeline.prepare(config_of(root, clips, base))
    assert contents(root) == before

"""A signal ends training with a checkpoint of the current step, one line, an exit code; the run continues exactly."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.command import run, start
from tests.srun_ranks import end, results, start_ranks
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents

STEPS = 24
TABLE, ADAPTER = "runs/run/metrics.csv", "runs/run/adapter.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a run whose validations take long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_tiny_base(folder / "base")
    overrides = ["conf=deblur", f"model.checkpoint={base}", f"data.root={folder}/shards", "trainer.accelerator=cpu"]
    overrides += [*SETTINGS, "model.lora.rank=4", "optim=adamw", "optim.ema=0.9", f"trainer.max_steps={STEPS}"]
    overrides += ["run=run", "logger=csv", "eval.after_training=false", "sample.steps=20", "data.batch_size=2"]
    overrides += ["validation.loss_every=8", "validation.sigmas=[0.2,0.3,0.4,0.5,0.6,0.7]", "validation.windows=6"]
    overrides += ["validation.clips_every=8", "validation.dry_run=false", "trainer.accumulate_grad_batches=2"]
    write_tiny_latents(folder / "shards" / "latents", base, composed(*overrides))
    return overrides


@pytest.fixture(scope="module")
def undisturbed(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run(folder, "iclora_train", *tiny)
    assert (result.code, result.err) == (0, "")
    return folder


def rows(folder: Path) -> int:
    """The rows of the table, step 0 included."""
    table = folder / TABLE
    return table.read_bytes().count(b"\n") - 1 if table.exists() else 0


def sampled(folder: Path, step: int) -> int:
    return len(list(folder.glob(f"runs/run/samples/step-{step:08d}-*.mp4")))


def output(folder: Path) -> str:
    return (folder / "out.txt").read_text() if (folder / "out.txt").exists() else ""


def has_printed_and_reached(folder: Path, row: int) -> Callable[[], bool]:
    return lambda: bool(output(folder)) and rows(folder) >= row


def wait_until(moment: Callable[[], bool], *processes: BaseProcess) -> None:
    deadline = time.monotonic() + 100
    while not moment():
        assert all(process.is_alive() for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.001)


def stop(folder: Path, overrides: list[str], moment: Callable[[], bool], *numbers: int) -> tuple[int, str]:
    """Start a run and send it signals at a moment. Returns its exit code and what it printed on stderr."""
    (folder / "out.txt").unlink(missing_ok=True)
    process = start(folder, "iclora_train", *overrides)
    wait_until(moment, process)
    assert process.pid is not None
    for number in numbers:
        os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode, (folder / "err.txt").read_text()


def stopped_at(line: str, name: str) -> int:
    """The step in the line of a run that has stopped."""
    word = "interrupted" if name == "SIGINT" else "terminated"
    path = r"runs/run/checkpoints/step-(\d{8})\.ckpt"
    match = re.fullmatch(
        rf"{word} \({name}\) at step (\d+) of {STEPS}: {path} is written; the same command continues from it\n", line
    )
    assert match is not None, line
    assert int(match[1]) == int(match[2])
    return int(match[1])


def assert_same_results(folder: Path, undisturbed: Path) -> None:
    for name in (TABLE, ADAPTER):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_run_that_is_stopped_in_every_phase_ends_with_the_same_bytes(
    undisturbed: Path, tiny: list[str], tmp_path: Path
) -> None:
    def at_row(count: int) -> Callable[[], bool]:
        return lambda: rows(tmp_path) == count

    code, line = stop(tmp_path, tiny, at_row(3), signal.SIGTERM, signal.SIGTERM)  # schedulers repeat it
    assert code == 143
    assert 2 <= stopped_at(line, "SIGTERM") < 8
    code, line = stop(tmp_path, tiny, at_row(8), signal.SIGUSR1)  # the row of step 8 waits for its validation losses
    assert (code, stopped_at(line, "SIGUSR1")) == (138, 8)
    assert sampled(tmp_path, 8) == 0
    # The next start first does the validation of step 8. Nothing is lost if it is stopped there.
    code, line = stop(tmp_path, tiny, lambda: "resuming from step 8" in output(tmp_path), signal.SIGTERM)
    assert (code, line) == (143, "terminated: the same command continues from the last checkpoint\n")
    code, line = stop(tmp_path, tiny, lambda: sampled(tmp_path, 16) > 0, signal.SIGINT)
    assert (code, stopped_at(line, "SIGINT")) == (130, 16)
    assert rows(tmp_path) == 16
    code, line = stop(tmp_path, tiny, lambda: rows(tmp_path) == 24, signal.SIGUSR2)  # the validation of the last step
    assert (code, stopped_at(line, "SIGUSR2")) == (140, STEPS)
    assert not (tmp_path / ADAPTER).exists()
    result = run(tmp_path, "iclora_train", *tiny)
    assert (result.code, result.err) == (0, "")
    assert_same_results(tmp_path, undisturbed)
    for path in undisturbed.glob("runs/run/samples/*.mp4"):
        assert (tmp_path / "runs/run/samples" / path.name).read_bytes() == path.read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


def test_data_workers_survive_a_signal_to_all_processes_of_a_job(tiny: list[str], tmp_path: Path) -> None:
    """Also: a run without checkpoints says that the same command begins again."""
    settings = ["data.workers=2", "validation.loss_every=0", "validation.clips_every=0", "trainer.max_steps=10000"]
    process = start(tmp_path, "iclora_train", *tiny, *settings, "validation.checkpoint_every=0", process_group=True)
    wait_until(lambda: rows(tmp_path) > 1, process)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    line = (
        r"terminated \(SIGTERM\) at step \d+ of 10000: validation.checkpoint_every=0, so no checkpoint is written; .*\n"
    )
    assert re.fullmatch(line, (tmp_path / "err.txt").read_text())
    assert not (tmp_path / "runs/run/checkpoints").exists()


def stop_rank(folder: Path, overrides: list[str], moment: Callable[[], bool], rank: int, number: int) -> int:
    """Start two ranks, and send one of them a signal at a moment. Returns the step at which both have stopped."""
    ranks = start_ranks(folder, [overrides, overrides])
    wait_until(moment, *ranks)
    end(ranks[rank], number)
    first, second = results(folder, ranks)
    assert (first.code, second.code) == (128 + number, 128 + number)
    assert second.err == ""
    return stopped_at(first.err, signal.Signals(number).name)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tiny: list[str], tmp_path: Path) -> None:
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    for folder in (undisturbed, stopped):
        folder.mkdir()
    assert [rank.code for rank in results(undisturbed, start_ranks(undisturbed, [tiny, tiny]))] == [0, 0]
    assert 2 <= stop_rank(stopped, tiny, lambda: rows(stopped) == 3, 1, signal.SIGUSR1) < 8
    assert stop_rank(stopped, tiny, lambda: rows(stopped) == 8, 0, signal.SIGTERM) == 8  # its validation
    assert [rank.code for rank in results(stopped, start_ranks(stopped, [tiny, tiny]))] == [0, 0]
    assert_same_results(stopped, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_stopped_and_killed_at_ten_random_moments_the_bytes_are_the_same(
    undisturbed: Path, tiny: list[str], tmp_path: Path
) -> None:
    rng = random.Random(0)
    overrides = [*tiny, "validation.checkpoint_every=3"]
    codes = []
    for number in [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGKILL, signal.SIGINT] * 2:
        target = min(rows(tmp_path) + rng.randrange(4), STEPS)
        (tmp_path / "out.txt").unlink(missing_ok=True)
        process = start(tmp_path, "iclora_train", *overrides)
        wait_until(has_printed_and_reached(tmp_path, target))
        process.join(rng.uniform(0.0, 0.2))
        if process.is_alive():
            end(process, number)
        process.join(60)
        assert process.exitcode in (0, -number, 128 + number)
        codes.append(process.exitcode)
    assert sum(code != 0 for code in codes) >= 5
    assert run(tmp_path, "iclora_train", *overrides).code == 0
    assert_same_results(tmp_path, undisturbed)

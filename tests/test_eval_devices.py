"""eval.devices: several processes sample the clips of an evaluation. Scores do not depend on their number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.clips.conditions import batches
from eval.clips.sampled import SampledClips
from eval.clips.sampling_ranks import Samplers, SamplingRank
from eval.ranks import sample_together
from eval.run import open_source
from iclora_train.core.atomic_files import claim
from iclora_train.core.console import make_console
from tests.command import run, start
from tests.eval_world import World, build, scores, without_evaluation, without_run

DEVICES = "eval.devices=2"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = build(tmp_path_factory.mktemp("single"))
    assert run(world.root, "eval", *world.arguments).code == 0
    return world


@pytest.fixture
def world(single: World, tmp_path: Path) -> World:
    return without_evaluation(single, tmp_path)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_two_processes_give_the_scores_of_one(single: World, world: World) -> None:
    result = run(world.root, "eval", *world.arguments, DEVICES)
    assert result.code == 0, result.err
    assert "2 processes sample" in result.out
    assert without_run(scores(world)) == without_run(scores(single))
    assert not list(world.root.rglob("eval-cells/*.lock"))


def test_a_process_that_is_killed_costs_its_clips_only(single: World, world: World) -> None:
    process = start(world.root, "eval", *world.arguments, DEVICES)
    assert process.pid is not None
    samplers: list[int] = []
    while not samplers and process.is_alive():
        samplers = [pid for pid in children(process.pid) if b"commands.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        time.sleep(0.001)
    os.kill(samplers[0], signal.SIGKILL)
    process.join(120)
    assert process.exitcode == 0, (world.root / "err.txt").read_text()
    assert "the others sample its clips" in (world.root / "out.txt").read_text()
    assert without_run(scores(world)) == without_run(scores(single))


def test_ranks_of_a_launcher_share_the_clips_and_the_first_one_scores(single: World, world: World) -> None:
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    ranks = [
        start(
            world.root,
            "eval",
            *world.arguments,
            variables={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            suffix=str(rank),
        )
        for rank in range(2)
    ]
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0], [(world.root / f"err{i}.txt").read_text() for i in range(2)]
    assert (world.root / "out1.txt").read_text() == ""
    assert without_run(scores(world)) == without_run(scores(single))


def test_a_claim_is_held_by_one_process_and_released_when_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "batch.lock"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from iclora_train.core.atomic_files import claim\n"
            "with claim(Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(60)",
            str(path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    with claim(path) as is_mine:
        assert not is_mine
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with claim(path) as is_mine:
        assert is_mine
    assert not path.exists()


def test_a_line_says_when_there_are_fewer_batches_than_processes(
    single: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source(without_evaluation(single, tmp_path).config("eval.strengths=[1.0]"))
    assert isinstance(source, SampledClips)
    source.restrict(source.config, source.held_out, ["base"])
    work = batches(source.held_out.windows, [0], 4)
    sample_together(source, work, Samplers("eval", SamplingRank(0, 3)), make_console())
    printed = capsys.readouterr().out
    assert "note: fewer batches (1) than processes (3): some wait, unless eval.batch_size is smaller" in printed
    assert source.is_finished(source.conditions[0], work[0])

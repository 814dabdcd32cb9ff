"""A run of several ranks: started by srun's variables, by torchrun and by trainer.devices, it ends like one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iclora_train.adapters import lora
from iclora_train.config import ConfigError
from iclora_train.core.local_ranks import _wait, device_count, free_port, listed_gpus, ranks_to_start, run_ranks
from iclora_train.core.ranks import TORCH_VARIABLES
from tests.command import read_csv
from tests.srun_ranks import end, results, start_ranks, wait_for_step
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return overrides_of(tmp_path_factory.mktemp("tiny"))


def overrides_of(folder: Path, train: int = 24) -> list[str]:
    """Overrides for a run on a tiny base with latents of `train` clips, which are written to `folder`."""
    base = write_tiny_base(folder / "base")
    overrides = ["conf=deblur", f"model.checkpoint={base}", f"data.root={folder}/shards", "trainer.accelerator=cpu"]
    overrides += [*SETTINGS, "model.lora.rank=4", "optim=adamw", "trainer.max_steps=6", "data.batch_size=2"]
    overrides += ["run=run", "logger=csv", "eval.after_training=false", "sample.steps=2", "validation.sigmas=[0.5]"]
    overrides += ["validation.loss_every=3", "validation.checkpoint_every=2", "validation.windows=4"]
    write_tiny_latents(folder / "shards" / "latents", base, composed(*overrides), train=train)
    return overrides


@pytest.fixture(scope="module")
def by_srun(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two ranks with SLURM's variables, without --ntasks-per-node."""
    folder = tmp_path_factory.mktemp("srun")
    first, second = results(folder, start_ranks(folder, [tiny, tiny]))
    assert (first.code, first.err) == (0, "")
    assert (second.code, second.out, second.err) == (0, "", "")
    assert first.out.count("step 6/6") == 1
    return folder


def test_srun_trains_one_adapter(by_srun: Path) -> None:
    folder = by_srun / "runs/run"
    assert [row["step"] for row in read_csv(folder / "metrics.csv")] == [str(step) for step in range(7)]
    assert set(lora.read(folder / "adapter.safetensors").weights)
    assert sorted(path.name for path in folder.glob("checkpoints/*")) == ["step-00000004.ckpt", "step-00000006.ckpt"]


def launch(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_trainer_devices_trains_the_same_adapter(by_srun: Path, tiny: list[str], tmp_path: Path) -> None:
    process = launch(tmp_path, "iclora_train", *tiny, "trainer.devices=2")
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    assert out.count("step 6/6") == 1
    for name in ("adapter.safetensors", "metrics.csv"):
        assert (tmp_path / "runs/run" / name).read_bytes() == (by_srun / "runs/run" / name).read_bytes()


def test_torchrun_trains_the_same_adapter(by_srun: Path, tiny: list[str], tmp_path: Path) -> None:
    torchrun = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
    process = launch(tmp_path, *torchrun, "-m", "iclora_train", *tiny)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("step 6/6") == 1
    for name in ("adapter.safetensors", "metrics.csv"):
        assert (tmp_path / "runs/run" / name).read_bytes() == (by_srun / "runs/run" / name).read_bytes()


def test_the_message_of_a_rank_that_fails_ends_all_ranks(tiny: list[str], tmp_path: Path) -> None:
    """Only rank 1 does not find the data, e.g. because its node has not mounted a disk."""
    began = time.monotonic()
    first, second = results(tmp_path, start_ranks(tmp_path, [tiny, [*tiny, f"data.root={tmp_path}/missing"]]))
    assert time.monotonic() - began < 60
    assert (first.code, second.code) == (2, 2)
    assert "error: rank 1 on" in first.err
    assert "missing holds no finished shards" in first.err
    assert "Traceback" not in first.err + second.err
    assert second.err == ""


def test_a_failure_of_rank_0_is_printed_once(tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "data.batch_size=100"]
    first, second = results(tmp_path, start_ranks(tmp_path, [words, words]))
    assert (first.code, second.code) == (2, 2)
    assert first.err.startswith("error: data.batch_size=100 needs 100 clips")
    assert (second.out, second.err) == ("", "")


def test_a_killed_rank_ends_the_others(tiny: list[str], tmp_path: Path) -> None:
    ranks = start_ranks(tmp_path, [[*tiny, "trainer.max_steps=2000"]] * 2)
    wait_for_step(tmp_path, 1, ranks)
    end(ranks[1], signal.SIGKILL)
    began = time.monotonic()
    first, _ = results(tmp_path, ranks)
    assert time.monotonic() - began < 60
    assert first.code == 2
    assert first.err == "error: another rank was killed (out of memory?), or the network between the ranks failed\n"


def test_the_command_that_starts_the_ranks_names_the_killed_one(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    ranks = [subprocess.Popen(waiting), subprocess.Popen(waiting)]
    ranks[1].kill()
    began = time.monotonic()
    assert _wait(ranks) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 20
    assert capsys.readouterr().err.startswith("error: rank 1 was ended by SIGKILL")


def test_devices_are_counted_and_listed() -> None:
    cpu = {"accelerator": "cpu"}
    assert [device_count({**cpu, "devices": devices}) for devices in (1, 8, "8", [0, 2], "0,2", "auto", -1)] == [
        *(1, 8, 8, 2, 2, 1, 1)
    ]
    assert (listed_gpus("3,"), listed_gpus([0, 2]), listed_gpus(2)) == ([3], [0, 2], [])
    for devices in (0, "all", [0, 0], "0,x", 1.5):
        with pytest.raises(ConfigError, match=r"trainer\.devices"):
            device_count({"devices": devices})


@pytest.mark.parametrize("num_nodes", ["two", 1.5, -1])
def test_the_number_of_machines_is_a_number(num_nodes: object) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.num_nodes"):
        ranks_to_start({"accelerator": "cpu", "num_nodes": num_nodes})


@pytest.mark.parametrize(("name", "value"), [("NODE_RANK", "first"), ("NODE_RANK", "2"), ("MASTER_PORT", "tcp")])
def test_a_wrong_variable_of_a_machine_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for key, text in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "NODE_RANK": "0", name: value}.items():
        monkeypatch.setenv(key, text)
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        run_ranks("iclora_train", count=2, num_nodes=2)


def test_a_rank_starts_no_further_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = {"accelerator": "cpu", "devices": 4}
    assert ranks_to_start(trainer) == (4, 1)
    for name, value in zip(TORCH_VARIABLES, ("1", "1", "4", "localhost", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    assert ranks_to_start({**trainer, "num_nodes": 2}) == (1, 1)


@pytest.mark.slow
def test_thirty_two_ranks_on_four_nodes_train_and_stop(tmp_path: Path) -> None:
    """The ranks are processes on this CPU: it shows the start, the steps and the stop, not the speed."""
    words = [*overrides_of(tmp_path / "world", train=64), "data.batch_size=1", "trainer.max_steps=2000"]
    ranks = start_ranks(tmp_path, [words] * 32, per_node=8)
    wait_for_step(tmp_path, 2, ranks, seconds=400)
    end(ranks[21], signal.SIGTERM)  # the scheduler may tell one of them only
    ends = results(tmp_path, ranks, seconds=200)
    assert {rank.code for rank in ends} == {143}
    assert "terminated" in ends[0].err
    assert [rank.out + rank.err for rank in ends[1:]] == [""] * 31
    step = int(read_csv(tmp_path / "runs/run/metrics.csv")[-1]["step"])
    assert (tmp_path / f"runs/run/checkpoints/step-{step:08d}.ckpt").exists()

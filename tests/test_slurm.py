"""Jobs of scripts/slurm on a real SLURM: a job that is stopped goes on, and trains the adapter of an undisturbed one.

Each test starts jobs with a tiny base on the CPU. They are skipped where SLURM cannot be started.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import pipeline
from tests.command import read_csv
from tests.prep import config_of, contents, overrides, write_clips
from tests.slurm_cluster import Cluster, can_run, slurm_cluster
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts" / "slurm"
TASK = ("--cpus-per-task=1", "--mem-per-gpu=1G")
TWO_TASKS = (*TASK, "--gpus-per-node=2", "--ntasks-per-node=2")
STEPS = 30
SPLITS = ("train", "train", "val", "heldout", "heldout")  # an evaluation needs two recordings

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_run(), reason="needs slurmctld, slurmd and munge, and root"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    variables = {"VENV": sys.prefix, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with slurm_cluster() as running:
            yield running


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a run on a tiny base. It writes no checkpoint before its last step, unless it is stopped."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_tiny_base(folder / "base")
    settings = ["conf=deblur", f"model.checkpoint={base}", f"data.root={folder}/shards", "trainer.accelerator=cpu"]
    settings += [*SETTINGS, "model.lora.rank=4", "optim=adamw", f"trainer.max_steps={STEPS}", "run=run", "logger=csv"]
    settings += ["eval.after_training=false", "validation.loss_every=0", "validation.clips_every=0"]
    settings += ["validation.checkpoint_every=1000", "data.workers=0"]
    write_tiny_latents(folder / "shards" / "latents", base, composed(*settings))
    return settings


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of two tasks that ran to their end, started by srun without --ntasks-per-node."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = ("srun", "--ntasks=2", "--nodes=1", sys.executable, "-m", "iclora_train", *tiny)
    cluster.run(*command, cwd=folder, timeout=300)
    assert [row["step"] for row in rows(folder)] == [str(step) for step in range(1, STEPS + 1)]
    return adapter(folder)


def train(cluster: Cluster, folder: Path, options: tuple[str, ...], settings: list[str]) -> str:
    return cluster.submit(folder, *options, str(SCRIPTS / "train.sbatch"), *settings)


def output(folder: Path) -> str:
    """What the jobs of a folder have printed."""
    return "".join(path.read_text() for path in sorted(folder.glob("slurm-*.out")))


def rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "runs/run/metrics.csv"
    return read_csv(path) if path.exists() else []


def adapter(folder: Path) -> bytes:
    return (folder / "runs/run/adapter.safetensors").read_bytes()


def wait_for_steps(folder: Path, count: int) -> None:
    """Wait until a run has done a number of steps."""
    deadline = time.monotonic() + 120
    while len(rows(folder)) < count:
        assert time.monotonic() < deadline, output(folder)
        time.sleep(0.05)


def test_sigusr1_requeues_the_job_which_goes_on_from_that_step(
    cluster: Cluster, tiny: list[str], undisturbed: bytes, tmp_path: Path
) -> None:
    job = train(cluster, tmp_path, (*TASK, "--nodes=2"), tiny)  # one task on each of two nodes
    wait_for_steps(tmp_path, 3)
    cluster.run("scancel", "--signal=USR1", job)
    assert cluster.wait(job) == ("COMPLETED", 0), output(tmp_path)
    assert cluster.field(job, "Restarts") == "1"
    assert [row["step"] for row in rows(tmp_path)] == [str(step) for step in range(1, STEPS + 1)]
    assert adapter(tmp_path) == undisturbed


def test_a_wrong_setting_ends_the_job_before_its_tasks_start(cluster: Cluster, tiny: list[str], tmp_path: Path) -> None:
    job = train(cluster, tmp_path, TASK, [*tiny, "optim=nothing"])
    assert cluster.wait(job) == ("FAILED", 2)
    assert output(tmp_path) == "error: optim=nothing is not one of adamw, muon, official\n"


def test_gpus_without_a_task_are_refused_with_the_remedy(cluster: Cluster, tiny: list[str], tmp_path: Path) -> None:
    job = train(cluster, tmp_path, (*TASK, "--gpus-per-node=2"), tiny)
    assert cluster.wait(job) == ("FAILED", 2)
    assert "--ntasks-per-node=2" in output(tmp_path)


@pytest.mark.slow
def test_scontrol_requeue_and_preemption(cluster: Cluster, tiny: list[str], undisturbed: bytes, tmp_path: Path) -> None:
    """Both send SIGTERM. SLURM requeues the first job, the script the second."""
    job = train(cluster, tmp_path, TWO_TASKS, tiny)
    wait_for_steps(tmp_path, 3)
    cluster.run("scontrol", "requeue", job)
    while cluster.field(job, "JobState") != "RUNNING" or cluster.field(job, "Restarts") == "0":
        cluster.start_requeued()
        time.sleep(0.2)
    wait_for_steps(tmp_path, len(rows(tmp_path)) + 3)
    urgent = cluster.submit(tmp_path, "--partition=urgent", "--nodes=4", "--exclusive", "--wrap=sleep 1")
    assert cluster.wait(job) == ("COMPLETED", 0), output(tmp_path)
    assert cluster.wait(urgent) == ("COMPLETED", 0)
    assert cluster.field(job, "Restarts") == "2"
    assert adapter(tmp_path) == undisturbed


@pytest.mark.slow
def test_the_time_limit(cluster: Cluster, tiny: list[str], undisturbed: bytes, tmp_path: Path) -> None:
    """SLURM sends SIGUSR1 a minute before the limit. The run waits for it, since it takes a few seconds only."""
    job = train(cluster, tmp_path, (*TWO_TASKS, "--signal=USR1@60"), tiny)
    wait_for_steps(tmp_path, 3)
    for process in ranks(job):
        os.kill(int(process.name), signal.SIGSTOP)
    hours, minutes, _ = cluster.field(job, "RunTime").split(":")
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(minutes) + 1}")
    deadline = time.monotonic() + 45
    while not all(is_pending(process, signal.SIGUSR1) for process in ranks(job)):
        assert time.monotonic() < deadline, "SLURM has sent no signal"
        time.sleep(0.5)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")  # for the part that follows
    for process in ranks(job):
        os.kill(int(process.name), signal.SIGCONT)
    assert cluster.wait(job) == ("COMPLETED", 0), output(tmp_path)
    assert cluster.field(job, "Restarts") == "1"
    assert adapter(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_moments(cluster: Cluster, tiny: list[str], undisturbed: bytes, tmp_path: Path) -> None:
    """SIGKILL to all tasks, to one of them, or `scontrol requeue`, at moments of a run of 30 steps; then it goes on."""
    rng = random.Random(0)
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        job = train(cluster, folder, TWO_TASKS, [*tiny, "validation.checkpoint_every=5"])
        wait_for_steps(folder, rng.randint(1, STEPS - 3))
        time.sleep(rng.uniform(0, 0.3))
        if number % 3 == 2:
            cluster.run("scontrol", "requeue", job)
        elif number % 3 == 1:
            os.kill(int(ranks(job)[1].name), signal.SIGKILL)  # as by the kernel when memory is full
        else:
            subprocess.run(["scancel", "--signal=KILL", job], check=False, env=cluster.environment, timeout=60)
        state, _ = cluster.wait(job)
        if state != "COMPLETED":
            job = train(cluster, folder, TWO_TASKS, [*tiny, "validation.checkpoint_every=5"])
            assert cluster.wait(job) == ("COMPLETED", 0), output(folder)
        assert adapter(folder) == undisturbed, number


def ranks(job: str) -> list[Path]:
    """The folders in /proc of the two tasks of a job, in order of rank."""
    folders: dict[int, Path] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        for rank in (0, 1):
            in_job = f"SLURM_JOB_ID={job}".encode() in variables and f"SLURM_PROCID={rank}".encode() in variables
            if in_job and b"iclora_train" in command:
                folders[rank] = folder
    return [folders[rank] for rank in sorted(folders)]


def is_pending(process: Path, number: signal.Signals) -> bool:
    """Whether a stopped process has been sent a signal."""
    line = next(line for line in (process / "status").read_text().splitlines() if line.startswith("ShdPnd"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.slow
def test_preparation_training_and_evaluation_in_jobs(cluster: Cluster, tmp_path: Path) -> None:
    """A job array prepares the data of two tasks; training and evaluation of one of them wait for it."""
    base, clips = write_tiny_base(tmp_path / "base"), write_clips(tmp_path / "clips", SPLITS)
    settings = [
        part for part in overrides(tmp_path / "data", clips, base) if not part.startswith(("conf=", "data.root"))
    ]
    settings = [*settings, "data.root=data/${task.name}", "trainer.accelerator=cpu", "logger=csv"]
    cluster.environment["TASKS"] = "deblur colorize"  # type: ignore[index]
    prep = cluster.submit(tmp_path, *TASK, "--array=0-1", str(SCRIPTS / "prep.sbatch"), *settings)
    training = [*settings, "conf=deblur", "run=run", "trainer.max_steps=2", "eval.after_training=false"]
    job = train(cluster, tmp_path, (*TASK, f"--dependency=afterok:{prep}"), training)
    after = f"--dependency=afterok:{job}"
    judged = cluster.submit(
        tmp_path, *TASK, after, str(SCRIPTS / "eval.sbatch"), "eval=quick", "sample.steps=1", *training
    )
    assert cluster.wait(judged, 400) == ("COMPLETED", 0), output(tmp_path)
    assert (tmp_path / "runs/run/eval-quick/scores.json").exists()
    assert {"deblur", "colorize"} <= {name.split("/")[0] for name in contents(tmp_path / "data")}


def test_an_array_prepares_one_data_set_although_a_job_is_requeued(cluster: Cluster, tmp_path: Path) -> None:
    """Two jobs, each a share of the shards. One is requeued when it has begun its shards, which ends it by SIGTERM."""
    base, clips = write_tiny_base(tmp_path / "base"), write_clips(tmp_path / "clips")
    settings = ["data.train_windows=70", "data.workers=0"]  # four shards
    pipeline.prepare(config_of(tmp_path / "alone", clips, base, *settings))
    command = overrides(tmp_path / "data", clips, base, *settings)
    array = cluster.submit(tmp_path, *TASK, "--array=0-1", str(SCRIPTS / "prep.sbatch"), *command)
    requeued = f"{array}_1"
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("data/*/train-000001.tar*")):  # of the second share
        assert time.monotonic() < deadline, output(tmp_path)
        time.sleep(0.02)
    cluster.run("scontrol", "requeue", requeued)
    for job in (f"{array}_0", requeued):
        assert cluster.wait(job, 400) == ("COMPLETED", 0), output(tmp_path)
    assert contents(tmp_path / "data") == contents(tmp_path / "alone")


@pytest.mark.slow
def test_a_sweep_as_slurm_jobs(cluster: Cluster, tiny: list[str], undisturbed: bytes, tmp_path: Path) -> None:
    """Two jobs, each a run of its own. One is stopped by SIGUSR1, requeued, and goes on."""
    pytest.importorskip("submitit")
    sweep = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_per_gpu=1GB"]
    sweep += ["seed=0,1", "run=run-${seed}", "hydra.launcher.gpus_per_node=2", "hydra.launcher.tasks_per_node=2"]
    command = [sys.executable, "-m", "iclora_train", "-m", *tiny[: tiny.index("run=run")], *sweep]
    command += tiny[tiny.index("run=run") + 1 :]
    # The second job may run on a node whose name is not this machine's, and does not resolve.
    environment = {**cluster.environment, "MASTER_ADDR": "127.0.0.1"}
    waiting = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        path = tmp_path / "runs/run-0/metrics.csv"
        deadline = time.monotonic() + 180
        while not path.exists() or len(read_csv(path)) < 3:
            assert time.monotonic() < deadline
            assert waiting.poll() is None
            time.sleep(0.1)
        job = cluster.run("squeue", "--noheader", "--format=%A %K").split("\n")
        number = next(line.split()[0] for line in job if line.endswith(" 0"))
        cluster.run("scancel", "--signal=USR1", number)
        assert cluster.wait(number) == ("COMPLETED", 0)
        assert cluster.field(number, "Restarts") == "1"
        assert (tmp_path / "runs/run-0/adapter.safetensors").read_bytes() == undisturbed
        deadline = time.monotonic() + 180
        while not (tmp_path / "runs/run-1/adapter.safetensors").exists():
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        waiting.kill()
        waiting.wait()

"""Train and judge an adapter for every task on nano.

    python -m scripts.zoo FOLDER [--jobs 8] [--tasks deblur canny] [key=value]

Every task gets a run of `python -m iclora_train conf=<task>`, which prepares, trains and evaluates. The pairs of tasks
whose references a user supplies are made by `scripts.zoo_pairs`. Settings may follow, for all tasks.

    FOLDER/runs/<task>-nano    the run, with eval/report.html
    FOLDER/logs/<task>.log     what its commands printed
    FOLDER/results.md          the table of all tasks (--table: another file)

A task takes 10 to 15 minutes on two CPU cores; eighteen took a quarter of an hour on an H200 with 16 cores (--jobs 9).
--jobs tasks run at the same time and share the cores; on a GPU they share the GPU. Started
again with the same settings, the program goes on: finished tasks are not repeated, interrupted
ones continue.
Exit code 1 if a command failed. A task whose gates do not hold is a result, not a failure; the table says why.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iclora_train import commands
from iclora_train.config.cpus import available_cpus
from iclora_train.config.endings import one_line_ending
from iclora_train.config.hydra_app import conf_dir
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.progress import progress_bar
from scripts.zoo_pairs import EDITS, LISTING, write_pairs
from scripts.zoo_table import NotRun, write_table

BASE = "nano"
POLL_SECONDS = 1.0
FIXED = ("conf", "model", "run", "runs_dir", "data.root")  # settings that decide where results are
NOT_RUN = {
    "depth": "its network is not included: see conf/conf/depth.yaml",
    "dub": "it needs a base with an audio half, and nano has none",
    "foley": "it needs a base with an audio half, and nano has none",
}


@dataclass
class Job:
    """A task of the zoo. settings: of its commands, as on the command line."""

    task: str
    folder: Path
    settings: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "runs" / f"{self.task}-{BASE}"

    @property
    def log(self) -> Path:
        """What the commands of the task print."""
        return self.folder / "logs" / f"{self.task}.log"

    @property
    def record(self) -> Path:
        """Written when the task is finished: its settings, and the path of its scores."""
        return self.log.with_suffix(".json")

    def scores(self) -> Path | None:
        """The scores of the task, if it was finished with the same settings."""
        if not self.record.exists():
            return None
        record = json.loads(self.record.read_text())
        path = Path(record["scores"])
        return path if record["settings"] == self.settings and path.exists() else None

    def start(self, threads: int, pipe: int) -> None:
        """Start the next command: training, which ends with the evaluation, or the evaluation alone.

        pipe: the reading end of a pipe of this process; the command ends when it is closed.
        """
        module = "eval" if (self.run / "adapter.safetensors").exists() else "iclora_train"
        places = [f"data.root={self.folder / 'data' / self.task}", f"runs_dir={self.folder / 'runs'}"]
        words = [module, str(pipe), f"conf={self.task}", *places, *self.settings]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.time()
        with self.log.open("ab") as log:
            log.write(f"$ python -m {module} {' '.join(words[2:])}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [sys.executable, "-P", commands.__file__, *words],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                pass_fds=[pipe],
                process_group=0,  # a terminal sends Ctrl-C to this process only, which ends the commands
            )

    def finish(self) -> bool:
        """Write the record of a command that has ended well. False if it has not."""
        assert self.process is not None
        scores = [path for path in self.run.glob("eval*/scores.json") if path.stat().st_mtime >= self.started - 1]
        if self.process.returncode or not scores:
            return False
        newest = max(scores, key=lambda path: path.stat().st_mtime)
        with write_atomic(self.record) as file:
            file.write(json.dumps({"settings": self.settings, "scores": str(newest)}).encode())
        return True

    def last_line(self) -> str:
        """The last line of the log: what failed."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line for line in reversed(lines) if line.strip()), "no output")


def task_names() -> list[str]:
    """All tasks of conf/conf."""
    return sorted(path.stem for path in Path(conf_dir(), "conf").glob("*.yaml"))


def jobs_of(tasks: Sequence[str], folder: Path, settings: Sequence[str], write: bool = True) -> list[Job]:
    """The tasks that can run. write: write the pairs that they need, unless they are there."""
    jobs = []
    for task in tasks:
        if task in NOT_RUN:
            continue
        of_task, pairs = [], folder / "pairs" / task
        if task in EDITS:  # the window is the whole picture, because the edit has its place in it
            of_task = [f"data.clips={write_pairs(task, pairs) if write else pairs / LISTING}", "data.short_side=64"]
        jobs.append(Job(task, folder, ["eval.report=files", *of_task, *settings]))
    return jobs


def run_all(jobs: Sequence[Job], at_once: int, threads: int) -> list[Job]:
    """Run the jobs that are not finished, `at_once` of them at a time. Returns those whose command failed."""
    waiting = [job for job in jobs if job.scores() is None]
    running, failed = list[Job](), list[Job]()
    reading, writing = os.pipe()  # the commands end when this process has ended
    with progress_bar("training and judging", len(jobs), "task") as bar:
        bar.skip(len(jobs) - len(waiting))
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append(waiting.pop(0))
                    running[-1].start(threads, reading)
                time.sleep(POLL_SECONDS)
                for job in [job for job in running if job.process is not None and job.process.poll() is not None]:
                    running.remove(job)
                    bar.advance()
                    if not job.finish():
                        failed.append(job)
        finally:
            _stop(running)
            os.close(reading)
            os.close(writing)
    return failed


def _stop(jobs: Sequence[Job]) -> None:
    """End the commands, which write a checkpoint first, and wait for them."""
    processes = [job.process for job in jobs if job.process is not None]
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the settings of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", nargs="+", default=task_names(), help="default: all")
    parser.add_argument("--jobs", type=int, default=max(available_cpus() // 2, 1), help="tasks at the same time")
    parser.add_argument("--table", type=Path, help="the table of results; pictures are written beside it")
    options, settings = parser.parse_known_args(arguments)
    settings += [word for word in options.tasks if "=" in word]  # argparse reads them as tasks
    options.tasks = [word for word in options.tasks if "=" not in word] or task_names()
    if unknown := [task for task in options.tasks if task not in task_names()]:
        parser.error(f"--tasks {unknown[0]}: there are {', '.join(task_names())}")
    if unknown := [word for word in settings if word.startswith("-") or "=" not in word]:
        parser.error(f"{unknown[0]} is not a setting")
    if fixed := [word for word in settings if word.partition("=")[0] in FIXED]:
        parser.error(f"{fixed[0]}: this program sets {', '.join(FIXED)} itself")
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    options.folder = options.folder.resolve()
    return options, settings


def main() -> int:
    """Run the tasks and write the table."""
    options, settings = parse()
    jobs = jobs_of(options.tasks, options.folder, settings)
    failed = run_all(jobs, options.jobs, max(available_cpus() // options.jobs, 1))
    not_run = [NotRun(task, reason) for task, reason in NOT_RUN.items()]
    not_run += [NotRun(job.task, job.last_line()) for job in failed]
    finished = {job.task: job.scores() for job in jobs_of(task_names(), options.folder, settings, write=False)}
    table = options.table or options.folder / "results.md"
    write_table(table, {task: path for task, path in finished.items() if path is not None}, not_run)
    print(f"{len(jobs) - len(failed)} tasks judged, {len(failed)} failed: {table}")
    for job in failed:
        print(f"{job.task} failed, see {job.log}: {job.last_line()}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    with one_line_ending("the same command goes on"):
        code = main()
    raise SystemExit(code)

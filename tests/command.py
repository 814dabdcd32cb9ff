"""Run the project's commands in processes that can be killed, forked from a server with all imports done."""

from __future__ import annotations

import csv
import importlib
import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["iclora_train.train", "iclora_train.__main__", "data_prep.pipeline"])


@dataclass(frozen=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


def start(
    folder: Path,
    module: str,
    *args: str,
    largest_file: int | None = None,
    variables: dict[str, str] | None = None,
    suffix: str = "",
    process_group: bool = False,
) -> BaseProcess:
    """Start `python -m module args` in `folder`, with stdout in out<suffix>.txt and stderr in err<suffix>.txt.

    largest_file: limit in bytes on the size of a file, which simulates a full disk. variables: of the environment.
    process_group: the command and the processes that it starts are a process group, so that os.killpg sends a signal to
    all of them, as a terminal does.
    """
    arguments = (str(folder), module, args, largest_file, variables or {}, suffix, process_group)
    process = _CONTEXT.Process(target=_main, args=arguments)
    process.start()
    return process


def run(folder: Path, module: str, *args: str, largest_file: int | None = None) -> Result:
    """Start a command and wait until it ends."""
    process = start(folder, module, *args, largest_file=largest_file)
    process.join(120)
    assert process.exitcode is not None, "still running after two minutes"
    return Result(process.exitcode, (folder / "out.txt").read_text(), (folder / "err.txt").read_text())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table that a command has written."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _main(
    folder: str,
    module: str,
    args: tuple[str, ...],
    largest_file: int | None,
    variables: dict[str, str],
    suffix: str,
    process_group: bool,
) -> None:
    if process_group:
        os.setpgid(0, 0)
    os.chdir(folder)
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # an engine of this test may have started the server
    for stream, name in ((1, f"out{suffix}.txt"), (2, f"err{suffix}.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    torch.set_num_threads(1)  # tests share few cores
    sys.argv = [module, *args]
    importlib.import_module(f"{module}.__main__").main()

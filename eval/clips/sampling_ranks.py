"""Several processes sample the clips of one evaluation into its cache: one per GPU, on one machine or on several.

Each process takes the next batch that is not in the cache and that no other process is sampling. It holds a lock on the
batch meanwhile, which the system releases however the process ends, so a process that is lost costs one batch. A batch
has the same clips whichever process samples it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from eval.clips.conditions import Condition, Item
from eval.clips.sampled import SampledClips
from iclora_train.config import Config, ConfigError
from iclora_train.config.hydra_app import child_command
from iclora_train.core.atomic_files import claim, is_alive
from iclora_train.core.local_ranks import evaluation_processes
from iclora_train.core.ranks import placement

WAIT = 0.5  # seconds between two looks for batches that other processes are sampling
FIRST = ".first"  # in the folder of results: `seen_alive` of the first process


@dataclass(frozen=True)
class SamplingRank:
    """The number of this process among those that sample, and how many there are."""

    rank: int = 0
    count: int = 1


def sampling_rank(config: Config) -> SamplingRank:
    """The place of this process: given by the launcher (torchrun, srun, the parent), else the first of eval.devices.

    On a machine with several GPUs, the GPU of this process becomes the current one."""
    place = placement()
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    if place.world_size > 1:
        return SamplingRank(place.rank, place.world_size)
    return SamplingRank(0, evaluation_processes(config))


class Samplers:
    """The processes that sample together with the first one, which has this object.

    command: what is started as the other processes, with the settings of this process and, after them, `overrides`.
    rank: of this process.
    """

    def __init__(self, command: str, rank: SamplingRank, overrides: Sequence[str] = ()) -> None:
        self.command, self.count, self.overrides = command, rank.count, overrides
        self._are_started = False
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._pipe = ExitStack()  # ends the others however this process ends

    def start(self) -> bool:
        """Start the others on this machine, unless a launcher has started them. Returns whether they are new."""
        if self._are_started or self.count == 1:
            return False
        self._are_started = True
        if placement().world_size == 1:
            reading, writing = os.pipe()
            self._pipe.callback(os.close, writing)
            self._pipe.callback(os.close, reading)
            for number in range(1, self.count):
                self._processes[number] = subprocess.Popen(
                    child_command(self.command, reading, *self.overrides),
                    env={**os.environ, **_variables(number, self.count)},
                    pass_fds=[reading],
                    process_group=0,
                )
        return True

    def failures(self) -> list[str]:
        """A line for each of them that has failed since the last call."""
        ended = {number: code for number, process in self._processes.items() if (code := process.poll()) is not None}
        for number in ended:
            del self._processes[number]
        return [
            f"sampling process {number} has ended with exit code {code}: the others sample its clips"
            for number, code in ended.items()
            if code
        ]

    def end(self, is_done: bool) -> None:
        """End those that this process has started. is_done: all is sampled, so that they end without a word."""
        for process in self._processes.values():
            process.kill() if is_done else process.terminate()
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._pipe.close()


@contextmanager
def samplers(command: str, rank: SamplingRank, overrides: Sequence[str] = ()) -> Iterator[Samplers]:
    """The processes of `rank`, which `Samplers.start` starts. They end with the block."""
    group, is_done = Samplers(command, rank, overrides), False
    try:
        yield group
        is_done = True
    finally:
        group.end(is_done)


def _variables(number: int, count: int) -> dict[str, str]:
    """The environment of a sampling process on this machine."""
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }


class FirstProcess:
    """What another process sees of the first one, which decides what is sampled. folder: of the results."""

    def __init__(self, folder: Path) -> None:
        self._path, self._was_alive = folder / FIRST, False

    def has_ended(self) -> bool:
        """Whether it has ended. False before it has begun, and on a file system without locks."""
        is_running = is_alive(self._path)
        self._was_alive |= is_running
        return self._was_alive and not is_running

    def ended(self) -> ConfigError:
        """The error of a process that waits for its decision in vain."""
        return ConfigError(
            f"the first process has ended before all was sampled into {self._path.parent}: see its error"
        )


@dataclass(frozen=True)
class MissingBatch:
    """A batch of a condition that may be sampled, and its file in the cache."""

    path: Path
    condition: Condition
    batch: Sequence[Item]


def work_of(
    source: SampledClips, conditions: Iterable[Condition], batches: Sequence[Sequence[Item]], rank: SamplingRank
) -> list[MissingBatch]:
    """All batches of the conditions. Each process begins at another one, so that they meet late, also where the file
    system has no locks."""
    work = [
        MissingBatch(source.cache.path(source.specification(condition, batch)), condition, batch)
        for condition in conditions
        for batch in batches
    ]
    start = rank.rank * len(work) // rank.count
    return work[start:] + work[:start]


def sample_if_free(source: SampledClips, missing: MissingBatch) -> bool:
    """Sample a batch, unless it is in the cache or another process is sampling it. Returns whether it was sampled."""
    if missing.path.exists():
        return False
    with claim(missing.path.with_suffix(".lock")) as is_mine:
        if not is_mine or missing.path.exists():
            return False
        source.clips(missing.condition, missing.batch)
        return True


def sample_missing(
    source: SampledClips, batches: Sequence[Sequence[Item]], rank: SamplingRank, on_progress: Callable[[int], None]
) -> None:
    """Sample all batches of all conditions that are not in the cache, together with the other processes.

    Returns when the cache has all of them. on_progress: called with the number of batches that it has.
    """
    work = work_of(source, source.conditions, batches, rank)
    todo = work
    while todo:
        has_sampled = False
        for missing in todo:
            if sample_if_free(source, missing):
                has_sampled = True
                on_progress(sum(entry.path.exists() for entry in work))
        todo = [entry for entry in todo if not entry.path.exists()]
        on_progress(len(work) - len(todo))
        if todo and not has_sampled:
            time.sleep(WAIT)

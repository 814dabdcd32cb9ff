"""Several processes sample the clips of one evaluation into its cache: one per GPU, on one machine or on several.

Each process takes the next batch that is not in the cache and that no other process is sampling. It holds a lock on the
batch meanwhile, which the system releases however the process ends, so a process that is lost costs one batch. A batch
has the same clips whichever process samples it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from eval.clips.conditions import Item
from eval.clips.sampled import SampledClips
from iclora_train.config import Config
from iclora_train.config.hydra_app import child_command
from iclora_train.core.atomic_files import claim
from iclora_train.core.local_ranks import evaluation_processes
from iclora_train.core.ranks import placement

WAIT = 0.5  # seconds between two looks for batches that other processes are sampling


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


@contextmanager
def started_samplers(rank: SamplingRank) -> Iterator[Callable[[], list[str]]]:
    """Start the other processes of `rank` on this machine, unless a launcher has started them.

    Yields a function that returns a line for each of them that has failed since the last call. They end with this
    process.
    """
    with ExitStack() as stack:
        processes: dict[int, subprocess.Popen[bytes]] = {}
        if rank.count > 1 and placement().world_size == 1:
            reading, writing = os.pipe()
            stack.callback(os.close, writing)
            stack.callback(os.close, reading)
            for number in range(1, rank.count):
                processes[number] = subprocess.Popen(
                    child_command("eval", reading),
                    env={**os.environ, **_variables(number, rank.count)},
                    pass_fds=[reading],
                    process_group=0,
                )
            stack.callback(_end, processes)

        def failures() -> list[str]:
            ended = {number: code for number, process in processes.items() if (code := process.poll()) is not None}
            for number in ended:
                del processes[number]
            return [
                f"sampling process {number} has ended with exit code {code}: the others sample its clips"
                for number, code in ended.items()
                if code
            ]

        yield failures


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


def _end(processes: dict[int, subprocess.Popen[bytes]]) -> None:
    for process in processes.values():
        process.terminate()
    for process in processes.values():
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def sample_missing(
    source: SampledClips, batches: Sequence[Sequence[Item]], rank: SamplingRank, on_progress: Callable[[int], None]
) -> None:
    """Sample all batches of all conditions that are not in the cache, together with the other processes.

    Returns when the cache has all of them. on_progress: called with the number of batches that it has.
    """
    work = [
        (source.cache.path(source.specification(condition, batch)), condition, batch)
        for condition in source.conditions
        for batch in batches
    ]
    start = rank.rank * len(work) // rank.count
    todo = work[start:] + work[:start]  # so that processes meet late, also where the file system has no locks
    while todo:
        sampled = False
        for path, condition, batch in todo:
            if path.exists():
                continue
            with claim(path.with_suffix(".lock")) as is_mine:
                if is_mine and not path.exists():
                    source.clips(condition, batch)
                    sampled = True
                    on_progress(sum(path.exists() for path, _, _ in work))
        todo = [entry for entry in todo if not entry[0].exists()]
        on_progress(len(work) - len(todo))
        if todo and not sampled:
            time.sleep(WAIT)

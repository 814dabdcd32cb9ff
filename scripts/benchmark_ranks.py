"""Starts the ranks of `scripts.benchmark --devices ...` and compares numbers of GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from rich.table import Table

from iclora_train.core.console import make_console
from iclora_train.core.local_ranks import free_port

Row = dict[str, Any]
# Two ranks on one GPU: NCCL refuses them on one host. With other host names they talk through the loopback interface.
SHARED_GPU = {
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_IB_DISABLE": "1",
    "NCCL_MNNVL_ENABLE": "0",
}


def compare(devices: list[int], arguments: list[str], share_gpu: bool) -> None:
    """Measure with each number of ranks, one after the other, and print a table of tokens/s.

    arguments: the command line, which every rank gets. share_gpu: all ranks use the first visible GPU.
    """
    rows = [row for number in devices for row in measure_with(number, arguments, share_gpu)]
    make_console(width=120).print(table(rows))


def measure_with(number: int, arguments: list[str], share_gpu: bool) -> list[Row]:
    """Run the benchmark in `number` processes. Prints and returns the rows of rank 0."""
    port = str(free_port())
    command = [sys.executable, "-m", "scripts.benchmark", *arguments, "--as-rank"]
    with ExitStack() as stack:
        processes = []
        for rank in range(number):
            environment = {**os.environ, **variables(rank, number, port, share_gpu)}
            out = subprocess.PIPE if rank == 0 else None
            process = stack.enter_context(subprocess.Popen(command, env=environment, stdout=out, text=True))
            stack.callback(process.kill)
            processes.append(process)
        rows = list(_rows(processes[0]))
        codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"the benchmark with {number} ranks failed: exit codes {codes}")
    return rows


def variables(rank: int, number: int, port: str, share_gpu: bool) -> dict[str, str]:
    """The environment of a rank, as torchrun sets it."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "GROUP_RANK": 0}
    shared = {}
    if share_gpu:
        first_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        shared = {**SHARED_GPU, "NCCL_HOSTID": f"rank{rank}", "CUDA_VISIBLE_DEVICES": first_gpu}
    return {
        **{key: str(value) for key, value in values.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        **shared,
    }


def _rows(process: subprocess.Popen[str]) -> Iterator[Row]:
    """The measurements that a process prints. All its lines are passed on."""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        row = json.loads(line)
        if "seconds" in row:
            yield row


def table(rows: list[Row]) -> Table:
    """Tokens/s by variant, shape and number of GPUs, with the ratio to one GPU."""
    single = {(row["variant"], row["shape"]): row["tokens_per_s"] for row in rows if row["devices"] == 1}
    results = Table("variant", "shape", "GPUs", "s per step", "tokens/s", "times one GPU", "first step, s", "GiB")
    for row in sorted(rows, key=lambda row: (row["variant"], row["shape"], row["devices"])):
        alone = single.get((row["variant"], row["shape"]))
        ratio = f"{row['tokens_per_s'] / alone:.2f}" if alone else ""
        numbers = [row["devices"], row["seconds"], row["tokens_per_s"], ratio, row["first"], row["gib"]]
        results.add_row(row["variant"], row["shape"], *map(str, numbers))
    return results

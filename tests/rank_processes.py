"""Run a function on several ranks: processes of this machine, connected with gloo."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from iclora_train.core.ranks import TORCH_VARIABLES

TIMEOUT = 300  # seconds
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["iclora_train.train", "iclora_train.__main__", "data_prep.pipeline"]
)  # as tests.command


def on_ranks(world_size: int, function: Callable[..., Any], *args: object) -> list[Any]:
    """The results of `function(*args)` on all ranks, in order of rank. The function must be defined in a module."""
    with tempfile.TemporaryDirectory() as folder:
        connections, processes = [], []
        for rank in range(world_size):
            receiver, sender = _CONTEXT.Pipe(duplex=False)
            place = (rank, world_size, f"file://{folder}/store")
            processes.append(_CONTEXT.Process(target=_main, args=(place, sender, function, args)))
            processes[-1].start()
            sender.close()
            connections.append(receiver)
        try:
            results: dict[int, Any] = {}
            while len(results) < world_size:
                pending = [connection for rank, connection in enumerate(connections) if rank not in results]
                ready = wait(pending, timeout=TIMEOUT)
                assert ready, f"no result after {TIMEOUT} s"
                for connection in ready:  # a rank that has failed gives EOFError
                    results[connections.index(connection)] = connection.recv()
            return [results[rank] for rank in range(world_size)]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _main(place: tuple[int, int, str], sender: Connection, function: Callable[..., Any], args: Any) -> None:
    rank, world_size, store = place
    values = (rank, rank, world_size, "localhost", 0)
    os.environ.update({name: str(value) for name, value in zip(TORCH_VARIABLES, values, strict=True)})
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    torch.set_num_threads(1)  # tests share few cores
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    sender.send(function(*args))
    dist.barrier()  # no rank ends while another one still waits for it

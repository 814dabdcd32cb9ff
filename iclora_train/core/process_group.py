"""The process group of a run: all ranks are connected before anything slow begins, and end together.

    with process_group(device):          # a single process: does nothing
        plan = from_first(read_plan())   # the value of rank 0
        peaks = gather(peak_memory())    # the values of all ranks

If one rank fails, `rank_monitor` ends the others within seconds, and rank 0 prints the message of the failed rank.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from iclora_train.config import ConfigError
from iclora_train.config.endings import StoppedError, exit_at_signal
from iclora_train.core.rank_monitor import RankMonitor
from iclora_train.core.ranks import Placement, placement

T = TypeVar("T")
# Ranks wait for one another while one of them compiles or reads a slow disk. A rank that has ended is noticed earlier.
TIMEOUT = timedelta(minutes=30)
START_AGAIN = "the ranks were not yet connected; the same command starts again"


def gather(value: T) -> list[T]:
    """The values of all ranks, in order of rank. All ranks call this together. Not for use in every step: the host
    waits."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value] # every entry is replaced


def from_first(value: T) -> T:
    """The value of rank 0. All ranks call this together."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def local_world_size() -> int:
    """The number of ranks on this node. All ranks call this together."""
    known = placement().local_world_size
    hosts = gather(socket.gethostname()) if known is None else []
    return known or hosts.count(socket.gethostname())


@contextmanager
def process_group(
    device: torch.device, recorded_signal: Callable[[], int | None] = lambda: None
) -> Iterator[Placement]:
    """Connect the ranks of the run with NCCL on GPUs, with gloo on CPUs, and watch them (`RankMonitor`).

    device: of this rank; it becomes the current CUDA device, on which kernels are launched. recorded_signal: a signal
    that this rank has received and handles later; the other ranks get it, too. ConfigError when the ranks cannot be
    connected.
    """
    place = placement()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if place.world_size == 1:
        yield place
        return
    os.environ.update(MASTER_ADDR=place.main_address, MASTER_PORT=str(place.main_port))
    interface = os.environ.get("NCCL_SOCKET_IFNAME", "").removeprefix("=")
    if interface in (name for _, name in socket.if_nameindex()):  # NCCL's may be a prefix or a list, gloo's may not
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    backend = "nccl" if device.type == "cuda" else "gloo"
    address = f"{place.main_address}:{place.main_port}"
    try:
        with exit_at_signal(START_AGAIN if place.rank == 0 else None):
            dist.init_process_group(backend, rank=place.rank, world_size=place.world_size, timeout=TIMEOUT)
            monitor = RankMonitor(place, recorded_signal)
    except (dist.DistError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"rank {place.rank} of {place.world_size} on {socket.gethostname()} cannot join the others at {address} "
            f"({_first_line(error)}): see docs/cluster.md#when-it-hangs; MASTER_ADDR and MASTER_PORT choose the address"
        ) from error
    with monitor:
        try:
            gather(place.rank)  # the first collective connects all ranks
        except (dist.DistError, RuntimeError) as error:
            raise ConfigError(f"{backend} cannot connect the ranks: {_reason(error)}") from error
        stopped = None
        try:
            yield place
        except StoppedError as error:  # not a failure of this rank: all of them have stopped
            stopped = error
        dist.barrier(device_ids=None if device.type == "cpu" else [torch.cuda.current_device()])
    dist.destroy_process_group()
    if stopped is not None:
        raise stopped


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


def _reason(error: BaseException) -> str:
    """The line of NCCL that says what is wrong, e.g. that two ranks use one GPU."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if "Duplicate GPU" in line or line.startswith("ncclSystemError")]
    remedy = ": start one rank per GPU" if any("Duplicate GPU" in line for line in telling) else ""
    return (telling[-1] if telling else _first_line(error)) + remedy

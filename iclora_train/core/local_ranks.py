"""Start the ranks of a run on this machine: one child process per device, for `trainer.devices=N` without a launcher.

The children get torchrun's environment variables, so a run is the same however it was started. This process does no
work: it passes signals on, so that the ranks can write their checkpoint, and ends with the exit code of the first rank
that failed. No torch import, unless `trainer.devices` asks for all GPUs.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from types import FrameType
from typing import Any

from iclora_train.config import Config, ConfigError, require
from iclora_train.config.endings import SIGNALS
from iclora_train.config.hydra_app import child_command
from iclora_train.core.ranks import PORTS, ranks_on_node, world_size

POLL = 0.2  # seconds
GRACE = 30.0  # seconds for the other ranks to end after the first one has ended with an error
KILLED_GRACE = 5.0  # the same after a rank was killed


def ranks_to_start(trainer: dict[str, Any]) -> tuple[int, int]:
    """The number of ranks to start on this machine, and of machines; 1 and 1 if this process trains by itself: as a
    rank that a launcher has started, or on one device."""
    if world_size() > 1:
        return 1, 1
    num_nodes = str(trainer.get("num_nodes") or 1)
    require(num_nodes.isdecimal(), f"trainer.num_nodes={num_nodes} must be a number of machines")
    return device_count(trainer), int(num_nodes)


def quiet_torch() -> None:
    """Keep torch's C++ code from printing warnings in a run of several ranks, e.g. at an exit after an error.

    Called before torch is imported. TORCH_CPP_LOG_LEVEL=INFO in the environment prints everything.
    """
    if world_size() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def device_count(trainer: dict[str, Any]) -> int:
    """The number of devices that trainer.devices names: a number, a list of GPUs, or auto (-1) for all GPUs."""
    devices = trainer.get("devices", 1)
    if listed := listed_gpus(devices):
        return len(listed)
    if devices in ("auto", "-1", -1, None):
        if trainer.get("accelerator") == "cpu":
            return 1
        import torch  # noqa: PLC0415 (slow)

        return max(1, torch.cuda.device_count())
    count = int(devices) if str(devices).isdecimal() else 0
    require(count > 0, f"trainer.devices={devices} must be a number of devices, a list of GPUs as [0,2], or auto")
    return count


def evaluation_processes(config: Config) -> int:
    """The number of processes that sample in an evaluation by this run, on this machine: eval.devices, by default as
    many as GPUs train here. ConfigError for more than it has."""
    import torch  # noqa: PLC0415 (slow)

    visible, devices = torch.cuda.device_count(), config.eval.devices
    if devices is not None:
        require(
            not visible or devices <= visible,
            f"eval.devices={devices}, but {visible} GPUs are visible: set at most that, or null",
        )
        return devices
    return max(1, min(max(device_count(config.trainer), ranks_on_node()), visible))


def listed_gpus(devices: object) -> list[int]:
    """The GPU numbers that trainer.devices lists, e.g. [0,2] or "0,2"; empty if it is not a list."""
    parts = devices.split(",") if isinstance(devices, str) and "," in devices else devices
    if not isinstance(parts, list | tuple):
        return []
    numbers = [str(part).strip() for part in parts if str(part).strip()]
    require(
        bool(numbers) and all(number.isdecimal() for number in numbers) and len(set(numbers)) == len(numbers),
        f"trainer.devices={devices} must list each GPU once, by its number",
    )
    return [int(number) for number in numbers]


def run_ranks(command: str, count: int, num_nodes: int = 1) -> None:
    """Run `count` ranks of a command with this command's overrides; if one fails, exit with its exit code."""
    variables = _variables(count, num_nodes)
    node = int(variables["NODE_RANK"])
    with ExitStack() as stack:
        reading, writing = os.pipe()  # the ranks end when this process has ended
        stack.callback(os.close, writing)
        stack.callback(os.close, reading)
        ranks = [
            subprocess.Popen(
                child_command(command, reading),
                env={**variables, "RANK": str(node * count + i), "LOCAL_RANK": str(i)},
                pass_fds=[reading],
                process_group=0,  # a terminal sends Ctrl-C to this process only, which passes it on
            )
            for i in range(count)
        ]
        stack.callback(_kill, ranks)
        with _signals_passed_on(ranks):
            code = _wait(ranks)
    if code:
        raise SystemExit(code)


def _variables(count: int, num_nodes: int) -> dict[str, str]:
    """The environment of the ranks, without RANK and LOCAL_RANK."""
    variables = dict(os.environ)
    if num_nodes == 1:
        variables |= {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in variables]
    if missing:
        raise ConfigError(
            f"trainer.num_nodes={num_nodes}: start the command on every node with srun or torchrun, or set "
            f"{', '.join(missing)} (docs/cluster.md)"
        )
    for name in ("MASTER_PORT", "NODE_RANK"):
        require(variables[name].isdecimal(), f"the environment variable {name}={variables[name]} must be a number")
    node = int(variables["NODE_RANK"])
    require(node < num_nodes, f"NODE_RANK={node}: trainer.num_nodes={num_nodes} machines are numbered from 0")
    variables.pop("GROUP_RANK", None)
    return variables | {"WORLD_SIZE": str(count * num_nodes), "LOCAL_WORLD_SIZE": str(count)}


def free_port() -> int:
    """One of PORTS that no process uses now. Rank 0 opens it only seconds later."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with closing(socket.socket()) as opened, suppress(OSError):
            opened.bind(("127.0.0.1", port))
            return port
    raise ConfigError(f"no port from {PORTS[0]} to {PORTS[-1]} is free on this machine: end processes that use them")


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit code of the run: that of the first rank that failed, after all ranks have ended."""
    deadline, code = None, 0
    while None in (codes := [rank.poll() for rank in ranks]):
        ended = [(i, exit_code) for i, exit_code in enumerate(codes) if exit_code]
        if ended and deadline is None:
            number, code = ended[0]
            deadline = time.monotonic() + (GRACE if code > 0 else KILLED_GRACE)
            if code < 0:
                name = signal.Signals(-code).name
                print(f"error: rank {number} was ended by {name}" + _cause(name), file=sys.stderr)
        if deadline is not None and time.monotonic() > deadline:
            _kill(ranks)
        time.sleep(POLL)
    code = code or next((rank.returncode for rank in ranks if rank.returncode), 0)
    return code if code >= 0 else 128 - code


def _cause(name: str) -> str:
    return " (the system does this when host memory is full)" if name == "SIGKILL" else ""


@contextmanager
def _signals_passed_on(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Inside the `with`, a signal to this process goes to all ranks, which decide how to end."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    numbers = [number for number in (signal.SIGINT, *SIGNALS) if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _kill(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
            rank.wait()

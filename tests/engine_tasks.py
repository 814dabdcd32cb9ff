"""Work for the engines of data_prep in tests. Workers import this file: it imports neither torch nor pytest."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from iclora_train.config import ConfigError


def halve(number: int) -> float:
    time.sleep(0.02 * (number % 3))
    return number / 2


def die_of_five(item: tuple[int, str]) -> int:
    """Item 5 kills the worker every time, item 6 the first time."""
    number, folder = item
    if number == 5 or (number == 6 and not Path(folder, "once").exists()):
        Path(folder, "once").touch()
        os._exit(7) if number == 5 else os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse_three(number: int) -> int:
    if number == 3:
        raise ConfigError("task.maker_args.model=x does not exist")
    return number


def sleep_long(pid_file: str) -> None:
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(600)


def count_and_sleep(item: tuple[int, str]) -> int:
    """Adds a byte to a file of its item."""
    number, folder = item
    with Path(folder, str(number)).open("a") as file:
        file.write("x")
    time.sleep(0.4)
    return number


class MortalEncoder:
    """Takes the place of a VAE: ten samples a shard. Its process dies before the sample of a shard `<name>-<sample>`.

    It does so once for `once-<sample>`, and every time for other shards with a number.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encode_shard(self, pairs: object, shard: str) -> Iterator[str]:
        name, _, number = shard.partition("-")
        marker = self.folder / shard
        for i in range(10):
            if number == str(i) and not (name == "once" and marker.exists()):
                marker.touch()
                os._exit(7)
            yield f"{shard}: {i}"

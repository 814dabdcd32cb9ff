"""Work for the engines of data_prep in tests. Workers import this file: it imports neither torch nor pytest."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from threading import Thread

import av
import cv2
import numpy as np

from iclora_train.config import ConfigError
from iclora_train.media.frame_decoder import FrameDecoder


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


def page_faults(size: int) -> int:
    """Pages that the system clears while an array of `size` bytes is made ten times, after the first time."""
    np.ones(size, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(size, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


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
    """Takes the place of a VAE: a batch is a list of names. Its process dies at the name `once-<x>`, the first time,
    and at the name `always`, every time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def batch_pixels(self) -> int:
        return 12

    def encode_batch(self, batch: list[str]) -> list[str]:
        for name in batch:
            marker = self.folder / name
            if name == "always" or (name.startswith("once") and not marker.exists()):
                marker.touch()
                os._exit(7)
        return [f"latents of {name}" for name in batch]


def threads_of(clip: Path) -> tuple[int, int, int, int]:
    """Threads that this process may use: of OpenCV, of torch, of a decoder; and the most that a preview started."""
    import torch  # noqa: PLC0415

    from iclora_train.media.shard_clip import encode_preview  # noqa: PLC0415

    with av.open(str(clip)) as container:
        decoder = FrameDecoder(container.streams.video[0])
        decoder_threads = decoder.stream.codec_context.thread_count
    frames, counts = np.zeros((300, 320, 320, 3), np.uint8), []
    encoding = Thread(target=encode_preview, args=(frames, 25.0))
    before = len(os.listdir("/proc/self/task"))
    encoding.start()
    while encoding.is_alive():
        counts.append(len(os.listdir("/proc/self/task")) - before - 1)
    return cv2.getNumThreads(), torch.get_num_threads(), decoder_threads, max(counts)


def leave_trace(item: tuple[int, str]) -> int:
    """Leaves a file with the item's number. Item 0 first waits for the file of item 3."""
    number, folder = item
    if number == 0:
        wait_for(Path(folder, "3"))
    Path(folder, str(number)).touch()
    return number


def wait_for(path: Path) -> None:
    """Wait until a file exists. TimeoutError after 30 seconds."""
    end = time.monotonic() + 30
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.01)

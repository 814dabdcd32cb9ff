"""Settings of a worker process: it uses one core, because there are as many workers as cores.

OpenCV, FFmpeg and torch start a thread per core by default. Sixteen workers with sixteen threads each took four times
as long for a pair as one worker alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache

import cv2

from iclora_train.media.frame_decoder import set_decoder_threads

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
KEPT = 2**30  # bytes of free memory at the end of the heap that the process keeps


@lru_cache(maxsize=1)
def use_one_core() -> None:
    """Make this process a worker. The second call does nothing."""
    cv2.setNumThreads(1)
    set_decoder_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for a torch that is imported later
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Use the memory of freed arrays again instead of returning it to the system.

    glibc maps every array above 32 MB anew, and the system then clears its pages one by one: a quarter of the processor
    time of a pair of 960x544x89. Other C libraries than glibc keep their settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, KEPT)

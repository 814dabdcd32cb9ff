"""The C library's memory settings of a process that makes pairs."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
KEPT = 2**30  # bytes of free memory at the end of the heap that the process keeps


def keep_freed_memory() -> None:
    """Use the memory of freed arrays again instead of returning it to the system.

    glibc maps every array above 32 MB anew, and the system then clears its pages one by one: a quarter of the processor
    time of a pair of 960x544x89. Other C libraries than glibc keep their settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, KEPT)

"""A process that belongs to a group, as DistributedDataParallel wants it, alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def a_group_of_one(folder: Path) -> Iterator[None]:
    """Inside the `with`; it is found by a file in `folder`."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/found", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()

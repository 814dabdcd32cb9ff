"""A process group of one process, which DistributedDataParallel needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def single_process_group(folder: Path, backend: str = "gloo") -> Iterator[None]:
    """The group exists inside the `with`; `folder` holds its rendezvous file."""
    torch.distributed.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()

"""Tells torch.compile to run small kernels that do not wait for one another as one.

A compiled block has dozens of them, forwards and backwards: adapters cast to bf16, gates, sums of what programs found
apart. Large ones stay where they are: what is computed again for the backward pass would all be in memory from its
beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch._inductor.config
from torch._inductor.scheduler import (
    BaseSchedulerNode,
    ForeachKernelSchedulerNode,
    FusedSchedulerNode,
    Scheduler,
    SchedulerNode,
)

SMALL = 2**23  # numbers that a kernel makes, times how many it sums up for each
Groups = list[list[BaseSchedulerNode]]
_every: Callable[[Scheduler], Groups] = ForeachKernelSchedulerNode.group_algorithm_for_combo_kernels


def enable_combo_kernels() -> None:
    """From now on, in this process, for whatever is compiled for a GPU."""
    torch._inductor.config.combo_kernels = True
    ForeachKernelSchedulerNode.set_group_algorithm_for_combo_kernels(small_groups)


def small_groups(scheduler: Scheduler) -> Groups:
    """What the compiler would combine, without what is large."""
    return [[node for node in group if is_small(node)] for group in _every(scheduler)]


def is_small(node: BaseSchedulerNode) -> bool:
    """Whether a kernel of the compiler's own makes at most `SMALL` numbers, what it sums up counted."""
    if not isinstance(node, SchedulerNode | FusedSchedulerNode) or isinstance(node, ForeachKernelSchedulerNode):
        return False
    sizes: tuple[Any, ...] = node.group[1]
    return bool(math.prod(sizes) <= SMALL)

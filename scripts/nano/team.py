"""Minimal data parallelism under torchrun: each rank generates its own clips, one all-reduce averages the gradients."""

import os

import torch
import torch.distributed as dist
from torch import Tensor


class Team:
    """The process group of a torchrun, or a single process."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        if self.size > 1:
            dist.init_process_group("nccl" if cuda else "gloo")

    def from_first(self, value: float) -> float:
        """The value of rank 0, on every rank."""
        shared = torch.tensor(value, device=self.device, dtype=torch.float64)
        if self.size > 1:
            dist.broadcast(shared, 0)
        return shared.item()

    def average(self, grads: list[Tensor]) -> None:
        """Replace gradients by their mean over all ranks, with one all-reduce."""
        if self.size == 1:
            return
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        parts = flat.div_(self.size).split([grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])

"""All blocks of a training step as two CUDA graphs: the host starts thousands of kernels with two calls.

A graph computes where it was recorded, so what goes in is copied to the same place every time, and the memory between
its two halves stays taken. It is recorded when a shape is met for the second time; the first time compiles. Graphs of
several shapes share their memory, which only a step of another kind (attention weights, a shape that is new) needs too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)
Given = tuple[Tensor | None, ...]
Blocks = Callable[[Given, int | None], Tensor]
Work = Callable[[], Sequence[Tensor]]
LIMIT = 8  # shapes of one process; with more of them nothing is recorded


class Capture(Protocol):
    """Runs some work once and remembers it: what it made, and how to make it again in the same place."""

    def __call__(self, work: Work) -> tuple[Sequence[Tensor], Callable[[], object]]: ...


class GraphCapture:
    """CUDA graphs that share memory: what one keeps lasts until the next forward pass of any of them."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> tuple[Sequence[Tensor], Callable[[], object]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            made = work()
        return made, graph.replay


class CudaGraphs:
    """Runs blocks in training by what was recorded of them, and records what it meets again."""

    def __init__(self, recorder: Callable[[], Capture] = GraphCapture, limit: int = LIMIT) -> None:
        self.begin, self.limit = recorder, limit
        self.recorder: Capture | None = None
        self.seen_shapes: set[Hashable] = set()
        self.captured: dict[Hashable, CapturedStep] = {}
        self.gradients: dict[nn.Parameter, Tensor] = {}  # where every graph leaves them
        self.passes = 0  # forwards, so far
        self.stopped = ""  # why nothing is recorded any more

    def run(self, blocks: Blocks, given: Given, num_outputs: int | None, net: nn.Module) -> Tensor:
        """blocks(given, num_outputs) with gradients for the parameters inside `net`, and for nothing that is given."""
        given = tuple(None if tensor is None else tensor.contiguous() for tensor in given)  # as copies of it will be
        key = (tuple(None if t is None else (t.shape, t.dtype) for t in given), num_outputs, _surroundings())
        if not self.stopped and key not in self.seen_shapes:
            self.drop()  # what is not recorded takes its memory elsewhere
            self.seen_shapes.add(key)
            if len(self.seen_shapes) > self.limit:
                self.stop(f"more than {self.limit} shapes")
            return blocks(given, num_outputs)
        if not self.stopped and key not in self.captured:
            self._record(key, blocks, given, num_outputs, net)
        if self.stopped:
            return blocks(given, num_outputs)
        out: Tensor = _Replayed.apply(self, self.captured[key], given, *self.gradients)
        return out

    def _record(self, key: Hashable, blocks: Blocks, given: Given, num_outputs: int | None, net: nn.Module) -> None:
        self.recorder = self.recorder or self.begin()
        self.passes += 1  # what was kept before is overwritten
        with suppress(torch.OutOfMemoryError):
            if not self.gradients:
                self.gradients = {part: torch.zeros_like(part) for part in net.parameters() if part.requires_grad}
            self.captured[key] = CapturedStep(self.recorder, blocks, given, num_outputs, self.gradients)
        if key not in self.captured:  # and what was made of it is gone
            self.stop("too little memory")

    def drop(self) -> None:
        """Give the memory of all graphs back; they are recorded anew when they are next wanted."""
        if self.recorder is not None:
            self.captured, self.recorder = {}, None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def stop(self, why: str) -> None:
        """From now on everything runs as it does without graphs."""
        log.warning("steps are no longer replayed as CUDA graphs: %s", why)
        self.stopped = why
        self.drop()
        self.gradients = {}


def _surroundings() -> Hashable:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


class CapturedStep:
    """A forward and a backward pass, and the tensors that they read and write."""

    def __init__(
        self,
        recorder: Capture,
        blocks: Blocks,
        given: Given,
        num_outputs: int | None,
        gradients: dict[nn.Parameter, Tensor],
    ) -> None:
        self.blocks, self.num_outputs = blocks, num_outputs
        self.parameters, self.gradients = list(gradients), list(gradients.values())
        self.given = tuple(None if tensor is None else tensor.detach().clone() for tensor in given)
        for tensor, own in zip(given, self.given, strict=True):
            if tensor is not None and own is not None:
                own.requires_grad_(tensor.requires_grad)
        torch.clear_autocast_cache()  # what it holds was cast from weights of earlier steps
        self.live: Tensor | None = None
        (self.out,), self.forwards = recorder(self._forwards)
        self.coming = torch.zeros_like(self.out)
        _, self.backwards = recorder(self._backwards)

    def _forwards(self) -> Sequence[Tensor]:
        self.live = self.blocks(self.given, self.num_outputs)
        return (self.live.detach(),)

    def _backwards(self) -> Sequence[Tensor]:
        assert self.live is not None
        found = torch.autograd.grad(self.live, self.parameters, self.coming, materialize_grads=True)
        self.live = None
        torch._foreach_copy_(self.gradients, found)
        return self.gradients

    def forward(self, given: Given) -> Tensor:
        """What the blocks make of `given`, there until the next call."""
        for own, tensor in zip(self.given, given, strict=True):
            if own is not None and tensor is not None:
                own.copy_(tensor)
        with torch.enable_grad():
            self.forwards()
        return self.out.detach()

    def backward(self, grad: Tensor) -> list[Tensor]:
        """Gradients of the parameters for the result's, there until the next call."""
        for parameter, place in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is not None and parameter.grad.data_ptr() == place.data_ptr():
                parameter.grad = parameter.grad.clone()  # of an earlier batch, to be added to
        self.coming.copy_(grad)
        self.backwards()
        return [place.detach() for place in self.gradients]


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graphs: CudaGraphs, recorded: CapturedStep, given: Given, *parameters: Tensor) -> Tensor:
        graphs.passes += 1
        ctx.graphs, ctx.recorded, ctx.number = graphs, recorded, graphs.passes
        return recorded.forward(given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.number != ctx.graphs.passes:
            raise RuntimeError(
                "a recorded pass has one backward pass, before the next forward pass (model.cuda_graphs)"
            )
        ctx.number = None
        return None, None, None, *ctx.recorded.backward(grad)

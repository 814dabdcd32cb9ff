"""All blocks of a training step as two CUDA graphs: the host launches thousands of kernels with two calls.

A graph computes at the addresses at which it was captured. Its inputs are therefore copied to fixed tensors, and the
memory between the forward and the backward graph stays allocated. The first step of a shape runs normally, which
compiles the blocks; the second one captures the graphs. The graphs of all shapes share one memory pool. A step of a new
shape needs memory outside that pool. The first step with attention weights switches CUDA graphs off for the whole run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)
Tensors = tuple[Tensor, ...]
Function = Callable[[Tensors], Tensor]  # the captured function: input tensors -> output
MAX_SHAPES = 8  # with more shapes in one process, CUDA graphs are switched off


class Capture(Protocol):
    """Runs `work` once and captures it. Returns its output tensors, and a call that recomputes them in place."""

    def __call__(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], object]]: ...


class CudaCapture:
    """Captures CUDA graphs in a shared memory pool. A graph's outputs last until any graph's next forward pass."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], object]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = work()
        return outputs, graph.replay


class CudaGraphs:
    """Captures a function of tensors at the second call with a shape, and replays it from then on."""

    def __init__(self, new_capture: Callable[[], Capture] = CudaCapture, max_shapes: int = MAX_SHAPES) -> None:
        self.new_capture, self.max_shapes = new_capture, max_shapes
        self.capture: Capture | None = None
        self.seen_shapes: set[Hashable] = set()
        self.captured: dict[Hashable, CapturedStep] = {}
        self.grads: dict[nn.Parameter, Tensor] = {}  # all graphs write gradients to these tensors
        self.num_forwards = 0
        self.stopped = ""  # the reason, once CUDA graphs are switched off

    def run(self, function: Function, tensors: Tensors, module: nn.Module, key: Hashable = None) -> Tensor:
        """function(tensors), with gradients for the trainable parameters of `module` but not for the tensors.

        key: all values besides the tensors that the function depends on.
        """
        tensors = tuple(tensor.contiguous() for tensor in tensors)  # the fixed copies are contiguous too
        key = (tuple((tensor.shape, tensor.dtype) for tensor in tensors), key, _autocast_state())
        if not self.stopped and key not in self.seen_shapes:
            self.drop()  # a step that is not captured needs memory outside the pool
            self.seen_shapes.add(key)
            if len(self.seen_shapes) > self.max_shapes:
                self.stop(f"more than {self.max_shapes} shapes")
            return function(tensors)
        if not self.stopped and key not in self.captured:
            self._capture_step(key, function, tensors, module)
        if self.stopped:
            return function(tensors)
        out: Tensor = _Replay.apply(self, self.captured[key], tensors, *self.grads)
        return out

    def _capture_step(self, key: Hashable, function: Function, tensors: Tensors, module: nn.Module) -> None:
        self.capture = self.capture or self.new_capture()
        self.num_forwards += 1  # the capture overwrites the saved tensors of earlier forward passes
        with suppress(torch.OutOfMemoryError):
            if not self.grads:
                self.grads = {p: torch.zeros_like(p) for p in module.parameters() if p.requires_grad}
            self.captured[key] = CapturedStep(self.capture, function, tensors, self.grads)
        if key not in self.captured:  # out of memory; the exception's tensors are freed by now
            self.stop("too little memory")

    def drop(self) -> None:
        """Free the memory of all graphs. They are captured again when they are next needed."""
        if self.capture is not None:
            self.captured, self.capture = {}, None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def stop(self, reason: str) -> None:
        """Switch CUDA graphs off."""
        log.warning("steps are no longer replayed as CUDA graphs: %s", reason)
        self.stopped = reason
        self.drop()
        self.grads = {}


def _autocast_state() -> Hashable:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


class CapturedStep:
    """A captured forward and backward pass, with the tensors that they read and write."""

    def __init__(
        self, capture: Capture, function: Function, tensors: Tensors, grads: dict[nn.Parameter, Tensor]
    ) -> None:
        self.function = function
        self.parameters, self.grads = list(grads), list(grads.values())
        self.inputs = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)
        torch.clear_autocast_cache()  # it holds casts of the weights of earlier steps
        self.out_with_graph: Tensor | None = None  # the output with its autograd graph, until backward is captured
        (self.out,), self.replay_forward = capture(self._forward)
        self.grad_out = torch.zeros_like(self.out)
        _, self.replay_backward = capture(self._backward)

    def _forward(self) -> Sequence[Tensor]:
        self.out_with_graph = self.function(self.inputs)
        return (self.out_with_graph.detach(),)

    def _backward(self) -> Sequence[Tensor]:
        assert self.out_with_graph is not None
        grads = torch.autograd.grad(self.out_with_graph, self.parameters, self.grad_out, materialize_grads=True)
        self.out_with_graph = None
        torch._foreach_copy_(self.grads, grads)
        return self.grads

    def forward(self, tensors: Tensors) -> Tensor:
        """The output for these inputs. It is valid until the next call."""
        for fixed, tensor in zip(self.inputs, tensors, strict=True):
            fixed.copy_(tensor)
        with torch.enable_grad():
            self.replay_forward()
        return self.out.detach()

    def backward(self, grad_out: Tensor) -> list[Tensor]:
        """The parameters' gradients. They are valid until the next call."""
        for parameter, fixed in zip(self.parameters, self.grads, strict=True):
            if parameter.grad is not None and parameter.grad.data_ptr() == fixed.data_ptr():
                parameter.grad = parameter.grad.clone()  # accumulated from an earlier batch
        self.grad_out.copy_(grad_out)
        self.replay_backward()
        return [fixed.detach() for fixed in self.grads]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graphs: CudaGraphs, step: CapturedStep, tensors: Tensors, *parameters: Tensor) -> Tensor:
        graphs.num_forwards += 1
        ctx.graphs, ctx.step, ctx.number = graphs, step, graphs.num_forwards
        return step.forward(tensors)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.number != ctx.graphs.num_forwards:
            raise RuntimeError(
                "model.cuda_graphs: a replayed forward pass allows one backward pass, before the next forward pass"
            )
        ctx.number = None
        return None, None, None, *ctx.step.backward(grad_out)

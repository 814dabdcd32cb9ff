"""All blocks of a training step as a few CUDA graphs: the host launches thousands of kernels with a few calls.

The forward pass is one graph. In one process the backward pass is one graph, too. With several ranks it is
BACKWARD_PARTS graphs of consecutive blocks: autograd gets the gradients of a part as soon as its graph is launched, so
that DistributedDataParallel sends them while the next part computes.

A graph computes at the addresses at which it was captured. Its inputs are therefore copied to fixed tensors, and the
memory between the forward and the backward graphs stays allocated. Steps of a shape run normally until one of them
has compiled nothing, because a capture cannot compile; the next one captures the graphs. The graphs of all shapes share
one memory pool. A step of a new shape needs memory outside that pool. The first step with attention weights switches
CUDA graphs off for the whole run.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

log = logging.getLogger(__name__)
Tensors = tuple[Tensor, ...]
Function = Callable[[Tensors], Sequence[Tensor]]  # the captured function: input tensors -> output of each module
Grads = dict[nn.Parameter, Tensor]
MAX_SHAPES = 8  # with more shapes in one process, CUDA graphs are switched off
BACKWARD_PARTS = 8  # with several ranks; the gradients of the last part are sent when all work is done


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
    """Captures a function of tensors after a call with the same shape that compiled nothing, and replays it from then
    on."""

    def __init__(
        self,
        new_capture: Callable[[], Capture] = CudaCapture,
        max_shapes: int = MAX_SHAPES,
        backward_parts: int | None = None,
    ) -> None:
        """backward_parts: None for 1 in a single process, BACKWARD_PARTS with several ranks."""
        self.new_capture, self.max_shapes, self.backward_parts = new_capture, max_shapes, backward_parts
        self.capture: Capture | None = None
        self.seen_shapes: set[Hashable] = set()
        self.compiled_shapes: set[Hashable] = set()  # a call with this shape compiled nothing
        self.captured: dict[Hashable, CapturedStep] = {}
        self.parts: list[Grads] = []  # consecutive modules' parameters; all graphs write gradients to these tensors
        self.num_forwards = 0
        self.stopped = ""  # the reason, once CUDA graphs are switched off

    def run(self, function: Function, tensors: Tensors, modules: Sequence[nn.Module], key: Hashable = None) -> Tensor:
        """The last output of function(tensors), with gradients for the trainable parameters. Of the tensors only the
        first can have one: if something else has computed it from trainable parameters.

        modules: they compute one after the other; `function` returns the output of each.
        key: all values besides the tensors that the function depends on.
        """
        tensors = tuple(tensor.contiguous() for tensor in tensors)  # the fixed copies are contiguous too
        key = (tuple((tensor.shape, tensor.dtype) for tensor in tensors), tensors[0].is_leaf, key, _autocast_state())
        if not self.stopped and key not in self.seen_shapes:
            self.drop()  # a step that is not captured needs memory outside the pool
            self.seen_shapes.add(key)
            if len(self.seen_shapes) > self.max_shapes:
                self.stop(f"more than {self.max_shapes} shapes")
        if not self.stopped and key not in self.compiled_shapes:
            compiled = _compiled_graphs()
            out = function(tensors)[-1]
            if _compiled_graphs() == compiled:
                self.compiled_shapes.add(key)
            return out
        if not self.stopped and key not in self.captured:
            self._capture_step(key, function, tensors, modules)
        if self.stopped:
            return function(tensors)[-1]
        return self._replay(self.captured[key], tensors)

    def _capture_step(self, key: Hashable, function: Function, tensors: Tensors, modules: Sequence[nn.Module]) -> None:
        self.capture = self.capture or self.new_capture()
        self.num_forwards += 1  # the capture overwrites the saved tensors of earlier forward passes
        with suppress(torch.OutOfMemoryError):
            self.parts = self.parts or _gradients_by_part(modules, self.backward_parts or _backward_parts())
            self.captured[key] = CapturedStep(self.capture, function, tensors, self.parts, modules)
        if key not in self.captured:  # out of memory; the exception's tensors are freed by now
            self.stop("too little memory")

    def _replay(self, step: CapturedStep, tensors: Tensors) -> Tensor:
        """The output of a replayed forward pass. Each part is a node of the autograd graph."""
        self.num_forwards += 1
        number, out = self.num_forwards, step.forward(tensors)

        def backward(part: int, grad_out: Tensor) -> tuple[Tensor, list[Tensor]]:
            nonlocal number
            if part == len(self.parts) - 1:
                if number != self.num_forwards:
                    raise RuntimeError(
                        "model.cuda_graphs: a replayed forward pass allows one backward pass, before the next forward "
                        "pass"
                    )
                number = 0
                step.grad_out.copy_(grad_out)
            grads = step.backward(part)
            return step.grad_in if part == 0 and step.grad_in is not None else grad_out.new_empty(0), grads

        link = out.new_empty(0) if step.grad_in is None else tensors[0]  # connects the nodes
        for part, grads in enumerate(self.parts):
            is_last = part == len(self.parts) - 1
            link = _Part.apply(partial(backward, part), out if is_last else out.new_empty(0), link, *grads)
        return link

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
        self.parts = []


def _autocast_state() -> Hashable:
    """The state of autocast for which a block is compiled."""
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.is_autocast_cache_enabled()


def _compiled_graphs() -> int:
    """The number of graphs that torch.compile has compiled so far."""
    counters = sys.modules.get("torch._dynamo.utils")  # not imported before something is compiled
    return 0 if counters is None else int(counters.counters["stats"]["unique_graphs"])


def _backward_parts() -> int:
    return BACKWARD_PARTS if dist.is_initialized() and dist.get_world_size() > 1 else 1


def _gradients_by_part(modules: Sequence[nn.Module], parts: int) -> list[Grads]:
    """A gradient for each trainable parameter, by part of the backward pass.

    There are `parts` of them, or as many as modules, or one if a part would have no parameters: an adapter may leave
    out blocks.
    """
    size = math.ceil(len(modules) / parts)
    groups = [modules[i : i + size] for i in range(0, len(modules), size)]
    trainable = [[p for module in group for p in module.parameters() if p.requires_grad] for group in groups]
    trainable = trainable if all(trainable) else [[p for parameters in trainable for p in parameters]]
    return [{p: torch.zeros_like(p) for p in parameters} for parameters in trainable]


class _Aliases:
    """New leaf tensors in the memory of the trainable parameters of `modules`, for the capture.

    Autograd keeps one AccumulateGrad node per parameter, with the stream on which it was created, as long as a loss of
    an earlier batch or DistributedDataParallel holds it. A gradient that flows to a node of another stream cannot be
    captured. An alias has a node of its own.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        owners = {owner: None for module in modules for owner in module.modules()}  # each once
        self.places = [
            (owner, name, parameter)
            for owner in owners
            for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False)
            if parameter.requires_grad
        ]
        self.of = {parameter: nn.Parameter(parameter.detach()) for _, _, parameter in self.places}

    @contextmanager
    def in_place_of_parameters(self) -> Iterator[None]:
        """The modules compute with the aliases."""
        try:
            for owner, name, parameter in self.places:
                setattr(owner, name, self.of[parameter])
            yield
        finally:
            for owner, name, parameter in self.places:
                setattr(owner, name, parameter)


class CapturedStep:
    """A captured forward and backward pass, with the tensors that they read and write."""

    def __init__(
        self,
        capture: Capture,
        function: Function,
        tensors: Tensors,
        parts: list[Grads],
        modules: Sequence[nn.Module],
    ) -> None:
        self.function, self.parts, self.aliases = function, parts, _Aliases(modules)
        self.inputs = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)
        torch.clear_autocast_cache()  # it holds casts of the weights of earlier steps
        self.outputs: list[Tensor] = []  # of each part, with its autograd graph, until the backward pass is captured
        (self.out,), self.replay_forward = capture(self._forward)
        grad = self.grad_out = torch.zeros_like(self.out)
        self.first = [] if tensors[0].is_leaf else [self.inputs[0]]  # the first input, if it gets a gradient
        self.replay_backward: dict[int, Callable[[], object]] = {}  # part -> its backward graph
        for part in reversed(range(len(parts))):
            (grad, *_), self.replay_backward[part] = capture(partial(self._backward, part, grad))
        self.grad_in = grad.detach() if self.first else None  # of the first input, valid until the next call

    def _forward(self) -> Sequence[Tensor]:
        with self.aliases.in_place_of_parameters():
            outputs = self.function(self.inputs)
        size = math.ceil(len(outputs) / len(self.parts))
        self.outputs = [*outputs[size - 1 : -1 : size], outputs[-1]]
        return (self.outputs[-1].detach(),)

    def _backward(self, part: int, grad_out: Tensor) -> Sequence[Tensor]:
        """The gradient of the part's input (of its output, if the input gets none), and those of its parameters."""
        before, fixed = self.outputs[:part][-1:] if part else self.first, self.parts[part]  # before: the part's input
        inputs = [*before, *(self.aliases.of[parameter] for parameter in fixed)]
        with self.aliases.in_place_of_parameters():  # activation checkpointing recomputes the forward pass
            grads = torch.autograd.grad(self.outputs[part], inputs, grad_out, materialize_grads=True)
        del self.outputs[part]
        torch._foreach_copy_(list(fixed.values()), grads[len(before) :])
        return [*(grads[: len(before)] or [grad_out]), *fixed.values()]

    def forward(self, tensors: Tensors) -> Tensor:
        """The output for these inputs. It is valid until the next call."""
        with torch.no_grad():  # an input that requires gradients may not be written otherwise
            for fixed, tensor in zip(self.inputs, tensors, strict=True):
                fixed.copy_(tensor)
        self.replay_forward()
        return self.out.detach()

    def backward(self, part: int) -> list[Tensor]:
        """The gradients of a part's parameters. They are valid until the next call. Parts are called from the last one
        to the first, after `grad_out` is set."""
        for parameter, fixed in self.parts[part].items():
            if parameter.grad is not None and parameter.grad.data_ptr() == fixed.data_ptr():
                parameter.grad = parameter.grad.clone()  # accumulated from an earlier batch
        self.replay_backward[part]()
        return [fixed.detach() for fixed in self.parts[part].values()]


class _Part(torch.autograd.Function):
    """A part's node: passes `out` on and, in the backward pass, the gradients of its link and its parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        backward: Callable[[Tensor], tuple[Tensor, list[Tensor]]],
        out: Tensor,
        link: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.replay = backward
        return out.detach()

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grad_link, grads = ctx.replay(grad_out)
        return None, None, grad_link, *grads

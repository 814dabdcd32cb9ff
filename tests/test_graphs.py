"""Recorded steps: the same step as without, whatever was trained on before; and when nothing is recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iclora_train.core.types import Tokens
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks, set_cuda_graphs
from iclora_train.ltx2.runtime.cuda_graphs import CudaGraphs, Work
from tests.processes import a_group_of_one
from tests.test_compiled import network, scene


class FakeCapture:
    """A recorder without a GPU: does the work anew each time, and puts what it makes where it was made first."""

    def __call__(self, work: Work) -> tuple[Sequence[Tensor], Callable[[], object]]:
        made = work()

        def again() -> None:
            for place, value in zip(made, work(), strict=True):
                place.copy_(value)

        return made, again


class Broken:
    """A recorder that finds no memory."""

    def __call__(self, work: Work) -> tuple[Sequence[Tensor], Callable[[], object]]:
        raise torch.OutOfMemoryError


def drawn(size: int, seed: int, channels: int) -> Tokens:
    """What is new in each step is drawn with the seed."""
    tokens, generator = scene(channels, size), torch.Generator().manual_seed(seed)
    return replace(
        tokens,
        latent=torch.randn(tokens.latent.shape, generator=generator),
        sigma=torch.rand(tokens.sigma.shape, generator=generator),
    )


def learn(net: Transformer, tokens: Tokens, seed: int, forward: Callable[..., Tensor] | None = None) -> None:
    """One batch's gradients, added to what the adapter has. forward: what calls the transformer, if not it itself."""
    device, count = net.patchify_proj.weight.device, tokens.latent.shape[1] // 2
    text = torch.randn(1, 5, net.config.cross_attention_dim, generator=torch.Generator().manual_seed(seed))
    parts = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    there = replace(tokens, **{name: part.to(device) for name, part in parts.items() if isinstance(part, Tensor)})
    (forward or net)(there, text.to(device), num_outputs=count).float().square().mean().backward()


def adapter(net: Transformer) -> list[torch.nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def compare(plain: Transformer, recorded: Transformer, channels: int, **tolerance: float) -> None:
    """Steps on two shapes in turn, each of two batches, with the adapter moved after each."""
    for number, size in enumerate((4, 4, 4, 2, 4, 2, 2, 4)):
        for net in (plain, recorded):
            for batch in range(2):
                learn(net, drawn(size, 10 * number + batch, channels), batch)
        for mine, theirs in zip(adapter(recorded), adapter(plain), strict=True):
            assert mine.grad is not None
            assert theirs.grad is not None
            torch.testing.assert_close(mine.grad, theirs.grad, **tolerance)
            with torch.no_grad():  # both moved alike, so that steps stay comparable
                mine.sub_(0.1 * theirs.grad)
                theirs.sub_(0.1 * theirs.grad)
            mine.grad = theirs.grad = None


def test_the_same_steps_as_without() -> None:
    plain, recorded = network(), network()
    runner_of(recorded).cuda_graphs = CudaGraphs(FakeCapture)
    compare(plain, recorded, 8, rtol=0.0, atol=0.0)
    assert len(runner_of(recorded).cuda_graphs.captured) == 2


def test_gradients_that_are_kept_are_added_to() -> None:
    """As by an optimizer that sets gradients to zero instead of giving them up."""
    plain, recorded = network(), network()
    runner_of(recorded).cuda_graphs = CudaGraphs(FakeCapture)
    for number in range(4):
        for net in (plain, recorded):
            learn(net, drawn(4, number, 8), 0)
            for parameter in adapter(net):
                assert parameter.grad is not None
                if number == 1:
                    parameter.grad.zero_()
    for mine, theirs in zip(adapter(recorded), adapter(plain), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")  # torch.distributed's own
def test_gradients_of_replayed_steps_go_to_other_processes_too(tmp_path: Path) -> None:
    plain, recorded, sent = network(), network(), 0
    runner_of(recorded).cuda_graphs = CudaGraphs(FakeCapture)

    def twice(_state, bucket):  # type: ignore[no-untyped-def] # it refuses annotations that are text
        """As if another process had found the same, and nobody took the mean."""
        nonlocal sent
        sent += 1
        found: torch.futures.Future[Tensor] = torch.futures.Future()
        found.set_result(2 * bucket.buffer())
        return found

    with a_group_of_one(tmp_path):
        parallel = torch.nn.parallel.DistributedDataParallel(recorded)
        parallel.register_comm_hook(None, twice)
        for number in range(4):
            learn(plain, drawn(4, number, 8), 0)
            learn(recorded, drawn(4, number, 8), 0, parallel)
            for mine, theirs in zip(adapter(recorded), adapter(plain), strict=True):
                assert mine.grad is not None
                assert theirs.grad is not None
                torch.testing.assert_close(mine.grad, 2 * theirs.grad, rtol=0, atol=0)
                mine.grad = theirs.grad = None
        assert sent >= 4


def test_a_pass_whose_memory_was_used_again_has_no_gradient_any_more() -> None:
    """By another pass of its shape or of another one, or by its own backward pass."""
    graphs, linear = CudaGraphs(FakeCapture), torch.nn.Linear(3, 3)

    def forward(rows: int) -> Tensor:
        return graphs.run(lambda given, _: linear(given[0]), (torch.ones(rows, 3),), None, linear).sum()

    for rows in (2, 4):
        forward(rows)
    first, second, other = forward(2), forward(2), forward(4)
    for stale in (first, second):
        with pytest.raises(RuntimeError, match="before the next forward pass"):
            stale.backward()
    other.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="before the next forward pass"):
        other.backward()


def test_a_new_shape_gives_memory_back() -> None:
    net = network()
    runner_of(net).cuda_graphs = CudaGraphs(FakeCapture)
    for size, known in ((4, 0), (4, 1), (2, 0), (4, 1), (2, 2)):
        learn(net, drawn(size, 0, 8), 0)
        assert len(runner_of(net).cuda_graphs.captured) == known


def test_weights_too_many_shapes_and_too_little_memory_end_it(caplog: pytest.LogCaptureFixture) -> None:
    weighted, many, small = network(), network(), network()
    runner_of(weighted).cuda_graphs, runner_of(many).cuda_graphs, runner_of(small).cuda_graphs = (
        CudaGraphs(FakeCapture),
        CudaGraphs(FakeCapture, limit=1),
        CudaGraphs(Broken),
    )
    tokens = drawn(4, 0, 8)
    for net in (weighted, many, small):
        learn(net, tokens, 0)
        learn(net, tokens, 0)
    assert "memory" in runner_of(small).cuda_graphs.stopped
    assert "no longer replayed as CUDA graphs: too little memory" in caplog.text
    learn(many, drawn(2, 0, 8), 0)
    assert "1 shapes" in runner_of(many).cuda_graphs.stopped
    learn(weighted, replace(tokens, weight=torch.full((1, tokens.latent.shape[1]), 0.5)), 0)
    assert "weights" in runner_of(weighted).cuda_graphs.stopped
    for net in (weighted, many, small):
        assert runner_of(net).cuda_graphs is not None
        assert not runner_of(net).cuda_graphs.captured
        learn(net, tokens, 0)


def test_nothing_is_recorded_without_a_gpu_or_without_gradients() -> None:
    net = network()
    compile_blocks(net, 1.0, "eager")
    set_cuda_graphs(net, True)
    assert runner_of(net).cuda_graphs is None
    runner_of(net).cuda_graphs = CudaGraphs(Broken)
    with torch.no_grad():
        for _ in range(3):
            net(scene(8), torch.zeros(1, 5, net.config.cross_attention_dim))
    assert not runner_of(net).cuda_graphs.seen_shapes
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
@pytest.mark.parametrize("fp8", [False, True])
def test_graphs_on_a_gpu(fp8: bool) -> None:
    plain, recorded = network(fp8).cuda(), network(fp8).cuda()
    for net in (plain, recorded):
        compile_blocks(net, 1.0)
    set_cuda_graphs(recorded, True)
    assert runner_of(recorded).cuda_graphs is not None
    compare(plain, recorded, 8, rtol=1e-2, atol=1e-4)
    assert len(runner_of(recorded).cuda_graphs.captured) == 2
    assert not runner_of(recorded).cuda_graphs.stopped
    runner_of(recorded).cuda_graphs.drop()
    compare(plain, recorded, 8, rtol=1e-2, atol=1e-4)
    assert len(runner_of(recorded).cuda_graphs.captured) == 2
    torch._dynamo.reset()

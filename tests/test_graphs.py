"""CUDA graphs: replayed steps equal normal steps in any order of shapes; the cases in which nothing is captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from iclora_train.adapters import lora
from iclora_train.core.types import Tokens
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks, set_cuda_graphs
from iclora_train.ltx2.runtime.cuda_graphs import BACKWARD_PARTS, CapturedStep, CudaGraphs, Tensors
from iclora_train.ltx2.runtime.fused_block import FusedBlock
from iclora_train.training.data_parallel import data_parallel
from tests.processes import single_process_group
from tests.test_compiled import network, scene


class FakeCapture:
    """A capture without a GPU: a replay repeats the work and copies its results to the captured outputs."""

    def __call__(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], object]]:
        outputs = work()

        def replay() -> None:
            for output, value in zip(outputs, work(), strict=True):
                output.copy_(value)

        return outputs, replay


class OutOfMemoryCapture:
    """A capture that runs out of memory."""

    def __call__(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], object]]:
        raise torch.OutOfMemoryError


def random_tokens(size: int, seed: int, channels: int) -> Tokens:
    """Tokens of `scene` with a random latent and noise level, as in a new step."""
    tokens, generator = scene(channels, size), torch.Generator().manual_seed(seed)
    return replace(
        tokens,
        latent=torch.randn(tokens.latent.shape, generator=generator),
        sigma=torch.rand(tokens.sigma.shape, generator=generator),
    )


def accumulate_grads(
    net: Transformer, tokens: Tokens, seed: int, forward: Callable[..., Tensor] | None = None
) -> Tensor:
    """Accumulate the adapter's gradients of one batch. forward: a wrapper of the transformer to call instead.

    Returns the loss with its autograd graph.
    """
    device, count = net.patchify_proj.weight.device, tokens.latent.shape[1] // 2
    text = torch.randn(1, 5, net.config.cross_attention_dim, generator=torch.Generator().manual_seed(seed))
    values = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    on_device = replace(
        tokens, **{name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    )
    loss = (forward or net)(on_device, text.to(device), num_outputs=count).float().square().mean()
    loss.backward()
    return loss


def adapter(net: Transformer) -> list[torch.nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def compare(plain: Transformer, graphed: Transformer, channels: int, **tolerance: float) -> None:
    """Compare the gradients of steps with two batches each, on two shapes in turn. Each step updates the adapter."""
    for number, size in enumerate((4, 4, 4, 2, 4, 2, 2, 4)):
        for net in (plain, graphed):
            for batch in range(2):
                accumulate_grads(net, random_tokens(size, 10 * number + batch, channels), batch)
        for p, expected in zip(adapter(graphed), adapter(plain), strict=True):
            assert p.grad is not None
            assert expected.grad is not None
            torch.testing.assert_close(p.grad, expected.grad, **tolerance)
            with torch.no_grad():  # the same update for both networks, so that the next steps are comparable
                p.sub_(0.1 * expected.grad)
                expected.sub_(0.1 * expected.grad)
            p.grad = expected.grad = None


@pytest.mark.parametrize("activation_budget", [None, 1.0])
def test_graphed_steps_equal_normal_steps(activation_budget: float | None) -> None:
    """With an activation budget, as on a GPU, the input of the first block requires gradients."""
    plain, graphed = network(), network()
    for net in (plain, graphed):
        runner_of(net).activation_budget = activation_budget
    runner_of(graphed).cuda_graphs = CudaGraphs(FakeCapture)
    compare(plain, graphed, 8, rtol=0.0, atol=0.0)
    assert len(runner_of(graphed).cuda_graphs.captured) == 2


@pytest.mark.parametrize("backward_parts", [1, 2])
@pytest.mark.parametrize("block", [0, 1])
def test_graphed_steps_of_an_adapter_on_some_blocks_equal_normal_steps(block: int, backward_parts: int) -> None:
    targets = [f"transformer_blocks.{block}.attn2.to_[qkv]", f"transformer_blocks.{block}.ff"]
    plain, graphed = network(targets=targets), network(targets=targets)
    for net in (plain, graphed):
        runner_of(net).activation_budget = 1.0
    runner_of(graphed).cuda_graphs = CudaGraphs(FakeCapture, backward_parts=backward_parts)
    compare(plain, graphed, 8, rtol=0.0, atol=0.0)
    assert len(runner_of(graphed).cuda_graphs.captured) == 2


@pytest.mark.parametrize("backward_parts", [1, 2])
@pytest.mark.parametrize("activation_budget", [None, 1.0])
def test_learned_slots_of_references_get_their_gradients(backward_parts: int, activation_budget: float | None) -> None:
    """They are added to the input of the first block, outside of the graphs."""
    plain, graphed = network(), network()
    for net in (plain, graphed):
        torch.nn.init.normal_(lora.attach_slots(net, 1), generator=torch.Generator().manual_seed(0))
        runner_of(net).activation_budget = activation_budget
    runner_of(graphed).cuda_graphs = CudaGraphs(FakeCapture, backward_parts=backward_parts)
    accumulate_grads(plain, random_tokens(4, 0, 8), 0)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter(plain))
    for parameter in adapter(plain):
        parameter.grad = None
    compare(plain, graphed, 8, rtol=0.0, atol=0.0)
    assert len(runner_of(graphed).cuda_graphs.captured) == 2


def test_gradients_accumulate_in_zeroed_tensors() -> None:
    """Some optimizers zero the gradients instead of setting them to None."""
    plain, graphed = network(), network()
    runner_of(graphed).cuda_graphs = CudaGraphs(FakeCapture)
    for number in range(4):
        for net in (plain, graphed):
            accumulate_grads(net, random_tokens(4, number, 8), 0)
            for parameter in adapter(net):
                assert parameter.grad is not None
                if number == 1:
                    parameter.grad.zero_()
    for p, expected in zip(adapter(graphed), adapter(plain), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=0, atol=0)


def reduced_twofold(graphed: Transformer, sent: list[str]) -> DistributedDataParallel:
    """The network in DistributedDataParallel as in training, as if a second process had the same gradients.

    Each message returns doubled and is noted in `sent`.
    """

    def twofold(_state, bucket):  # type: ignore[no-untyped-def] # register_comm_hook refuses string annotations
        sent.append("message")
        result: torch.futures.Future[Tensor] = torch.futures.Future()
        result.set_result(2 * bucket.buffer())
        return result

    parallel = data_parallel(graphed, torch.device("cpu"))
    parallel.register_comm_hook(None, twofold)
    return parallel


def test_a_step_that_compiles_is_not_captured() -> None:
    """A block is compiled again where its parameters' gradients, autocast or the number of threads have changed."""
    torch._dynamo.reset()
    linear = torch.nn.Linear(3, 3)
    compiled = torch.compile(linear, backend="eager")
    graphs, autocast_cache = CudaGraphs(FakeCapture), [True, True, False, False, False]
    captured = []
    for enabled in autocast_cache:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=enabled):
            graphs.run(lambda tensors: [compiled(tensors[0])], (torch.ones(2, 3),), [linear])
        captured.append(len(graphs.captured))
    torch._dynamo.reset()
    assert captured == [0, 0, 0, 0, 1]


@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
def test_a_capture_compiles_nothing_and_replaces_no_parameter() -> None:
    """The capture computes with other tensors in the memory of the parameters."""
    torch._dynamo.reset()
    net = network()
    for block in net.transformer_blocks:
        block.fused = FusedBlock(block)  # type: ignore[arg-type] # fused linears, as on a GPU
    compile_blocks(net, 1.0, "aot_eager")
    graphs = runner_of(net).cuda_graphs = CudaGraphs(FakeCapture)
    before, compiled = list(net.parameters()), torch._dynamo.utils.counters["stats"]
    for number in range(4):
        graphs_before_step = compiled["unique_graphs"]
        accumulate_grads(net, random_tokens(4, number, 8), 0)
        if graphs.captured:
            assert compiled["unique_graphs"] == graphs_before_step > 0
    torch._dynamo.reset()
    assert len(graphs.captured) == 1
    assert all(p is q for p, q in zip(net.parameters(), before, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")  # a warning of torch.distributed
@pytest.mark.parametrize("batches", [1, 2])
def test_ddp_reduces_the_gradients_of_replayed_steps_once_per_step(tmp_path: Path, batches: int) -> None:
    plain, graphed, sent = network(), network(), list[str]()
    runner_of(graphed).cuda_graphs = CudaGraphs(FakeCapture)
    with single_process_group(tmp_path):
        parallel = reduced_twofold(graphed, sent)
        for number in range(4):
            for batch in range(batches):
                accumulate_grads(plain, random_tokens(4, number, 8), batch)
                with nullcontext() if batch == batches - 1 else parallel.no_sync():
                    accumulate_grads(graphed, random_tokens(4, number, 8), batch, parallel)
            for p, expected in zip(adapter(graphed), adapter(plain), strict=True):
                assert p.grad is not None
                assert expected.grad is not None
                torch.testing.assert_close(p.grad, 2 * expected.grad, rtol=0, atol=0)
                p.grad = expected.grad = None
    assert len(sent) == 4  # the tiny adapter fits into one message


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
def test_gradients_are_sent_while_the_backward_pass_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of the backward pass that is replayed last comes after the first message."""
    events: list[str] = []
    monkeypatch.setattr("iclora_train.training.data_parallel.BUCKET_MIB", 1e-3)
    replay = CapturedStep.backward

    def noted_replay(step: CapturedStep, part: int) -> list[Tensor]:
        events.append(f"part {part}")
        return replay(step, part)

    monkeypatch.setattr(CapturedStep, "backward", noted_replay)
    net = network()
    runner_of(net).cuda_graphs = CudaGraphs(FakeCapture, backward_parts=2)
    with single_process_group(tmp_path):
        parallel = reduced_twofold(net, events)
        for number in range(3):
            events.clear()
            accumulate_grads(net, random_tokens(4, number, 8), 0, parallel)
    assert events.index("part 1") < events.index("message") < events.index("part 0")


@pytest.mark.parametrize("count", [1, 8, 11])
def test_parts_of_the_backward_pass_have_the_gradients_of_their_modules(count: int) -> None:
    graphs = CudaGraphs(FakeCapture, backward_parts=BACKWARD_PARTS)
    linears = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(count))

    def function(tensors: Tensors) -> list[Tensor]:
        outputs = [tensors[0]]
        for linear in linears:
            outputs.append(linear(outputs[-1]).tanh())
        return outputs[1:]

    for number in range(3):
        x = torch.full((2, 3), 0.1 * number)
        expected = torch.autograd.grad(function((x,))[-1].sum(), list(linears.parameters()))
        out = graphs.run(function, (x,), list(linears))
        torch.testing.assert_close(torch.autograd.grad(out.sum(), list(linears.parameters())), expected, rtol=0, atol=0)
    assert len(graphs.captured) == 1


def test_a_forward_pass_whose_memory_was_overwritten_refuses_backward() -> None:
    """A later forward pass of the same or another shape overwrites the memory, and so does its own backward pass."""
    graphs, linear = CudaGraphs(FakeCapture), torch.nn.Linear(3, 3)

    def function(tensors: Tensors) -> list[Tensor]:
        return [linear(tensors[0])]

    def forward(rows: int) -> Tensor:
        return graphs.run(function, (torch.ones(rows, 3),), [linear]).sum()

    for rows in (2, 4):
        forward(rows)
    first, second, other = forward(2), forward(2), forward(4)
    for stale in (first, second):
        with pytest.raises(RuntimeError, match="before the next forward pass"):
            stale.backward()
    other.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="before the next forward pass"):
        other.backward()


def test_a_new_shape_frees_the_memory_of_the_graphs() -> None:
    net = network()
    runner_of(net).cuda_graphs = CudaGraphs(FakeCapture)
    for size, captured in ((4, 0), (4, 1), (2, 0), (4, 1), (2, 2)):
        accumulate_grads(net, random_tokens(size, 0, 8), 0)
        assert len(runner_of(net).cuda_graphs.captured) == captured


def test_attention_weights_too_many_shapes_and_too_little_memory_stop_graphs(caplog: pytest.LogCaptureFixture) -> None:
    weighted, varied, out_of_memory = network(), network(), network()
    runner_of(weighted).cuda_graphs, runner_of(varied).cuda_graphs, runner_of(out_of_memory).cuda_graphs = (
        CudaGraphs(FakeCapture),
        CudaGraphs(FakeCapture, max_shapes=1),
        CudaGraphs(OutOfMemoryCapture),
    )
    tokens = random_tokens(4, 0, 8)
    for net in (weighted, varied, out_of_memory):
        accumulate_grads(net, tokens, 0)
        accumulate_grads(net, tokens, 0)
    assert "memory" in runner_of(out_of_memory).cuda_graphs.stopped
    assert "no longer replayed as CUDA graphs: too little memory" in caplog.text
    accumulate_grads(varied, random_tokens(2, 0, 8), 0)
    assert "1 shapes" in runner_of(varied).cuda_graphs.stopped
    accumulate_grads(weighted, replace(tokens, weight=torch.full((1, tokens.latent.shape[1]), 0.5)), 0)
    assert "weights" in runner_of(weighted).cuda_graphs.stopped
    for net in (weighted, varied, out_of_memory):
        assert runner_of(net).cuda_graphs is not None
        assert not runner_of(net).cuda_graphs.captured
        accumulate_grads(net, tokens, 0)


def test_nothing_is_captured_without_a_gpu_or_without_gradients() -> None:
    net = network()
    compile_blocks(net, 1.0, "eager")
    set_cuda_graphs(net, True)
    assert runner_of(net).cuda_graphs is None
    runner_of(net).cuda_graphs = CudaGraphs(OutOfMemoryCapture)
    with torch.no_grad():
        for _ in range(3):
            net(scene(8), torch.zeros(1, 5, net.config.cross_attention_dim))
    assert not runner_of(net).cuda_graphs.seen_shapes
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
@pytest.mark.parametrize(("fp8", "slots"), [(False, False), (True, False), (False, True)])
def test_graphs_on_a_gpu(fp8: bool, slots: bool) -> None:
    plain, graphed = network(fp8).cuda(), network(fp8).cuda()
    for net in (plain, graphed):
        if slots:
            lora.attach_slots(net, 1)
        compile_blocks(net, 1.0)
    set_cuda_graphs(graphed, True)
    assert runner_of(graphed).cuda_graphs is not None
    compare(plain, graphed, 8, rtol=1e-2, atol=1e-4)
    assert len(runner_of(graphed).cuda_graphs.captured) == 2
    assert not runner_of(graphed).cuda_graphs.stopped
    runner_of(graphed).cuda_graphs.drop()
    compare(plain, graphed, 8, rtol=1e-2, atol=1e-4)
    assert len(runner_of(graphed).cuda_graphs.captured) == 2
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
def test_a_loss_of_an_earlier_batch_may_outlive_the_capture() -> None:
    """It keeps nodes of the autograd graph, which belong to the stream of the earlier batch."""
    plain, graphed = network().cuda(), network().cuda()
    for net in (plain, graphed):
        compile_blocks(net, 1.0)
    set_cuda_graphs(graphed, True)
    graphs, losses = runner_of(graphed).cuda_graphs, []
    assert graphs is not None
    for number in range(4):
        accumulate_grads(plain, random_tokens(4, number, 8), 0)
        losses.append(accumulate_grads(graphed, random_tokens(4, number, 8), 0))
    for p, expected in zip(adapter(graphed), adapter(plain), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=1e-2, atol=1e-4)
    assert len(graphs.captured) == 1
    assert len(losses) == 4
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
def test_graphs_are_captured_on_a_gpu_after_the_network_is_wrapped_in_ddp(tmp_path: Path) -> None:
    plain, graphed = network().cuda(), network().cuda()
    for net in (plain, graphed):
        compile_blocks(net, 1.0)
    set_cuda_graphs(graphed, True)
    with single_process_group(tmp_path, "nccl"):
        parallel = data_parallel(graphed, torch.device("cuda", torch.cuda.current_device()))
        for number, size in enumerate((4, 4, 4, 2, 2, 4, 2)):
            accumulate_grads(plain, random_tokens(size, number, 8), 0)
            accumulate_grads(graphed, random_tokens(size, number, 8), 0, parallel)
            for p, expected in zip(adapter(graphed), adapter(plain), strict=True):
                torch.testing.assert_close(p.grad, expected.grad, rtol=1e-2, atol=1e-4)
                p.grad = expected.grad = None
    graphs = runner_of(graphed).cuda_graphs
    assert graphs is not None
    assert len(graphs.captured) == 2
    assert not graphs.stopped
    torch._dynamo.reset()

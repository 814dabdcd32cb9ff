"""Weight offload: steps are equal bit for bit, at most two blocks are on the device, the host copy never changes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from iclora_train.adapters import lora
from iclora_train.config import Config, ConfigError, Lora, Model, Optim, Task
from iclora_train.core.copy_stream import CopyStream
from iclora_train.core.types import Tokens
from iclora_train.generate import adapters as adapted
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.build import build_transformer
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, quantize
from iclora_train.ltx2.load import block_linears
from iclora_train.ltx2.model.transformer import Transformer, TransformerConfig
from iclora_train.ltx2.runtime import fused_block
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks
from iclora_train.ltx2.runtime.weight_offload import WeightOffload
from iclora_train.training import lightning_module
from iclora_train.training.lightning_module import ICLoRA
from scripts.synthetic.random_base import RandomBase
from tests.processes import single_process_group
from tests.test_compiled import TARGETS, scene
from tests.tiny import write_tiny_base

BLOCKS = 6
CONFIG = TransformerConfig(
    num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=8, num_layers=BLOCKS,
    cross_attention_dim=32, apply_gated_attention=True, cross_attention_adaln=True, caption_proj_before_connector=True,
)  # fmt: skip


def network(count: int, fp8: bool = False, config: TransformerConfig = CONFIG, device: str = "cpu") -> Transformer:
    """A frozen transformer (bf16 on a GPU) with `count` offloaded blocks, and an adapter whose B is not zero."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        net = Transformer(config).requires_grad_(False)
    if device == "cuda":
        net.bfloat16()
    for name in block_linears(net) if fp8 else ():
        linear = net.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        net.set_submodule(name, Fp8Linear(*quantize(linear.weight), linear.bias))
    runner_of(net).weight_offload = WeightOffload(config.num_layers, count, device)
    for name, parameter in net.named_parameters():
        runner_of(net).weight_offload.move_to_host(name, parameter)
    generator = torch.Generator().manual_seed(0)
    for parameter in lora.attach(net, Lora(rank=4, targets=TARGETS)):
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.train()


def model_inputs(net: Transformer) -> tuple[Tokens, Tensor]:
    device = net.patchify_proj.weight.device
    tokens, generator = scene(8), torch.Generator().manual_seed(1)
    moved = {name: value.to(device) for name, value in vars(tokens).items() if isinstance(value, Tensor)}
    return replace(tokens, **moved), torch.randn(1, 16, net.config.cross_attention_dim, generator=generator).to(device)


def step(net: Transformer) -> list[Tensor]:
    """The velocity, and the adapter's gradients."""
    velocity = net(*model_inputs(net))
    adapter = [p for p in net.parameters() if p.requires_grad]
    return [velocity.detach(), *torch.autograd.grad(velocity.square().mean(), adapter)]


def require_equal(results: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def with_empty_storage(net: Transformer) -> set[str]:
    """Names of the parameters with an empty storage."""
    return {name for name, p in net.named_parameters() if p.untyped_storage().nbytes() == 0}


def resident(net: Transformer) -> set[int]:
    """The offloaded blocks that have weights on the device."""
    return {
        block
        for block, weights in runner_of(net).weight_offload.weights.items()
        if any(weight.untyped_storage().nbytes() for weight, _ in weights)
    }


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4, BLOCKS])
def test_steps_and_samples_are_equal_bit_for_bit(count: int, checkpointing: bool) -> None:
    plain, offloaded = network(0), network(count)
    runner_of(plain).activation_checkpointing = runner_of(offloaded).activation_checkpointing = checkpointing
    expected = step(plain)
    for _ in range(2):
        require_equal(step(offloaded), expected)
        with torch.no_grad():
            require_equal([offloaded(*model_inputs(offloaded)) for _ in range(2)], expected[:1] * 2)


def test_steps_with_fp8_weights_and_accumulated_gradients_are_equal_bit_for_bit() -> None:
    plain, offloaded = network(0, fp8=True), network(4, fp8=True)
    require_equal(step(offloaded), step(plain))
    for net in (plain, offloaded):
        # Two forward passes, then one backward pass through both.
        velocity = net(*model_inputs(net)) + 2 * net(*model_inputs(net))
        velocity.square().mean().backward()
        net(*model_inputs(net)).square().mean().backward()
    grads = [[p.grad for p in net.parameters() if p.grad is not None] for net in (offloaded, plain)]
    assert grads[0]
    require_equal(*grads)


def test_an_interrupted_step_does_not_change_the_next_step() -> None:
    plain, offloaded = network(0), network(4)
    offloaded(*model_inputs(offloaded))  # without a backward pass
    hook = offloaded.transformer_blocks[4].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(offloaded)
    hook.remove()
    require_equal(step(offloaded), step(plain))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_at_most_two_blocks_are_on_the_device_and_the_computing_one_is(checkpointing: bool) -> None:
    net, visits = network(BLOCKS), list[tuple[int, set[int]]]()
    runner_of(net).activation_checkpointing = checkpointing
    for number, block in enumerate(net.transformer_blocks):
        record = partial(lambda number, *_: visits.append((number, resident(net))), number)
        block.register_forward_pre_hook(record)
        for parameter in (p for p in block.parameters() if p.requires_grad):
            parameter.register_hook(record)  # its gradient is computed in the block's backward pass
    assert resident(net) == set()
    step(net)
    forwards = [(i, {i, i + 1 if i < BLOCKS - 1 else i - 1}) for i in range(BLOCKS)]
    backwards = [(i, {i, i - 1 if i else 1}) for i in reversed(range(BLOCKS))]
    passes = forwards + backwards[1:]  # the last block starts its backward pass right after its forward pass
    assert [visit for visit, _ in groupby(visits)] == passes
    with torch.no_grad():
        net(*model_inputs(net))
    assert visits[-1] == (BLOCKS - 1, {BLOCKS - 1, 0})  # the next forward pass starts with block 0
    assert resident(net) == {BLOCKS - 1, 0}


class RecordingStream(CopyStream):
    """A copy stream that records its calls."""

    def __init__(self) -> None:
        self.stream, self.calls = None, list[object]()

    def context(self) -> AbstractContextManager[object]:
        self.calls.append("copy")
        return nullcontext()

    def wait_for_compute(self) -> None:
        self.calls.append("wait_for_compute")

    def record(self) -> Any:
        return self.calls.count("copy")  # the number of the copy

    def make_compute_wait(self, moment: Any) -> None:
        self.calls.append(moment)


def test_copies_wait_until_their_memory_is_unused_and_computation_waits_for_its_copy() -> None:
    net, copy_stream = network(3), RecordingStream()
    runner_of(net).weight_offload.copy_stream = copy_stream
    with torch.no_grad():
        net(*model_inputs(net))
    assert copy_stream.calls == ["copy", "copy", 1, "wait_for_compute", "copy", 2, "wait_for_compute", "copy", 3]
    copy_stream.calls.clear()
    step(net)
    assert copy_stream.calls == [
        "wait_for_compute",
        "copy",
        4,
        "wait_for_compute",
        "copy",
        1,
        2,
        2,
        "wait_for_compute",
        "copy",
        1,
        3,
    ]
    copy_stream.calls.clear()
    step(net)
    assert copy_stream.calls.count("copy") == 2 * (3 - 2)  # two blocks of each pass are on the device already


def test_the_host_copy_is_never_written_and_only_linear_weights_are_offloaded() -> None:
    net = network(3)
    assert runner_of(net).weight_offload.blocks == [1, 3, 5]  # spread evenly, so that computation hides the copies
    linears = {name for name, layer in net.named_modules() if isinstance(layer, nn.Linear) and "lora_" not in name}
    blocks = tuple(f"transformer_blocks.{i}." for i in (1, 3, 5))
    assert with_empty_storage(net) == {f"{name}.weight" for name in linears if name.startswith(blocks)}
    hosts = [host for weights in runner_of(net).weight_offload.weights.values() for _, host in weights]
    before = [host.clone() for host in hosts]
    step(net)
    require_equal(hosts, before)


@pytest.fixture
def counted() -> Iterator[Any]:
    """A function that counts the compilations of blocks."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
@pytest.mark.parametrize("backend", ["eager", "aot_eager_decomp_partition"])
def test_offload_needs_no_more_compilations_and_gives_the_same(backend: str, counted: Any) -> None:
    plain, offloaded = network(0), network(4)
    compile_blocks(plain, 0.0, backend)
    expected = step(plain)
    without_offload = counted()
    torch._dynamo.reset()
    compile_blocks(offloaded, 0.0, backend)
    for _ in range(3):
        for result, target in zip(step(offloaded), expected, strict=True):
            torch.testing.assert_close(result, target, rtol=1e-4, atol=1e-5)
        assert len(resident(offloaded)) == 2
    assert 0 < counted() == 2 * without_offload


def test_weights_are_offloaded_while_they_are_loaded(tmp_path: Path) -> None:
    base = BaseModel.open(str(write_tiny_base(tmp_path)))
    for fp8 in (False, True):
        plain, net = base.transformer(fp8=fp8), base.transformer(fp8=fp8, weight_offload=1)
        assert {name.split(".")[1] for name in with_empty_storage(net)} == {"1"}
        assert all(isinstance(p, nn.Parameter) and not p.requires_grad for p in net.parameters())
        assert len(with_empty_storage(net)) == len(runner_of(net).weight_offload.weights[1]) == 12
        with torch.no_grad():
            width = net.config.cross_attention_dim
            text = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(1))
            require_equal([net(scene(8), text)], [plain(scene(8), text)])
    assert len(with_empty_storage(RandomBase("2.3", "tiny").transformer(weight_offload=2))) == 24


def test_impossible_settings_are_named(tmp_path: Path) -> None:
    base = BaseModel.open(str(write_tiny_base(tmp_path)))
    with pytest.raises(ConfigError, match=r"model\.weight_offload=3 must lie in \[0, 2\], the number of blocks"):
        base.transformer(weight_offload=3)
    with pytest.raises(ConfigError, match=r"model\.weight_offload=-1 must be 0 \(none\) or more blocks"):
        Model(name="tiny", checkpoint="", weight_offload=-1)
    with pytest.raises(ConfigError, match=r"model\.weight_offload=2 needs a GPU: set model\.weight_offload=0 on a CPU"):
        build_transformer(base, Model(name="tiny", checkpoint="", weight_offload=2), "cpu")


@pytest.fixture
def weight_offload_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """model.weight_offload works without a GPU."""
    for module in (lightning_module, adapted):
        monkeypatch.setattr(
            module,
            "build_transformer",
            lambda base, model, device, audio=False: base.transformer(weight_offload=model.weight_offload, audio=audio),
        )


def tiny_module(base: BaseModel, weight_offload: int) -> ICLoRA:
    model = Model(name="tiny", checkpoint="", weight_offload=weight_offload, lora=Lora(rank=4))
    optim = Optim(optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-2})
    return ICLoRA(Config(task=Task(name="tiny", maker="given"), model=model, optim=optim), base)


@pytest.mark.usefixtures("weight_offload_on_a_cpu")
def test_checkpoints_hold_no_offloaded_weights(tmp_path: Path) -> None:
    base = BaseModel.open(str(write_tiny_base(tmp_path)))
    offloaded, plain = tiny_module(base, 2), tiny_module(base, 0)
    with torch.no_grad():
        for parameter in offloaded.adapter:
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    progress = {name: {"ready": 0, "completed": 0} for name in ("total", "current")}
    loops = {"fit_loop": {"epoch_loop.batch_progress": progress}}
    checkpoint: dict[str, Any] = {"state_dict": offloaded.state_dict(), "global_step": 0, "loops": loops}
    offloaded.on_save_checkpoint(checkpoint)
    assert len(checkpoint["state_dict"]) == len(offloaded.adapter)
    reloaded = tiny_module(base, 2)
    for module in (reloaded, plain):
        contents = dict(checkpoint)
        module.trainer = SimpleNamespace(accumulate_grad_batches=1)  # type: ignore[assignment]
        module.on_load_checkpoint(contents)
        assert module.load_state_dict(contents["state_dict"], strict=True)
    require_equal(step(reloaded.transformer), step(plain.transformer))


@pytest.mark.usefixtures("weight_offload_on_a_cpu")
def test_offloaded_weights_stay_usable_when_the_module_moves_to_the_cpu(tmp_path: Path) -> None:
    base = BaseModel.open(str(write_tiny_base(tmp_path)))
    plain, fresh, used = tiny_module(base, 0), tiny_module(base, 2), tiny_module(base, 2)
    step(used.transformer)
    for offloaded in (fresh, used):
        offloaded.cpu()
        assert not with_empty_storage(offloaded.transformer)
        require_equal(list(offloaded.state_dict().values()), list(plain.state_dict().values()))
        require_equal(step(offloaded.transformer), step(plain.transformer))


@pytest.mark.usefixtures("weight_offload_on_a_cpu")
def test_ddp_does_not_broadcast_the_base(tmp_path: Path) -> None:
    base = BaseModel.open(str(write_tiny_base(tmp_path / "base")))
    offloaded = tiny_module(base, 2)
    with single_process_group(tmp_path):
        wrapped = DistributedDataParallel(offloaded)
        assert len(wrapped._module_parameters) == len(offloaded.adapter)
    assert len(with_empty_storage(offloaded.transformer)) == 24


@pytest.mark.usefixtures("weight_offload_on_a_cpu")
def test_an_adapter_runs_with_offloaded_weights(tmp_path: Path) -> None:
    base = BaseModel.open(str(write_tiny_base(tmp_path)))
    weights = lora.adapter_weights(tiny_module(base, 0).transformer)
    adapter = lora.Adapter({n: (a, torch.ones_like(b)) for n, (a, b) in weights.items()}, {})
    outputs = []
    for weight_offload in (0, 1):
        net, _ = adapted.adapted_transformer(
            base, adapter, Model(name="tiny", checkpoint="", weight_offload=weight_offload), torch.device("cpu")
        )
        hosts = [host.clone() for pairs in runner_of(net).weight_offload.weights.values() for _, host in pairs]
        with torch.no_grad():
            outputs.append(net(*model_inputs(net)))
        require_equal([host for pairs in runner_of(net).weight_offload.weights.values() for _, host in pairs], hosts)
    torch.testing.assert_close(outputs[1], outputs[0])


WIDE = replace(CONFIG, num_attention_heads=16, attention_head_dim=64, cross_attention_dim=1024, num_layers=12)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["eager", "checkpointing", "compiled"])
@pytest.mark.parametrize("fp8", [False, True])
def test_a_gpu_holds_two_offloaded_blocks_and_gives_the_same(
    fp8: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without offload, compiled blocks would compute q, k and v with one matmul, which may round differently.
    monkeypatch.setattr(fused_block, "can_fuse", lambda linears: False)
    results, held_bytes, block_bytes = [], [], 0
    for count in (0, 0, 12):  # the first run makes the allocations that happen only once
        torch._dynamo.reset()
        gc.collect()
        start = torch.cuda.memory_allocated()
        net = network(count, fp8, WIDE, "cuda")
        runner_of(net).activation_checkpointing = mode == "checkpointing"
        if mode == "compiled":
            compile_blocks(net, 0.0)
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cuda", torch.bfloat16):  # deterministic sums
            outputs = [tensor for _ in range(4) for tensor in step(net)]
            with torch.no_grad():
                outputs += [net(*model_inputs(net)) for _ in range(4)]
        torch.cuda.synchronize()
        held_bytes.append(torch.cuda.memory_allocated() - start - sum(tensor.nbytes for tensor in outputs))
        results.append([tensor.cpu() for tensor in outputs])
        hosts = [host for pairs in runner_of(net).weight_offload.weights.values() for _, host in pairs]
        assert all(host.is_pinned() for host in hosts)
        block_bytes = sum(host.nbytes for host in hosts) // 12
        del net, outputs
    require_equal(results[2], results[1])
    assert abs(held_bytes[1] - held_bytes[2] - 10 * block_bytes) < 2**20

"""Activations that a compiled LTX-2.3 block saves, by model.activation_budget: python -m scripts.saved_activations

The block is traced as on a GPU, with all fused kernels, and the compiler partitions it into forward and backward. It is
never run, so the script needs neither a GPU nor weights. One JSON line per activation budget: the saved memory as a
multiple of the block's input (tokens x channels in bf16; the input itself is counted), the number of matmuls in the
backward pass, and its calls of matmuls and kernels by name. `SAVED_INPUTS` of `training.memory_plan` summarises the
results.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch._dynamo.exc import BackendCompilerFailed

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.ltx2.kernels import flash_attention, fp8_linear, fused_feed_forward, lora_product
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear
from iclora_train.ltx2.load import block_linears
from iclora_train.ltx2.model.transformer import BlockInputs, Transformer, TransformerConfig
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks
from iclora_train.training.memory_plan import BUDGETS
from scripts.synthetic.configs import official_config

TEXT_TOKENS, NOISE_LEVELS = 1024, 2
MATMULS = ("aten.mm", "aten._scaled_mm", "iclora_train.stacked_product")


@dataclass(frozen=True)
class SavedActivations:
    """inputs: memory that a block saves for the backward pass, its input included, as a multiple of that input.

    calls: how often the backward pass calls each matmul and each kernel.
    """

    inputs: float
    calls: dict[str, int]

    @property
    def matmuls(self) -> int:
        """Matmuls in the backward pass."""
        return sum(count for name, count in self.calls.items() if name in MATMULS)


@contextmanager
def pretend_hopper() -> Iterator[None]:
    """Inside the `with`, bf16 tensors on the CPU count as tensors on a Hopper GPU with every optional package."""
    checks = {
        "supports_triton": (lora_product, fused_feed_forward),
        "supports_fp8_matmul": (lora_product, fused_feed_forward, fp8_linear),
        "supports_flash": (flash_attention,),
    }
    with ExitStack() as stack:
        for name, modules in checks.items():
            for module in modules:
                stack.enter_context(patch.object(module, name, lambda x: x.dtype == torch.bfloat16))
        yield


def network(fp8: bool, rank: int) -> Transformer:
    """One block of LTX-2.3 with uninitialised weights, and LoRA on all linears that IC-LoRAs train."""
    config = TransformerConfig.from_metadata(official_config("2.3", "full", 3840)["transformer"])
    with torch.device("meta"):
        net = Transformer(replace(config, num_layers=1))
    net.transformer_blocks.to_empty(device="cpu").to(torch.bfloat16)
    for name in block_linears(net) if fp8 else ():
        linear = net.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        weight = torch.empty(linear.weight.shape, dtype=fp8_linear.E4M3)
        net.set_submodule(
            name, Fp8Linear(weight, torch.ones(()), None if linear.bias is None else linear.bias.detach())
        )
    lora.attach(net, Lora(rank=rank))
    return net.train()


def block_inputs(net: Transformer, tokens: int) -> tuple[Tensor, ...]:
    """The block's tokens x and the fields of `BlockInputs`, uninitialised, for one clip."""
    config = net.config
    half = config.attention_head_dim // 2

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16)

    x = empty(1, tokens, config.width).requires_grad_()
    level, rope = torch.zeros(1, tokens, dtype=torch.long), empty(2, 1, tokens, config.num_attention_heads, half)
    modulation, prompt = empty(1, NOISE_LEVELS, config.rows, config.width), empty(1, 1, 2, config.cross_attention_dim)
    return x, empty(1, TEXT_TOKENS, config.cross_attention_dim), modulation, level, rope, prompt


def saved_activations(net: Transformer, tokens: int, activation_budget: float) -> SavedActivations:
    """The activations that the compiler saves at this activation budget."""
    from torch._dynamo.backends.common import aot_autograd  # noqa: PLC0415 (these warn while they are imported)
    from torch._inductor.compile_fx import partition_fn  # noqa: PLC0415
    from torch._inductor.decomposition import select_decomp_table  # noqa: PLC0415

    partitions: list[SavedActivations] = []

    def measure(joint: fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        forward, backward = partition_fn(joint, inputs, **settings)
        outputs = list(forward.graph.nodes)[-1].args[0]
        saved = {node for node in outputs[1:] if isinstance(node, fx.Node) and node.op != "placeholder"}
        values = [node.meta["val"] for node in saved if isinstance(node.meta.get("val"), Tensor)]
        size = sum(value.numel() * value.element_size() for value in values)
        names = (str(node.target).removesuffix(".default") for node in backward.graph.nodes)
        calls = Counter(name for name in names if name in MATMULS or name.startswith("iclora_train."))
        partitions.append(SavedActivations(1 + size / (tokens * net.config.width * 2), dict(calls)))
        raise NotImplementedError("the graph is only measured")

    def unchanged(graph: fx.GraphModule, _inputs: Sequence[Any]) -> fx.GraphModule:
        return graph

    backend = aot_autograd(
        fw_compiler=unchanged, bw_compiler=unchanged, partition_fn=measure, decompositions=select_decomp_table()
    )
    torch._dynamo.reset()
    runner_of(net).activation_budget = None
    compile_blocks(net, activation_budget, backend)
    try:
        with pretend_hopper(), torch.autocast("cpu", torch.bfloat16):
            x, *inputs = block_inputs(net, tokens)
            net.transformer_blocks[0](x, BlockInputs(*inputs))
    except BackendCompilerFailed:
        if not partitions:
            raise
    finally:
        torch._dynamo.reset()
    return partitions[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16720, help="target + reference; S 4704, M 12240, L 16720")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp8"])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), metavar="ACTIVATION_BUDGET")
    args = parser.parse_args()
    net = network(args.precision == "fp8", args.rank)
    for budget in args.budgets:
        saved = saved_activations(net, args.tokens, budget)
        row = {"activation_budget": budget, "saved_inputs": round(saved.inputs, 2), "backward_matmuls": saved.matmuls}
        print(json.dumps({**row, "backward_calls": saved.calls}), flush=True)


if __name__ == "__main__":
    main()

"""Activations that a compiled LTX-2.3 block saves, by model.activation_budget: python -m scripts.saved_activations

Traced as for a GPU, with kernels of our own, and cut in two as the compiler cuts it, but never run: it needs no GPU and
no weights. One JSON line for each level: what is kept, in activations (tokens times channels in bf16; what a block is
given is one of them), and what the backward pass calls of products and of kernels of our own. `SAVED_INPUTS` of
`training.memory_plan` is a summary.
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
from iclora_train.ltx2.kernels import flash_attention, fp8_linear, fused_feed_forward
from iclora_train.ltx2.kernels import lora_product as low_rank
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear
from iclora_train.ltx2.load import block_linears
from iclora_train.ltx2.model.transformer import BlockInputs, Transformer, TransformerConfig
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks
from iclora_train.training.memory_plan import BUDGETS
from scripts.synthetic.configs import official_config

TEXT, NOISE_LEVELS = 1024, 2
PRODUCTS = ("aten.mm", "aten._scaled_mm", "iclora_train.stacked_product")


@dataclass(frozen=True)
class Kept:
    """Activations that a block keeps, its own input included, and how often its backward pass calls a product or a
    kernel of our own."""

    activations: float
    calls: dict[str, int]

    @property
    def products(self) -> int:
        """Products in the backward pass."""
        return sum(count for name, count in self.calls.items() if name in PRODUCTS)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside the `with`, tensors on a CPU are taken for such on a Hopper GPU with all that can be installed there."""
    pretended = {
        "takes": (low_rank, fused_feed_forward),
        "multiplies_fp8": (low_rank, fused_feed_forward, fp8_linear),
        "supports_flash": (flash_attention,),
    }
    with ExitStack() as stack:
        for name, modules in pretended.items():
            for module in modules:
                stack.enter_context(patch.object(module, name, lambda x: x.dtype == torch.bfloat16))
        yield


def network(fp8: bool, rank: int) -> Transformer:
    """One block of LTX-2.3, its weights whatever was in memory, with an adapter on all that IC-LoRAs train."""
    whole = TransformerConfig.from_metadata(official_config("2.3", "full", 3840)["transformer"])
    with torch.device("meta"):
        net = Transformer(replace(whole, num_layers=1))
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


def given(net: Transformer, tokens: int) -> tuple[Tensor, ...]:
    """What the block is given, unfilled, for one clip."""
    config = net.config
    half = config.attention_head_dim // 2

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16)

    x = empty(1, tokens, config.width).requires_grad_()
    level, rope = torch.zeros(1, tokens, dtype=torch.long), empty(2, 1, tokens, config.num_attention_heads, half)
    modulation, prompt = empty(1, NOISE_LEVELS, config.rows, config.width), empty(1, 1, 2, config.cross_attention_dim)
    return x, empty(1, TEXT, config.cross_attention_dim), modulation, level, rope, prompt


def kept(net: Transformer, tokens: int, level: float) -> Kept:
    """What the compiler keeps at this level of model.activation_budget."""
    from torch._dynamo.backends.common import aot_autograd  # noqa: PLC0415 (they warn while they are loaded)
    from torch._inductor.compile_fx import partition_fn  # noqa: PLC0415
    from torch._inductor.decomposition import select_decomp_table  # noqa: PLC0415

    found: list[Kept] = []

    def cut(joint: fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        forwards, backwards = partition_fn(joint, inputs, **settings)
        results = list(forwards.graph.nodes)[-1].args[0]
        saved = {node for node in results[1:] if isinstance(node, fx.Node) and node.op != "placeholder"}
        values = [node.meta["val"] for node in saved if isinstance(node.meta.get("val"), Tensor)]
        size = sum(value.numel() * value.element_size() for value in values)
        names = (str(node.target).removesuffix(".default") for node in backwards.graph.nodes)
        called = Counter(name for name in names if name in PRODUCTS or name.startswith("iclora_train."))
        found.append(Kept(1 + size / (tokens * net.config.width * 2), dict(called)))
        raise NotImplementedError("nothing is to be run")

    def stop(graph: fx.GraphModule, _inputs: Sequence[Any]) -> fx.GraphModule:
        return graph

    backend = aot_autograd(fw_compiler=stop, bw_compiler=stop, partition_fn=cut, decompositions=select_decomp_table())
    torch._dynamo.reset()
    runner_of(net).activation_budget = None
    compile_blocks(net, level, backend)
    try:
        with as_on_a_gpu(), torch.autocast("cpu", torch.bfloat16):
            x, *inputs = given(net, tokens)
            net.transformer_blocks[0](x, BlockInputs(*inputs))
    except BackendCompilerFailed:
        if not found:
            raise
    finally:
        torch._dynamo.reset()
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16720, help="of target and reference; S 4704, M 12240, L 16720")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp8"])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--kept", nargs="+", type=float, default=list(BUDGETS))
    args = parser.parse_args()
    net = network(args.precision == "fp8", args.rank)
    for level in args.kept:
        found = kept(net, args.tokens, level)
        row = {"kept": level, "activations": round(found.activations, 2), "products": found.products}
        print(json.dumps({**row, "backwards": found.calls}), flush=True)


if __name__ == "__main__":
    main()

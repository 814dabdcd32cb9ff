"""peft's LoRA layers in the transformer: attach for training, load for sampling, switch off, copy the weights out.

`adapters.file` reads and writes adapter files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

from iclora_train.adapters.algebra import combine
from iclora_train.adapters.base_spec import require_same_base
from iclora_train.adapters.file import Adapter, read, save
from iclora_train.adapters.fuse import linears_for
from iclora_train.config import ConfigError, Lora
from iclora_train.ltx2.kernels.lora_linear import HasLoraFactors, LoraFactors, lora_linear

__all__ = [
    "Adapter",
    "adapter_off",
    "adapter_weights",
    "attach",
    "layers",
    "load_adapter",
    "read",
    "require_same_base",
    "save",
]


class AdaptedLinear(Linear):
    """peft's layer of a linear and its adapter, computed by `kernels.lora_linear`."""

    def lora_factors(self) -> LoraFactors | None:
        """A, and B times alpha / rank; None while the adapter is off."""
        if self.disable_adapters:
            return None
        a, b = _factors(self)
        scale = self.scaling["default"]
        return a, b if scale == 1 else b * scale

    def forward(self, x: Tensor) -> Tensor:
        """x (...,in) -> (...,out)."""
        return lora_linear(x, cast(HasLoraFactors, self))


def _inject(settings: LoraConfig, transformer: nn.Module) -> None:
    settings._register_custom_module({nn.Linear: AdaptedLinear})
    inject_adapter_in_model(settings, transformer)


def attach(transformer: nn.Module, lora: Lora, generator_seed: int = 0) -> list[nn.Parameter]:
    """Attach new trainable fp32 adapters to the linears that `lora.targets` names; all other parameters stay frozen.

    A is drawn with `generator_seed` (the global random state does not change), B is zero. Returns the trainable
    parameters. ConfigError for a target that the base does not have, or a rank above the smaller side of a linear.
    """
    blocks = {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("transformer_blocks.")
    }
    for target in lora.targets:
        if not any(name.endswith("." + target) for name in blocks):
            ends = sorted({name.split(".", 2)[2] for name in blocks})
            raise ConfigError(f"model.lora.targets: no linear {target!r} in the base; it has {', '.join(ends)}")
    adapted = [name for name in blocks if any(name.endswith("." + target) for target in lora.targets)]
    smallest = min(min(blocks[name].weight.shape) for name in adapted)
    if lora.rank > smallest:
        raise ConfigError(f"model.lora.rank={lora.rank} is above {smallest}, the smaller side of a targeted linear")
    alpha: Any = lora.alpha or lora.rank  # peft accepts any number, but is annotated int
    settings = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=adapted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        _inject(settings, transformer)
        for a in _fp8_lora_a(transformer):
            a.data = nn.init.kaiming_uniform_(torch.empty_like(a, dtype=torch.float32), math.sqrt(5))
    parameters = [p for name, p in transformer.named_parameters() if ".lora_" in name]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return parameters


def layers(transformer: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The linears with an adapter, under their names in the official checkpoint."""
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """A (rank,in) and B (out,rank) of a linear with an adapter."""
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    assert isinstance(a, nn.Linear)
    assert isinstance(b, nn.Linear)
    return a.weight, b.weight


def _fp8_lora_a(transformer: nn.Module) -> list[Tensor]:
    """A of each linear with fp8 weights, because peft creates an adapter in the dtype of its linear."""
    lora_a = [_factors(layer)[0] for _, layer in layers(transformer)]
    return [a for a in lora_a if a.dtype.itemsize == 1]


@contextmanager
def adapter_off(transformer: nn.Module) -> Iterator[None]:
    """Switch the adapter off inside the `with`."""
    for _, layer in layers(transformer):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in layers(transformer):
            layer.enable_adapters(True)


def adapter_weights(transformer: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The attached adapter as module -> (A, B), with alpha / rank multiplied into B."""
    weights = {}
    for name, layer in layers(transformer):
        a, b = _factors(layer)
        weights[name] = (a.detach().clone(), b.detach() * layer.scaling["default"])
    return weights


def load_adapter(transformer: nn.Module, adapter: Adapter | Sequence[tuple[Adapter, float]]) -> int:
    """Attach an adapter that was read from a file, or the weighted sum of several.

    Returns the number of audio modules that were ignored: this transformer is the video stream only. ConfigError for
    modules or shapes that the base does not have, and for adapters that cannot be combined.
    """
    adapter = adapter if isinstance(adapter, Adapter) else combine(adapter)
    ranks = {name: adapter.weights[name][0].shape[0] for name in linears_for(transformer, adapter)}
    settings = LoraConfig(r=max(ranks.values()), target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks)
    _inject(settings, transformer)
    transformer.requires_grad_(False)
    dtype = next(p.dtype for p in transformer.parameters() if p.dtype.itemsize > 1)  # skips fp8 weights
    for name, layer in layers(transformer):
        for parameter, values in zip(_factors(layer), adapter.weights[name], strict=True):
            parameter.data = values.to(parameter.device, dtype)
    return len(adapter.audio)

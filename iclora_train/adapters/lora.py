"""peft's LoRA layers in the transformer: attach for training, load for sampling, switch off, copy the weights out.

`adapters.file` reads and writes adapter files.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

from iclora_train.adapters.algebra import combine
from iclora_train.adapters.base_spec import require_same_base
from iclora_train.adapters.file import Adapter, read, save
from iclora_train.adapters.fuse import linears_for
from iclora_train.adapters.slots import set_slots, slots_in
from iclora_train.config import Lora, require
from iclora_train.ltx2.kernels.lora_linear import HasLoraFactors, LoraFactors, lora_linear
from iclora_train.ltx2.model.transformer import Transformer

__all__ = [
    "Adapter",
    "adapter_off",
    "adapter_weights",
    "attach",
    "attach_slots",
    "layers",
    "load_adapter",
    "parameter_groups",
    "ranks",
    "read",
    "require_same_base",
    "save",
    "set_strength",
    "slots_in",
]

T = TypeVar("T")


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


def _lora_config(ranks: Mapping[str, int], alphas: Mapping[str, float], rslora: bool = False) -> LoraConfig:
    """peft's settings for linears of several ranks and alphas, by module."""
    return LoraConfig(
        r=max(ranks.values()),
        target_modules=list(ranks),
        rank_pattern=_patterns(ranks),
        alpha_pattern=cast(Any, _patterns(alphas)),  # peft accepts any number, but is annotated int
        use_rslora=rslora,
    )


def _patterns(values: Mapping[str, T]) -> dict[str, T]:
    """One regular expression for all modules of a value: peft tries every expression on every module."""
    modules = defaultdict(list)
    for name, value in values.items():
        modules[value].append(re.escape(name))
    return {f"^(?:{'|'.join(names)})": value for value, names in modules.items()}


def _require_rank(lora: Lora, name: str, linear: nn.Linear) -> None:
    """ConfigError if the rank of a linear's adapter is above the linear's smaller side."""
    rank, side = lora.rank_of(name), min(linear.weight.shape)
    key = "rank" if rank == lora.rank else "rank_pattern"
    require(
        rank <= side,
        f"model.lora.{key}={rank} is above {side}, the smaller side of {name}: lower it, give this linear a rank in "
        "model.lora.rank_pattern, or leave it out of model.lora.targets",
    )


def attach(transformer: nn.Module, lora: Lora, generator_seed: int = 0) -> list[nn.Parameter]:
    """Attach new trainable fp32 adapters to the linears that `lora.targets` names; all other parameters stay frozen.

    A is drawn with `generator_seed` (the global random state does not change), B is zero. Returns the trainable
    parameters. ConfigError for a target or a pattern without a linear, or a rank above the smaller side of a linear.
    """
    blocks = {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("transformer_blocks.")
    }
    adapted = lora.adapted(list(blocks))
    for name in adapted:
        _require_rank(lora, name, blocks[name])
    alphas = {name: lora.alpha_of(name) for name in adapted}
    settings = _lora_config({name: lora.rank_of(name) for name in adapted}, alphas, lora.rslora)
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


def attach_slots(transformer: Transformer, count: int) -> nn.Parameter:
    """Attach a trainable fp32 vector for each of `count` references, all zero: the base computes what it did before."""
    vectors = torch.zeros(count, transformer.config.width, device=transformer.patchify_proj.weight.device)
    slots = set_slots(transformer, vectors)
    assert slots is not None
    slots.requires_grad_()
    return slots.weight


def ranks(transformer: nn.Module) -> tuple[tuple[str, int], ...]:
    """The linears with an adapter and their ranks."""
    return tuple((name, len(_factors(layer)[0])) for name, layer in layers(transformer))


def parameter_groups(transformer: nn.Module, lora: Lora) -> dict[float, list[nn.Parameter]]:
    """The trainable parameters by the factor on their learning rate, each group in the model's order."""
    groups: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, layer in layers(transformer):
        groups[lora.lr_factor_of(name)] += [p for p in cast(nn.Module, layer).parameters() if p.requires_grad]
    return dict(groups)


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
def adapter_off(transformer: Transformer) -> Iterator[None]:
    """Switch the adapter off inside the `with`."""
    for _, layer in layers(transformer):
        layer.enable_adapters(False)
    slots = slots_in(transformer)
    transformer.reference_slots = None
    try:
        yield
    finally:
        transformer.reference_slots = slots
        for _, layer in layers(transformer):
            layer.enable_adapters(True)


def set_strength(transformer: Transformer, strength: float) -> None:
    """Use a loaded adapter at this strength from now on; at 0 the base computes what it computes without adapter."""
    for _, layer in layers(transformer):
        layer.scaling["default"] = strength
        layer.enable_adapters(strength != 0)
    slots = slots_in(transformer)
    if slots is not None:
        slots.strength = strength


def adapter_weights(transformer: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The attached adapter as module -> (A, B), with alpha / rank multiplied into B."""
    weights = {}
    for name, layer in layers(transformer):
        a, b = _factors(layer)
        weights[name] = (a.detach().clone(), b.detach() * layer.scaling["default"])
    return weights


def load_adapter(transformer: Transformer, adapter: Adapter | Sequence[tuple[Adapter, float]]) -> int:
    """Attach an adapter that was read from a file, or the weighted sum of several.

    Returns the number of audio modules that were left out, which a transformer without its audio half does not have.
    ConfigError for modules or shapes that the base does not have, and for adapters that cannot be combined.
    """
    adapter = adapter if isinstance(adapter, Adapter) else combine(adapter)
    sizes = {name: adapter.weights[name][0].shape[0] for name in linears_for(transformer, adapter)}
    _inject(_lora_config(sizes, sizes), transformer)
    transformer.requires_grad_(False)
    dtype = next(p.dtype for p in transformer.parameters() if p.dtype.itemsize > 1)  # skips fp8 weights
    for name, layer in layers(transformer):
        for parameter, values in zip(_factors(layer), adapter.weights[name], strict=True):
            parameter.data = values.to(parameter.device, dtype)
    set_slots(transformer, adapter.slots)
    return len(adapter.weights) - len(sizes)

"""The optimizer of `optim.optimizer`: a class of a listed package, and its arguments."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from iclora_train.config import ConfigError, require

# A settings file must not run code, so `_target_` may only name optimizers, and only of these packages.
PACKAGES = ("torch.optim", "bitsandbytes.optim", "torchao.optim", "prodigyopt", "pytorch_optimizer")
LR_FACTOR = "lr_factor"  # entry of a parameter group: its factor on the learning rate


def create_optimizer(
    settings: dict[str, Any],
    groups: Mapping[float, Sequence[torch.nn.Parameter]],
    undecayed: Sequence[torch.nn.Parameter] = (),
) -> Optimizer:
    """A new optimizer. ConfigError for a class or arguments that cannot work.

    groups: parameters by the factor on the optimizer's learning rate. Without other factors than 1 the optimizer has
    one group. undecayed: parameters with factor 1 and without weight decay, a group of their own.
    """
    require("_target_" in settings, "optim.optimizer._target_ is missing: name a class, e.g. torch.optim.AdamW")
    parameters: list[Any] = [parameter for group in groups.values() for parameter in group]
    arguments = optimizer_settings(settings, parameters[0].device)
    target = str(arguments.pop("_target_"))
    factors = list(groups)
    if factors != [1] or undecayed:
        parameters = [{"params": list(group)} for group in groups.values()]
    if undecayed:
        parameters.append({"params": list(undecayed), "weight_decay": 0.0})
    try:
        optimizer = _optimizer_class(target)(parameters, **arguments)
    except (TypeError, ValueError, ModuleNotFoundError) as error:
        raise ConfigError(f"optim.optimizer: {target} cannot be created: {error}") from error
    assert isinstance(optimizer, Optimizer)
    if factors != [1]:
        own_rate = "d" in optimizer.param_groups[0]  # Prodigy and D-Adaptation, which adapt one rate for all groups
        require(not own_rate, f"model.lora.lr_pattern: {target} chooses the learning rate itself; use another one")
        for factor, group in zip(factors, optimizer.param_groups, strict=False):
            group["lr"] *= factor
            group[LR_FACTOR] = factor
    return optimizer


def learning_rate(optimizer: Optimizer) -> float:
    """The learning rate of parameters with factor 1."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) / float(group.get(LR_FACTOR, 1))


def optimizer_settings(optim: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Settings of the optimizer. AdamW on a GPU is fused (one kernel) unless the settings select an implementation."""
    has_implementation = bool({"fused", "foreach", "capturable", "differentiable"} & optim.keys())
    adamw = optim["_target_"] in ("torch.optim.AdamW", "torch.optim.adamw.AdamW")
    return {**optim, **({"fused": True} if adamw and device.type == "cuda" and not has_implementation else {})}


def _optimizer_class(target: str) -> type[Optimizer]:
    """The class that a dotted name stands for, if it is an optimizer of one of PACKAGES."""
    module, _, name = target.rpartition(".")
    listed = any(module == package or module.startswith(f"{package}.") for package in PACKAGES)
    require(listed, f"optim.optimizer._target_={target} is not an optimizer of {', '.join(PACKAGES)}")
    optimizer = getattr(importlib.import_module(module), name, None)
    is_optimizer = isinstance(optimizer, type) and issubclass(optimizer, Optimizer) and optimizer is not Optimizer
    require(
        is_optimizer, f"optim.optimizer._target_={target} is not an optimizer: name a class, e.g. {PACKAGES[0]}.AdamW"
    )
    assert optimizer is not None
    return optimizer

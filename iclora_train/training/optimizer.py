"""The optimizer of `optim.optimizer`: a class of a listed package, and its arguments."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from iclora_train.config import ConfigError, require

# A settings file must not run code, so `_target_` may only name optimizers, and only of these packages.
PACKAGES = ("torch.optim", "bitsandbytes.optim", "torchao.optim", "prodigyopt", "pytorch_optimizer")


def create_optimizer(settings: dict[str, Any], parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    """A new optimizer for the parameters. ConfigError for a class or arguments that cannot work."""
    require("_target_" in settings, "optim.optimizer._target_ is missing: name a class, e.g. torch.optim.AdamW")
    arguments = optimizer_settings(settings, parameters[0].device)
    target = str(arguments.pop("_target_"))
    try:
        optimizer = _optimizer_class(target)(parameters, **arguments)
    except (TypeError, ValueError, ModuleNotFoundError) as error:
        raise ConfigError(f"optim.optimizer: {target} cannot be created: {error}") from error
    assert isinstance(optimizer, Optimizer)
    return optimizer


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

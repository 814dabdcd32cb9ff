"""Adapters added into the weights of a loaded transformer: sampling then costs what the base costs."""

from __future__ import annotations

import torch
from torch import nn

from iclora_train.adapters.algebra import WeightedAdapters, combined_metadata, delta, modules, of_module
from iclora_train.adapters.base_spec import fit_findings
from iclora_train.adapters.file import Adapter
from iclora_train.config import ConfigError, require


def linears_for(transformer: nn.Module, adapter: Adapter) -> dict[str, nn.Linear]:
    """The linears of a model that the video stream of an adapter changes. ConfigError for one that it does not have."""
    linears = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in linears.items()}
    for finding in fit_findings(adapter.video, shapes):
        raise ConfigError(finding)
    require(bool(adapter.video), "the adapter changes the audio stream only, which is not used here")
    return {name: linears[name] for name in adapter.video}


@torch.no_grad()
def fuse(transformer: nn.Module, adapters: WeightedAdapters) -> int:
    """Add every adapter at its strength into the weights, in place: summed in fp32, rounded once to their dtype.

    Returns how many audio modules were passed over. ConfigError, before anything is changed, for modules or shapes that
    the base does not have and for adapters that do not go together.
    """
    combined_metadata(adapters)
    linears: dict[str, nn.Linear] = {}
    for adapter, _ in adapters:
        linears |= linears_for(transformer, adapter)
    for name, linear in linears.items():
        weight = linear.weight
        terms = ((a.to(weight.device), b.to(weight.device), s) for a, b, s in of_module(adapters, name))
        weight.copy_(weight.float() + delta(terms))
    return len(modules(adapters)) - len(linears)

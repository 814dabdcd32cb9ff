"""Add adapters to the weights of a loaded transformer, so that sampling costs as much as without an adapter."""

from __future__ import annotations

import torch
from torch import nn

from iclora_train.adapters.algebra import (
    WeightedAdapters,
    changed_modules,
    combined_metadata,
    factors_of,
    slots_of,
    weight_delta,
)
from iclora_train.adapters.base_spec import shape_findings
from iclora_train.adapters.file import Adapter
from iclora_train.adapters.key_styles import is_audio
from iclora_train.adapters.ltx2_modules import CONNECTOR_BLOCKS
from iclora_train.adapters.slots import set_slots, width_findings
from iclora_train.config import ConfigError, require
from iclora_train.ltx2.model.transformer import Transformer


def linears_for(transformer: nn.Module, adapter: Adapter) -> dict[str, nn.Linear]:
    """The linears of a model that an adapter changes; without those of audio if the model is the video stream alone.

    ConfigError for a linear that the model does not have.
    """
    linears = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in linears.items()}
    used = adapter.weights if any(map(is_audio, linears)) else adapter.video
    require(
        bool(used),
        f"the adapter changes only the audio stream or the cross-attention between audio and video "
        f"({len(adapter.audio)} linears, e.g. {next(iter(adapter.weights), 'none')}), which this program leaves out: "
        "use it in ComfyUI or ltx-pipelines",
    )
    connector = next((name for name in used if CONNECTOR_BLOCKS in name), None)
    require(
        connector is None or connector in shapes,
        f"the adapter changes {connector}, a linear of the text connectors, which are not adapted here: merge the "
        "adapter into the base (`python -m iclora_train.adapters merge`)",
    )
    for finding in (*shape_findings(used, shapes), *width_findings(adapter.slots, shapes)):
        raise ConfigError(finding)
    return {name: linears[name] for name in used}


@torch.no_grad()
def fuse(transformer: Transformer, adapters: WeightedAdapters) -> int:
    """Add every adapter at its strength to the weights, in place: summed in fp32, rounded once to the weights' dtype.
    Learned slots of references are summed likewise, and stay beside the weights.

    Returns the number of audio modules that were left out. ConfigError, before any weight changes, for modules or
    shapes that the base does not have and for adapters that cannot be combined; and for weights that become infinite.
    """
    metadata = combined_metadata(adapters)
    linears: dict[str, nn.Linear] = {}
    for adapter, _ in adapters:
        linears |= linears_for(transformer, adapter)
    for name, linear in linears.items():
        weight = linear.weight
        factors = ((a.to(weight.device), b.to(weight.device), s) for a, b, s in factors_of(adapters, name))
        changed = (weight.float() + weight_delta(factors)).to(weight.dtype)
        require(
            bool(changed.isfinite().all()), f"{name}: with the adapter the weights are too large for {weight.dtype}"
        )
        weight.copy_(changed)
    set_slots(transformer, slots_of(adapters, metadata))
    return len(changed_modules(adapters)) - len(linears)

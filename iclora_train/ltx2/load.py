"""Loads the transformer from disk to the device, tensor by tensor.

Besides the page cache and the offloaded weights (`weight_offload`), the host holds at most two tensors at a time. No
weight is initialised before it is loaded.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from iclora_train.config import ConfigError
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, quantize
from iclora_train.ltx2.model.transformer import Transformer, TransformerConfig
from iclora_train.ltx2.runtime.block_runner import BlockRunner
from iclora_train.ltx2.runtime.weight_offload import WeightOffload
from iclora_train.ltx2.weights.assign import assign_tensor, check_keys
from iclora_train.ltx2.weights.fp8_scales import FP8
from iclora_train.ltx2.weights.model_files import Checkpoint
from iclora_train.ltx2.weights.safetensors_header import Component

_KEYFRAME = "keyframes_abs_pos_embedding"


def load_transformer(
    checkpoint: Checkpoint,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    fp8: bool = False,
    weight_offload: int = 0,
    audio: bool = False,
) -> Transformer:
    """The frozen transformer in evaluation mode, in `dtype`.

    ConfigError names keys that are missing, unknown or of a wrong shape.
    fp8: the blocks' linears stay in fp8; the linears of a bf16 checkpoint are quantized while loading.
    weight_offload: number of blocks whose weights stay in host memory.
    audio: with the audio half (`Transformer.forward`). ConfigError if the checkpoint has none.
    """
    component = checkpoint.transformer(audio)
    config = transformer_config(checkpoint, audio)
    with torch.device("meta"):
        module = Transformer(config)
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    check_keys(component.where, "transformer", component.shapes, expected)
    component.require_readable()
    offload = WeightOffload(config.num_layers, weight_offload, device)
    BlockRunner(offload).install(module)
    linears = fp8_linears(module, component) if fp8 else set()
    for name in component.in_disk_order():
        owner, _, leaf = name.rpartition(".")
        if owner not in linears:
            assign_tensor(module, name, component.tensor(name, device).to(dtype))
        elif leaf == "weight":
            weight, scale = component.quantized(name, device) or quantize(component.tensor(name, device))
            has_bias = f"{owner}.bias" in component.stored
            bias = component.tensor(f"{owner}.bias", device).to(dtype) if has_bias else None
            module.set_submodule(owner, Fp8Linear(weight, scale, bias))
        offload.move_to_host(name, module.get_parameter(name))
    return module.eval()


def block_linears(module: Transformer) -> set[str]:
    """Names of the blocks' linears, without the small attention gates."""
    return {
        name
        for name, submodule in module.named_modules()
        if isinstance(submodule, nn.Linear)
        and name.startswith("transformer_blocks.")
        and not name.endswith("_gate_logits")
    }


def fp8_linears(module: Transformer, component: Component) -> set[str]:
    """Names of the linears to keep in fp8: those that the file stores in fp8; if none, all `block_linears`."""
    names = block_linears(module)
    stored = {name for name in names if component.stored[f"{name}.weight"].dtype in FP8}
    return stored or names


def transformer_config(checkpoint: Checkpoint, audio: bool = False) -> TransformerConfig:
    """Sizes and switches of the video stream, or with `audio` of both streams.

    A checkpoint from before the keyframe embedding was trained may announce the embedding without storing it. Training
    started it at zero, so omitting it is the same (ltx-core: transformer/model.py).
    """
    component = checkpoint.component("transformer")
    try:
        config = TransformerConfig.from_metadata(checkpoint.config["transformer"], audio)
    except ValueError as error:
        raise ConfigError(f"{component.source}: {error}; give an official checkpoint") from error
    return config if _KEYFRAME in component.stored else replace(config, use_keyframes_abs_pos_embedding=False)

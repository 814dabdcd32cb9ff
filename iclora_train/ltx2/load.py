"""The transformer from disk to device, tensor by tensor: the host never holds more than two of them beyond the page
cache and the weights that are to stay there (`weight_offload`), and nothing is initialised in vain."""

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
) -> Transformer:
    """The frozen transformer in evaluation mode, in `dtype`. ConfigError names missing, unknown and misshapen keys.

    fp8: the blocks' linears stay in fp8, those of a bf16 checkpoint are rounded to it while loading.
    weight_offload: blocks whose weights lie in host memory.
    """
    part = checkpoint.component("transformer")
    config = transformer_config(checkpoint)
    with torch.device("meta"):
        module = Transformer(config)
    wanted = dict(module.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in wanted.items()}
    check_keys(part.where, "transformer", part.shapes, shapes)
    part.require_readable()
    offload = WeightOffload(config.num_layers, weight_offload, device)
    module.run_blocks = BlockRunner(offload)
    linears = fp8_linears(module, part) if fp8 else set()
    for name in part.in_disk_order():
        owner, _, leaf = name.rpartition(".")
        if owner in linears:
            if leaf == "weight":
                weight, scale = part.quantized(name, device) or quantize(part.tensor(name, device))
                bias = f"{owner}.bias"
                given = part.tensor(bias, device).to(dtype) if bias in part.stored else None
                module.set_submodule(owner, Fp8Linear(weight, scale, given))
        else:
            assign_tensor(module, name, part.tensor(name, device).to(dtype))
        offload.move_to_host(name, module.get_parameter(name))
    return module.eval()


def block_linears(module: Transformer) -> set[str]:
    """Names of the blocks' linears but the small gates."""
    return {
        name
        for name, each in module.named_modules()
        if isinstance(each, nn.Linear) and name.startswith("transformer_blocks.") and not name.endswith("_gate_logits")
    }


def fp8_linears(module: Transformer, part: Component) -> set[str]:
    """Names of the linears to keep in fp8: those the file has in it; if none, the blocks' but the small gates."""
    names = block_linears(module)
    stored = {name for name in names if part.stored[f"{name}.weight"].dtype in FP8}
    return stored or names


def transformer_config(checkpoint: Checkpoint) -> TransformerConfig:
    """Sizes and switches of the video stream. A checkpoint from before the keyframe embedding was trained may announce
    it and not hold it; it began at zero, so leaving it out is the same (ltx-core: transformer/model.py)."""
    part = checkpoint.component("transformer")
    try:
        config = TransformerConfig.from_metadata(checkpoint.config["transformer"])
    except ValueError as error:
        raise ConfigError(f"{part.source}: {error}; give an official checkpoint") from error
    return config if _KEYFRAME in part.stored else replace(config, use_keyframes_abs_pos_embedding=False)

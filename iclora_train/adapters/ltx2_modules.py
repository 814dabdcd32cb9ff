"""The linears of the published LTX-2 models by name and size, and module names that betray adapters of other models.

Sources: ltx-core (model/transformer/model_configurator.py); ComfyUI (comfy/lora.py) and diffusers
(loaders/lora_conversion_utils.py) for the other models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from iclora_train.core.safetensors_header import shortened
from iclora_train.ltx2.weights.key_names import PROJECTION_PREFIX

BLOCKS = "transformer_blocks."
CONNECTOR_BLOCKS = "embeddings_connector.transformer_1d_blocks."  # after video_ or audio_
NUM_BLOCKS = 48  # of LTX-2, 2.3 and 2.5

_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_LINEARS = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
IN_A_BLOCK = (
    *(f"{attention}.{linear}" for attention in _ATTENTIONS for linear in _LINEARS),
    *(f"{ff}.{linear}" for ff in ("ff", "audio_ff") for linear in ("net.0.proj", "net.2")),
)
_ADALN = (
    *(f"{stream}{name}adaln_single" for stream in ("", "audio_") for name in ("", "prompt_")),
    *(f"av_ca_{name}_adaln_single" for name in ("video_scale_shift", "audio_scale_shift", "a2v_gate", "v2a_gate")),
)
TOP_LEVEL = (
    *(f"{stream}{name}" for stream in ("", "audio_") for name in ("patchify_proj", "proj_out")),
    *(f"{stream}caption_projection.linear_{i}" for stream in ("", "audio_") for i in (1, 2)),
    *(f"{name}.linear" for name in _ADALN),
    *(f"{name}.emb.timestep_embedder.linear_{i}" for name in _ADALN for i in (1, 2)),
)
_INPUTS = {  # linear of a block -> features of its input
    **dict.fromkeys(("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "ff.net.0.proj"), 4096),
    **{f"audio_{name}": 2048 for name in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "ff.net.0.proj")},
}
_BLOCK = re.compile(rf"(?:{re.escape(BLOCKS)}|(?:video|audio)_{re.escape(CONNECTOR_BLOCKS)})(?P<index>\d{{1,3}})\.(.+)")
_OTHER_MODELS = {  # pattern in a module name with underscores -> model
    r"lora_te|text_model_encoder|text_encoder": "a text encoder",
    r"(^|_)(down|up|mid)_blocks?_|input_blocks_|middle_block_|output_blocks_": "Stable Diffusion (1, 2 or XL)",
    r"joint_blocks_": "Stable Diffusion 3",
    r"double_blocks_|single_blocks_": "HunyuanVideo or FLUX",
    r"transformer_blocks_\d+_(img|txt)_(mlp|mod)": "Qwen-Image",
    r"transformer_blocks_\d+_(attn_|ff_context)": "FLUX, HunyuanVideo or Qwen-Image",
    r"transformer_blocks_\d+_norm[12]_linear": "CogVideoX",
    r"^blocks_\d+_(self_attn|cross_attn|ffn|attn1|attn2)_": "Wan",
    r"^layers_\d+_(attention|feed_forward|adaLN)": "Z-Image or Lumina",
}


def is_ltx2(module: str) -> bool:
    """Whether a linear of the published LTX-2 models has this official name."""
    block = _BLOCK.fullmatch(module)
    return module in TOP_LEVEL if block is None else block[2] in IN_A_BLOCK


def foreign_module(modules: Iterable[str]) -> str | None:
    """The problem of the first module that LTX-2 does not have, with the model that it is from; None without one."""
    unknown = [name for name in modules if not is_ltx2(name)]
    if not unknown:
        return None
    if unknown[0].startswith(PROJECTION_PREFIX):
        return f"{shortened(unknown[0])} belongs to the text projection, which is not adapted here"
    model = next((model for model in map(model_of, unknown) if model is not None), None)
    source = "" if model is None else f": the adapter is for {model}"
    return f"LTX-2 has no linear {shortened(unknown[0])}{source}"


def model_of(module: str) -> str | None:
    """The model that is known by the name of one of its modules."""
    flat = module.replace(".", "_")
    return next((model for pattern, model in _OTHER_MODELS.items() if re.search(pattern, flat)), None)


def foreign_size(inputs: Mapping[str, int]) -> str | None:
    """The problem of a module that has another size, or another place, than in the published LTX-2 models.

    inputs: module -> features of its input. LTX-Video 2B, CogVideoX and PixArt have linears of the same names.
    """
    for name, features in inputs.items():
        block = _BLOCK.fullmatch(name)
        if block is None or not name.startswith(BLOCKS):
            continue
        if int(block["index"]) >= NUM_BLOCKS:
            return f"{name}: LTX-2 has {NUM_BLOCKS} blocks"
        expected = _INPUTS.get(block[2], features)
        if features != expected:
            return (
                f"{name} takes {features} features, in LTX-2 it takes {expected}: an adapter for another model with "
                "linears of the same names, such as LTX-Video 2B or CogVideoX"
            )
    return None

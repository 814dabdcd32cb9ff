"""Parse adapter keys of every style in use: the module and the LoRA factor that a key names.

Everywhere in the project modules have the names of the official checkpoints. Only this file reads other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from iclora_train.ltx2.weights import key_names

PREFIX = "diffusion_model."
PEFT = "base_model.model."
BLOCKS = "transformer_blocks."

_OUR_KEY = re.compile(r"diffusion_model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_ANY_KEY = re.compile(r"(?P<module>.+)\.(?P<factor>lora_A|lora_B|lora_down|lora_up)(\.default)?\.weight")
_FACTORS = {"lora_A": "A", "lora_B": "B", "lora_down": "A", "lora_up": "B"}
_PREFIXES = (PEFT, PREFIX, "transformer.")
_KOHYA = "lora_unet_"
_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_LINEARS = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
_IN_A_BLOCK = (
    *(f"{attention}.{linear}" for attention in _ATTENTIONS for linear in _LINEARS),
    *(f"{ff}.{linear}" for ff in ("ff", "audio_ff") for linear in ("net.0.proj", "net.2")),
)
_AUDIO_TOPS = {  # diffusers' name -> official name (diffusers: loaders/lora_conversion_utils.py)
    "audio_proj_in": "audio_patchify_proj",
    "audio_time_embed": "audio_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
}


@dataclass(frozen=True)
class AdapterKey:
    """The content of a key: module, factor ("A", "B" or "alpha") and the style of the key."""

    module: str
    factor: str
    style: str


def parse_our_key(key: str) -> AdapterKey | None:
    """A key of our file format; None if it has another style."""
    match = _OUR_KEY.fullmatch(key)
    return None if match is None else AdapterKey(match["module"], match["factor"], PREFIX)


def parse_any_key(key: str, modules: Iterable[str] = ()) -> AdapterKey | None:
    """A key of any supported style; None if it has none of them.

    modules: module names of the base, which resolve the underscores of kohya-style keys. Without them only the linears
    of the blocks can be resolved.
    """
    if key.endswith(".alpha"):
        name, factor = key.removesuffix(".alpha"), "alpha"
    else:
        match = _ANY_KEY.fullmatch(key)
        if match is None:
            return None
        name, factor = match["module"], _FACTORS[match["factor"]]
    if name.startswith(_KOHYA):
        module = _from_kohya(name.removeprefix(_KOHYA), tuple(modules))
        return None if module is None else AdapterKey(module, factor, _KOHYA)
    style = ""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            style += prefix
            name = name.removeprefix(prefix)
    return AdapterKey(_official(name), factor, style or "no prefix")


def is_audio(module: str) -> bool:
    """Whether a module belongs to the audio stream or to the cross-attention between audio and video."""
    return key_names.classify_key(f"{key_names.MODEL_PREFIX}{module}.weight") is None


def _official(module: str) -> str:
    """The official name of a module, from its official or its diffusers name."""
    top, dot, rest = module.partition(".")
    if top in _AUDIO_TOPS:
        return _AUDIO_TOPS[top] + dot + rest
    official = key_names.official_from_diffusers(f"{module}.weight")
    return module if official is None else official.removesuffix(".weight")


def _from_kohya(flat: str, modules: tuple[str, ...]) -> str | None:
    """`transformer_blocks_0_attn1_to_out_0` -> `transformer_blocks.0.attn1.to_out.0`."""
    if modules:
        return _by_flat_name(modules).get(flat)
    match = re.fullmatch(r"transformer_blocks_(\d+)_(.+)", flat)
    module = _by_flat_name(_IN_A_BLOCK).get(match[2]) if match else None
    return None if match is None or module is None else f"{BLOCKS}{match[1]}.{module}"


@cache
def _by_flat_name(modules: tuple[str, ...]) -> dict[str, str]:
    return {module.replace(".", "_"): module for module in modules}

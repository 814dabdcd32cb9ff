"""How the keys of adapter files name a half of an adapted linear, in every style that is in use.

Module names are those of the official checkpoints everywhere in this project; here the others are understood.
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

_OURS = re.compile(r"diffusion_model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_HALF = re.compile(r"(?P<module>.+)\.(?P<half>lora_A|lora_B|lora_down|lora_up)(\.default)?\.weight")
_SIDES = {"lora_A": "A", "lora_B": "B", "lora_down": "A", "lora_up": "B"}
_PREFIXES = (PEFT, PREFIX, "transformer.")
_KOHYA = "lora_unet_"
_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_LINEARS = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
_OF_A_BLOCK = (
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
class Half:
    """What a key stands for: one half ("A", "B") or the "alpha" of a module, and in which style it was written."""

    module: str
    side: str
    style: str


def of_contract(key: str) -> Half | None:
    """The half that a key of our file format names; None if the key is of another style."""
    match = _OURS.fullmatch(key)
    return None if match is None else Half(match["module"], match["side"], PREFIX)


def of_any(key: str, known: Iterable[str] = ()) -> Half | None:
    """The half that a key of any known style names; None if it names none.

    known: module names of the base, against which the underscores of kohya-style keys are resolved; without them the
    linears of the blocks are known.
    """
    if key.endswith(".alpha"):
        name, side = key.removesuffix(".alpha"), "alpha"
    else:
        match = _HALF.fullmatch(key)
        if match is None:
            return None
        name, side = match["module"], _SIDES[match["half"]]
    if name.startswith(_KOHYA):
        module = _from_kohya(name.removeprefix(_KOHYA), tuple(known))
        return None if module is None else Half(module, side, _KOHYA)
    style = ""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            style += prefix
            name = name.removeprefix(prefix)
    return Half(_official(name), side, style or "no prefix")


def is_audio(module: str) -> bool:
    """Whether a module belongs to the audio stream or to what couples it to the video stream."""
    return key_names.classify_key(f"{key_names.MODEL_PREFIX}{module}.weight") is None


def _official(module: str) -> str:
    """The official name of a module under its official or its diffusers name."""
    top, dot, rest = module.partition(".")
    if top in _AUDIO_TOPS:
        return _AUDIO_TOPS[top] + dot + rest
    renamed = key_names.official_from_diffusers(f"{module}.weight")
    return module if renamed is None else renamed.removesuffix(".weight")


def _from_kohya(flat: str, known: tuple[str, ...]) -> str | None:
    """`transformer_blocks_0_attn1_to_out_0` -> `transformer_blocks.0.attn1.to_out.0`."""
    if known:
        return _flattened(known).get(flat)
    match = re.fullmatch(r"transformer_blocks_(\d+)_(.+)", flat)
    module = _flattened(_OF_A_BLOCK).get(match[2]) if match else None
    return None if match is None or module is None else f"{BLOCKS}{match[1]}.{module}"


@cache
def _flattened(modules: tuple[str, ...]) -> dict[str, str]:
    return {module.replace(".", "_"): module for module in modules}

"""Parse adapter keys of every style in use: the module and the LoRA factor that a key names.

Everywhere in the project modules have the names of the official checkpoints. Only this file reads other names.
Sources: ComfyUI (comfy/weight_adapter/lora.py, comfy/lora.py), diffusers (loaders/lora_conversion_utils.py),
AkaneTendo25/musubi-tuner (ltx_2/convert_lora_to_comfy.py), SimpleTuner (helpers/training/lora_format.py), ai-toolkit
(toolkit/network_mixins.py), LyCORIS (lycoris/modules).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from iclora_train.adapters.ltx2_modules import CONNECTOR_BLOCKS, IN_A_BLOCK, TOP_LEVEL
from iclora_train.ltx2.weights import key_names

PREFIX = "diffusion_model."
PEFT = "base_model.model."

_OUR_KEY = re.compile(r"diffusion_model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_ANY_KEY = (
    re.compile(  # `.default` is the name that peft gives an adapter; `.lora.down` and `_lora.down` are diffusers'
        r"(?P<module>.+)[._](?P<factor>lora_A|lora_B|lora_down|lora_up|(?:lora|lora_linear_layer)\.(?:down|up))"
        r"(?:(?:\.[\w-]+)?\.weight)?"
    )
)
_LOKR_KEY = re.compile(r"(?P<module>.+)\.(?P<factor>lokr_(?:w[12](?:_[ab])?|t2))")
_DORA_KEY = re.compile(r"(?P<module>.+)\.(?:dora_scale|lora_magnitude_vector(?:\.[\w-]+)?(?:\.weight)?)")
_ALPHAS = (".alpha", ".lora_alpha")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")  # dots of the module name became underscores
_WRAPPERS = ("", "model_", "diffusion_model_", "model_diffusion_model_")  # before a module name with underscores
_PREFIXES = (PEFT, PREFIX, "transformer.", "model.", "module.")
_COMPILED = "_orig_mod."  # torch.compile's name for the module that it wraps
_CONNECTORS = {  # diffusers and the flat keys of musubi-tuner -> official
    "connectors.video_connector.transformer_blocks.": f"video_{CONNECTOR_BLOCKS}",
    "connectors.audio_connector.transformer_blocks.": f"audio_{CONNECTOR_BLOCKS}",
    "embeddings_connector.": "video_embeddings_connector.",
}
DORA, LOKR = "DoRA", "LoKr"  # read by `convert`, which makes a plain LoRA of them
MAGNITUDE = "magnitude"  # factor of a DoRA's key: the lengths of the rows of a weight
_OTHER_KINDS = {  # ending of a key -> kind of adapter; they are not products B A, added to a weight
    r"dora_scale|lora_magnitude_vector(\.[\w-]+)?(\.weight)?": DORA,
    r"magnitude": "DoRA with other keys",
    r"lokr_\w+": LOKR,
    r"hada_\w+": "LoHa",
    r"oft_\w+(\.\w+)?|boft_\w+|\w*oft_\w*metadata": "OFT",
    r"[ab][12]\.weight": "GLoRA",
    r"lora_mid\.weight": "LoCon with a Tucker core",
    r"diff|diff_b|set_weight|reshape_weight": "full weight differences",
    r"(lora_B|lora_up)(\.[\w-]+)?\.bias": "LoRA with biases",
    r"on_input|vera_lambda_\w+|w_norm|b_norm": "IA3, VeRA or norms",
}


@dataclass(frozen=True)
class AdapterKey:
    """The content of a key: module, factor and the style of the key.

    factor: "A", "B", "alpha", MAGNITUDE, or of a LoKr such as "lokr_w1".
    """

    module: str
    factor: str
    style: str


def parse_our_key(key: str) -> AdapterKey | None:
    """A key of our file format; None if it has another style."""
    match = _OUR_KEY.fullmatch(key)
    return None if match is None else AdapterKey(match["module"], match["factor"], PREFIX)


def parse_any_key(key: str, modules: Iterable[str] = ()) -> AdapterKey | None:
    """A key of any supported style; None if it has none of them.

    modules: module names of the base, which resolve names whose dots became underscores. Without them the names of the
    published LTX-2 models are used. A module that they do not have keeps its underscores.
    """
    alpha = next((ending for ending in _ALPHAS if key.endswith(ending)), None)
    if alpha is not None:
        name, factor = key.removesuffix(alpha), "alpha"
    elif (lokr := _LOKR_KEY.fullmatch(key)) is not None:
        name, factor = lokr["module"], lokr["factor"]
    elif (dora := _DORA_KEY.fullmatch(key)) is not None:
        name, factor = dora["module"], MAGNITUDE
    else:
        match = _ANY_KEY.fullmatch(key)
        if match is None:
            return None
        name, factor = match["module"], "A" if match["factor"].endswith(("A", "down")) else "B"
    flat = next((prefix for prefix in _FLAT_PREFIXES if name.startswith(prefix)), None)
    if flat is not None:
        return AdapterKey(_from_flat(name.removeprefix(flat), tuple(modules)), factor, flat)
    module, style = _without_prefixes(name)
    return AdapterKey(official_name(module), factor, style or "no prefix")


def other_kind(key: str) -> str | None:
    """The kind of adapter of a key that is not of a plain LoRA, such as LoKr; None if the key is of no known kind."""
    kinds = _OTHER_KINDS.items()
    return next((kind for ending, kind in kinds if re.search(rf"(?:^|\.)(?:{ending})$", key)), None)


def is_audio(module: str) -> bool:
    """Whether a module belongs to the audio stream or to the cross-attention between audio and video."""
    return key_names.is_audio(module)


def official_name(module: str) -> str:
    """The official name of a module, from its official or its diffusers name."""
    for prefix, official in _CONNECTORS.items():
        if module.startswith(prefix):
            return official + module.removeprefix(prefix)
    return key_names.official_from_diffusers(f"{module}.weight").removesuffix(".weight")


def _without_prefixes(name: str) -> tuple[str, str]:
    """A module name without prefixes, in any order of them, and the prefixes."""
    name, style = name.replace(_COMPILED, ""), ""
    while True:
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return name, style
        name, style = name.removeprefix(prefix), style + prefix


def _from_flat(flat: str, modules: tuple[str, ...]) -> str:
    """`model_transformer_blocks_0_attn1_to_out_0` -> `transformer_blocks.0.attn1.to_out.0`."""
    for wrapper in _WRAPPERS:
        if flat.startswith(wrapper):
            name = _resolved(flat.removeprefix(wrapper), modules)
            if name is not None:
                return name
    return flat


def _resolved(flat: str, modules: tuple[str, ...]) -> str | None:
    """The module whose name has dots in place of some of the underscores; None if there is none."""
    if flat.startswith("embeddings_connector_"):
        flat = f"video_{flat}"
    if modules:
        return _by_flat_name(modules).get(flat)
    blocks = re.fullmatch(
        r"(transformer_blocks|(?:video|audio)_embeddings_connector_transformer_1d_blocks)_(\d{1,3})_(.+)", flat
    )
    if blocks is None:
        return _by_flat_name(TOP_LEVEL).get(flat)
    module = _by_flat_name(IN_A_BLOCK).get(blocks[3])
    prefix = blocks[1].replace("connector_", "connector.")
    return None if module is None else f"{prefix}.{blocks[2]}.{module}"


@cache
def _by_flat_name(modules: tuple[str, ...]) -> dict[str, str]:
    return {module.replace(".", "_"): module for module in modules}

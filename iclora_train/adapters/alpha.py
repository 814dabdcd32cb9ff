"""The scale alpha / rank of each module of an adapter that another program wrote.

Sources of alpha, the first that exists: tensors of the file, diffusers' LoraConfig in the metadata, peft's
adapter_config.json in the same folder, a number in the metadata. Without any of them alpha is the module's rank. Files
with alpha tensors already hold the effective alpha of a rank-stabilised LoRA (LyCORIS, musubi-tuner).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from iclora_train.adapters.key_styles import PEFT, official_name
from iclora_train.config import ConfigError
from iclora_train.core.safetensors_header import parse_object, shortened

Scale = Callable[[str, int], float]  # module, rank -> factor for B
DIFFUSERS = "lora_adapter_metadata"  # diffusers' LoraConfig as JSON, its keys prefixed `transformer.`
_CONFIG = "adapter_config.json"
_METADATA = ("lora_alpha", "network_alpha", "alpha")  # LightX2V; kohya's ss_network_alpha belongs to alpha tensors
_NAME = re.compile(r"(\^?)((?:\w|-|\\?\.)+)\$?", re.ASCII)


def scale_of_modules(
    path: Path, metadata: Mapping[str, str], alphas: Mapping[str, Tensor], styles: set[str], dora: bool = False
) -> Scale:
    """The function that gives alpha / rank of a module. ConfigError names the file and the value that is wrong.

    alphas: the alpha tensors of the file, by module. styles: of the file's keys; peft's config is used only for keys in
    peft's style. dora: whether the file has the magnitudes of a DoRA.
    """
    if alphas:
        numbers = {module: _tensor(path, module, alpha) for module, alpha in alphas.items()}
        return lambda module, rank: numbers[module] / rank if module in numbers else 1.0
    if DIFFUSERS in metadata:
        source = f"{path}: metadata {DIFFUSERS}"
        settings = _parsed(metadata[DIFFUSERS], source)
        prefix = "transformer."
        return _peft({k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}, source, dora)
    config = path.with_name(_CONFIG)
    if config.is_file() and any(PEFT in style for style in styles):
        return _peft(_parsed(config.read_bytes(), str(config)), str(config), dora)
    for key in _METADATA:
        if key in metadata:
            alpha = _text_number(metadata[key], f"{path}: metadata {key}")
            return lambda module, rank: alpha / rank
    return lambda module, rank: 1.0


def _text_number(text: str, source: str) -> float:
    try:
        return _number(float(text), source)
    except ValueError as error:
        raise ConfigError(
            f"{source} is {shortened(text, 40)}; it must be a number: export the adapter again"
        ) from error


def _tensor(path: Path, module: str, alpha: Tensor) -> float:
    if alpha.numel() != 1:
        raise ConfigError(f"{path}: alpha of {module} has shape {tuple(alpha.shape)}; it must be one number")
    return _number(float(alpha), f"{path}: alpha of {module}")


def _number(value: object, source: str) -> float:
    """A finite number. bool is not one."""
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ConfigError(f"{source} is {shortened(str(value))}; it must be a finite number: export the adapter again")
    return float(value)  # type: ignore[arg-type]


def _parsed(text: bytes | str, source: str) -> dict[str, Any]:
    try:
        return parse_object(text)
    except ValueError as error:
        raise ConfigError(f"{source} is not JSON with the LoRA settings ({error}): export the adapter again") from error


def _peft(config: Mapping[str, Any], source: str, dora: bool) -> Scale:
    """lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (arXiv 2312.03732), with peft's alpha_pattern."""
    if config.get("use_dora") and not dora:
        raise ConfigError(f"{source} has use_dora, and the file lacks the magnitudes of a DoRA: export it again")
    default = config.get("lora_alpha")
    default = None if default is None else _number(default, f"{source}: lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ConfigError(f"{source}: alpha_pattern is not an object of module names and numbers")
    alphas = [(_name(key, source), _number(v, f"{source}: alpha of {shortened(key)}")) for key, v in patterns.items()]

    def scale(module: str, rank: int) -> float:
        matching = (alpha for name, alpha in alphas if name == f"^{module}" or f".{module}".endswith(f".{name}"))
        alpha = next(matching, rank if default is None else default)
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return scale


def _name(pattern: str, source: str) -> str:
    """The module name that a key of alpha_pattern is: the end of a name after a dot, or with ^ the whole name.

    peft reads keys as regular expressions, and a regular expression can take for ever, so only names are accepted.
    """
    match = _NAME.fullmatch(pattern)
    if match is None:
        raise ConfigError(
            f"{source}: alpha_pattern has {shortened(pattern)}, which is not a module name; name every module "
            "that it stands for"
        )
    return match[1] + official_name(match[2].replace("\\.", "."))

"""Import adapters of other programs.

The result has official module names, alpha multiplied into B, and reference factors as whole numbers.

Supported: our own and official files, kohya-style (lora_down, lora_up, alpha), peft-style (with adapter_config.json in
the same folder), diffusers-style (`transformer.`, its module names, `lora_adapter_metadata`), keys without a prefix.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from iclora_train.adapters.base_spec import FAMILY, BaseSpec, base_findings, weight_findings
from iclora_train.adapters.file import (
    DOWNSCALE,
    KIND,
    PLAIN,
    TEMPORAL,
    Adapter,
    adapter_findings,
    metadata_findings,
    module_findings,
    read_tensors,
)
from iclora_train.adapters.key_styles import PEFT, parse_any_key
from iclora_train.config import ConfigError

_DIFFUSERS = "lora_adapter_metadata"  # diffusers' LoraConfig as JSON, its keys prefixed `transformer.`
_SCALES = re.compile(rf"{_DIFFUSERS}|(.*[._])?((lora|network)_)?alpha")  # removed: alpha is multiplied into B
_OTHER_DOWNSCALE = "ss_reference_downscale_factor"  # musubi-tuner's key
Scale = Callable[[str, int], float]  # module, rank -> factor for B


@dataclass(frozen=True)
class ReferenceFactors:
    """Reference factors from the user, for an adapter without them. reference=False: the adapter takes no reference."""

    downscale: int | None = None
    temporal: int | None = None
    reference: bool = True


def import_adapter(path: Path, base: BaseSpec | None = None, factors: ReferenceFactors = ReferenceFactors()) -> Adapter:
    """Read an adapter of any supported style. Weights are fp32; audio modules are included.

    base: the base of the adapter. Modules, shapes and a declared version are checked against it; an undeclared version
    is set to the base's. ConfigError names the file, the key and the remedy. A missing reference factor is an error,
    unless `factors` gives it or says that the adapter takes no reference (then the factor is 1).
    """
    tensors, metadata = read_tensors(path)
    modules, styles = _by_module(path, tensors, base)
    alphas = {name: _number(path, name, m.pop("alpha")) for name, m in modules.items() if "alpha" in m}
    for finding in (finding for name, module in modules.items() for finding in module_findings(name, module)):
        raise ConfigError(f"{path}: {finding}")
    scale = _scale(path, metadata, alphas, styles)
    weights = {name: (m["A"].float(), m["B"].float() * scale(name, m["A"].shape[0])) for name, m in modules.items()}
    try:
        metadata = _metadata(metadata, factors)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    findings = list(adapter_findings(weights))
    if base is not None:
        metadata = metadata if FAMILY in metadata else {**metadata, **base.metadata}
        findings += [*base_findings(metadata, base), *weight_findings(weights, base)]
    if findings:
        raise ConfigError(f"{path}: {findings[0]}")
    return Adapter(weights, metadata)


def _by_module(
    path: Path, tensors: Mapping[str, Tensor], base: BaseSpec | None
) -> tuple[dict[str, dict[str, Tensor]], set[str]]:
    """Module -> factor ("A", "B", "alpha") -> tensor, and the styles of the keys."""
    linears = tuple(base.linears) if base is not None else ()
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    styles = set()
    for name, tensor in tensors.items():
        key = parse_any_key(name, linears)
        if key is None:
            raise ConfigError(f"{path}: key {name!r} has no supported adapter style{_hint(name, base)}")
        if key.factor in modules[key.module]:
            raise ConfigError(f"{path}: key {name!r} names {key.module} for a second time: two adapters in one file?")
        modules[key.module][key.factor] = tensor
        styles.add(key.style)
    return modules, styles


def _hint(key: str, base: BaseSpec | None) -> str:
    if not key.startswith("lora_unet_"):
        return "; is it a plain LoRA (no DoRA, LoHa, LoKr) for LTX-2?"
    return "; its module is not in the base" if base else "; give its base with --base to resolve underscores"


def _number(path: Path, module: str, alpha: Tensor) -> float:
    if alpha.numel() != 1:
        raise ConfigError(f"{path}: alpha of {module} has shape {tuple(alpha.shape)}; it must be one number")
    return float(alpha)


def _scale(path: Path, metadata: Mapping[str, str], alphas: Mapping[str, float], styles: set[str]) -> Scale:
    """The function that gives alpha / rank of a module.

    Sources: alpha tensors of the file, diffusers' metadata, or (only for peft-style keys) peft's config in the same
    folder.
    """
    if alphas:
        return lambda module, rank: alphas[module] / rank if module in alphas else 1.0
    if _DIFFUSERS in metadata:
        settings = _json(path, metadata[_DIFFUSERS])
        return _peft_scale({key.removeprefix("transformer."): value for key, value in settings.items()})
    config = path.with_name("adapter_config.json")
    if config.is_file() and any(style.startswith(PEFT) for style in styles):
        return _peft_scale(_json(config, config.read_text()))
    return lambda module, rank: 1.0


def _peft_scale(config: Mapping[str, Any]) -> Scale:
    """lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (arXiv 2312.03732), with peft's alpha_pattern."""

    def scale(module: str, rank: int) -> float:
        patterns = config.get("alpha_pattern") or {}
        matching = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
        alpha = next(matching, config.get("lora_alpha", rank))
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return scale


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: the LoRA settings are not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: the LoRA settings are not a JSON object")
    return settings


def _metadata(metadata: Mapping[str, str], factors: ReferenceFactors) -> dict[str, str]:
    """The metadata without scales, and with the reference factors as whole numbers."""
    new = {key: value for key, value in metadata.items() if not _SCALES.fullmatch(key)}
    musubi_factor = new.pop(
        _OTHER_DOWNSCALE, None
    )  # removed, because ComfyUI reads the first key that ends in our name
    if DOWNSCALE not in new and musubi_factor is not None:
        new[DOWNSCALE] = musubi_factor
    for key in (DOWNSCALE, TEMPORAL):
        if re.fullmatch(r"\d+\.0*", new.get(key, "")):
            new[key] = new[key].partition(".")[0]  # ComfyUI reads "2.0" as 2, ltx-pipelines as 1
    return with_factors(new, factors)


def with_factors(metadata: Mapping[str, str], factors: ReferenceFactors) -> dict[str, str]:
    """Metadata with the user's factors added. ConfigError if the reference factor is still unknown or not a number."""
    values = {DOWNSCALE: factors.downscale, TEMPORAL: factors.temporal}
    new = {**metadata, **{key: str(value) for key, value in values.items() if value is not None}}
    if not factors.reference:
        new |= {KIND: PLAIN, DOWNSCALE: new.get(DOWNSCALE, "1")}
    for finding in metadata_findings(new):
        raise ConfigError(finding)
    return new

"""Adapters of other programs, read into `Adapter`: alpha baked in, official names, factors as whole numbers.

Read: our own and official files, kohya-style (lora_down, lora_up, alpha), peft-style (with adapter_config.json beside
it), diffusers-style (`transformer.`, its module names, `lora_adapter_metadata`) and keys without a prefix.
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

from iclora_train.adapters import key_styles as names
from iclora_train.adapters.base_spec import FAMILY, BaseSpec, base_findings, weight_findings
from iclora_train.adapters.file import (
    DOWNSCALE,
    KIND,
    PLAIN,
    TEMPORAL,
    Adapter,
    metadata_findings,
    open_tensors,
    pair_findings,
    whole_findings,
)
from iclora_train.config import ConfigError

_DIFFUSERS = "lora_adapter_metadata"  # diffusers' LoraConfig as JSON, its keys prefixed `transformer.`
_SCALES = re.compile(rf"{_DIFFUSERS}|(.*[._])?((lora|network)_)?alpha")  # baked in, so they must not be applied again
_OTHER_DOWNSCALE = "ss_reference_downscale_factor"  # musubi-tuner's
Scale = Callable[[str, int], float]  # module, rank -> what B is multiplied with


@dataclass(frozen=True)
class ReferenceFactors:
    """What the user knows about an adapter whose metadata does not say it. reference=False: it takes no reference."""

    downscale: int | None = None
    temporal: int | None = None
    reference: bool = True


def import_adapter(
    path: Path, target: BaseSpec | None = None, factors: ReferenceFactors = ReferenceFactors()
) -> Adapter:
    """Read an adapter of any known style. Weights are fp32, audio modules are kept.

    target: the base it was made for; modules, shapes and a declared version are checked against it, and an undeclared
    version is taken from it. ConfigError names the file, the key and the remedy; a missing reference factor is an error
    unless `factors` gives it, or says that the adapter takes no reference (then it is 1).
    """
    tensors, metadata = open_tensors(path)
    sides, styles = _halves(path, tensors, target)
    alphas = {name: _number(path, name, pair.pop("alpha")) for name, pair in sides.items() if "alpha" in pair}
    for finding in (finding for name, pair in sides.items() for finding in pair_findings(name, pair)):
        raise ConfigError(f"{path}: {finding}")
    scale = _scale(path, metadata, alphas, styles)
    weights = {name: (p["A"].float(), p["B"].float() * scale(name, p["A"].shape[0])) for name, p in sides.items()}
    try:
        metadata = _metadata(metadata, factors)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    wrong = list(whole_findings(weights))
    if target is not None:
        metadata = metadata if FAMILY in metadata else {**metadata, **target.metadata}
        wrong += [*base_findings(metadata, target), *weight_findings(weights, target)]
    if wrong:
        raise ConfigError(f"{path}: {wrong[0]}")
    return Adapter(weights, metadata)


def _halves(
    path: Path, tensors: Mapping[str, Tensor], target: BaseSpec | None
) -> tuple[dict[str, dict[str, Tensor]], set[str]]:
    """Module -> side ("A", "B", "alpha") -> tensor, and the styles of the keys."""
    known = tuple(target.linears) if target is not None else ()
    sides: dict[str, dict[str, Tensor]] = defaultdict(dict)
    styles = set()
    for key, tensor in tensors.items():
        half = names.of_any(key, known)
        if half is None:
            raise ConfigError(f"{path}: key {key!r} is of no known adapter style{_hint(key, target)}")
        if half.side in sides[half.module]:
            raise ConfigError(f"{path}: key {key!r} names {half.module} for a second time: two adapters in a file?")
        sides[half.module][half.side] = tensor
        styles.add(half.style)
    return sides, styles


def _hint(key: str, target: BaseSpec | None) -> str:
    if not key.startswith("lora_unet_"):
        return "; is it a plain LoRA (no DoRA, LoHa, LoKr) for LTX-2?"
    return "; its module is not one of the base's" if target else "; give its base with --base to resolve underscores"


def _number(path: Path, module: str, alpha: Tensor) -> float:
    if alpha.numel() != 1:
        raise ConfigError(f"{path}: alpha of {module} has shape {tuple(alpha.shape)}; it must be one number")
    return float(alpha)


def _scale(path: Path, metadata: Mapping[str, str], alphas: Mapping[str, float], styles: set[str]) -> Scale:
    """alpha / rank as the file means it: by its tensors, by diffusers' metadata, or by peft's config beside the file,
    which belongs to peft-style keys only."""
    if alphas:
        return lambda module, rank: alphas[module] / rank if module in alphas else 1.0
    if _DIFFUSERS in metadata:
        written = _json(path, metadata[_DIFFUSERS])
        return _peft_scale({key.removeprefix("transformer."): value for key, value in written.items()})
    config = path.with_name("adapter_config.json")
    if config.is_file() and any(style.startswith(names.PEFT) for style in styles):
        return _peft_scale(_json(config, config.read_text()))
    return lambda module, rank: 1.0


def _peft_scale(config: Mapping[str, Any]) -> Scale:
    """lora_alpha / r, or / sqrt(r) with use_rslora (arXiv 2312.03732), with peft's patterns of exceptions."""

    def scale(module: str, rank: int) -> float:
        patterns = config.get("alpha_pattern") or {}
        fits = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
        alpha = next(fits, config.get("lora_alpha", rank))
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return scale


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: the LoRA settings are no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: the LoRA settings are not a JSON object")
    return found


def _metadata(metadata: Mapping[str, str], factors: ReferenceFactors) -> dict[str, str]:
    """The metadata to keep, with the factors as the contract wants them."""
    kept = {key: value for key, value in metadata.items() if not _SCALES.fullmatch(key)}
    other = kept.pop(_OTHER_DOWNSCALE, None)  # ComfyUI takes the first key that ends in our name
    if DOWNSCALE not in kept and other is not None:
        kept[DOWNSCALE] = other
    for key in (DOWNSCALE, TEMPORAL):
        if re.fullmatch(r"\d+\.0*", kept.get(key, "")):
            kept[key] = kept[key].partition(".")[0]  # "2.0", which ComfyUI reads as 2 and ltx-pipelines as 1
    return with_factors(kept, factors)


def with_factors(metadata: Mapping[str, str], factors: ReferenceFactors) -> dict[str, str]:
    """Metadata with what the user knows put in. ConfigError if the reference factor stays unknown or is no number."""
    given = {DOWNSCALE: factors.downscale, TEMPORAL: factors.temporal}
    known = {**metadata, **{key: str(value) for key, value in given.items() if value is not None}}
    if not factors.reference:
        known |= {KIND: PLAIN, DOWNSCALE: known.get(DOWNSCALE, "1")}
    for finding in metadata_findings(known):
        raise ConfigError(finding)
    return known

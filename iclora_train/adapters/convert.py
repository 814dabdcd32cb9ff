"""Import adapters of other programs.

The result has official module names, alpha multiplied into B, and reference factors as whole numbers.

Supported: our own and official files, kohya-style (lora_down, lora_up, alpha; also musubi-tuner's `lora_unet_model_`),
peft-style (with adapter_config.json in the same folder), diffusers-style (`transformer.`, its module names,
`lora_adapter_metadata`), ComfyUI's other key endings, keys without a prefix. Of a LoKr or a DoRA a plain LoRA
is made (`lokr`, `dora`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from iclora_train.adapters import dora
from iclora_train.adapters.alpha import DIFFUSERS, Scale, scale_of_modules
from iclora_train.adapters.base_spec import BaseSpec, base_findings, weight_findings
from iclora_train.adapters.file import (
    Adapter,
    adapter_findings,
    all_slot_findings,
    model_findings,
    module_findings,
    read_tensors,
    remedy_for,
)
from iclora_train.adapters.key_styles import LOKR, MAGNITUDE, PEFT, other_kind, parse_any_key
from iclora_train.adapters.lokr import NAMES, dimension, lokr_findings, to_lora
from iclora_train.adapters.low_rank import LowRank
from iclora_train.adapters.metadata import DOWNSCALE, FAMILY, KIND, LOW_RANK, PLAIN, TEMPORAL, metadata_findings
from iclora_train.adapters.official import completed, recognise, require_supported
from iclora_train.adapters.references import MORE, USE
from iclora_train.adapters.slots import KEY as SLOTS
from iclora_train.adapters.slots import width_findings
from iclora_train.config import ConfigError
from iclora_train.core.safetensors_header import shortened

_SCALES = re.compile(rf"{DIFFUSERS}|(.*[._])?((lora|network)_)?alpha")  # removed: alpha is multiplied into B


@dataclass(frozen=True)
class ReferenceFactors:
    """Reference factors from the user, for an adapter without them. reference=False: the adapter takes no reference."""

    downscale: int | None = None
    temporal: int | None = None
    reference: bool = True


def import_adapter(
    path: Path,
    base: BaseSpec | None = None,
    factors: ReferenceFactors = ReferenceFactors(),
    low_rank: LowRank | None = None,
    keep_slots: bool = True,
) -> Adapter:
    """Read an adapter of any supported style. Weights are fp32; audio modules are included.

    base: the base of the adapter. Modules, shapes and a declared version are checked against it; an undeclared version
    is set to the base's. Without it the modules of an adapter that declares no base must be those of the published
    LTX-2 models. ConfigError names the file, the key and the remedy. A missing reference factor is an error, unless
    `factors` gives it or says that the adapter takes no reference (then the factor is 1), or conf/official knows it.
    low_rank: the rank of the LoRA that is made of a LoKr or a DoRA, and where what it leaves out is noted; without it
    both are errors. keep_slots: False leaves out learned slots, as other programs do.
    """
    tensors, metadata = read_tensors(path)
    slots = tensors.pop(SLOTS, None)
    official = recognise(path, metadata)
    require_supported(path, official)
    modules, styles = _by_module(path, tensors, base, plain=low_rank is None)
    alphas, magnitudes = (
        {name: module.pop(key) for name, module in modules.items() if key in module} for key in ("alpha", MAGNITUDE)
    )
    for finding in (finding for name, module in modules.items() for finding in _module_findings(name, module)):
        raise ConfigError(f"{path}: {finding}")
    scaled = {name: alpha for name, alpha in alphas.items() if "A" in modules[name] or dimension(modules[name])}
    scale = scale_of_modules(path, metadata, scaled, styles, bool(modules) and magnitudes.keys() == modules.keys())
    weights = {name: _factors(name, module, scale, low_rank) for name, module in modules.items()}
    kept = {key: value for key, value in completed(metadata, official).items() if not _SCALES.fullmatch(key)}
    findings = [*adapter_findings(weights), *_dora_findings(modules, magnitudes)]
    if base is not None:
        kept = kept if FAMILY in kept else {**kept, **base.metadata}
        findings += [*base_findings(kept, base), *weight_findings(weights, base)]
    else:
        findings += model_findings(Adapter(weights, kept))
    if findings:
        raise ConfigError(f"{path}: {findings[0]}")
    try:
        for name, magnitude in magnitudes.items():
            assert low_rank is not None
            weights[name] = dora.to_lora(name, *weights[name], magnitude, low_rank)
        kept = with_factors(kept, factors)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if low_rank is not None and low_rank.total:
        ranks = max(a.shape[0] for a, _ in weights.values())
        kept |= {"rank": str(ranks), LOW_RANK: f"{low_rank.error:.1e}"}
    return Adapter(weights, kept, _checked_slots(path, slots, kept, base) if keep_slots else None)


def _checked_slots(
    path: Path, slots: Tensor | None, metadata: Mapping[str, str], base: BaseSpec | None
) -> Tensor | None:
    """The learned slots of a file in fp32. ConfigError if they do not fit its references or the base."""
    if slots is None:
        return None
    for finding in all_slot_findings(slots, metadata) or width_findings(slots, {} if base is None else base.linears):
        raise ConfigError(f"{path}: {finding}")
    return slots.float()


def _dora_findings(modules: Mapping[str, Mapping[str, Tensor]], magnitudes: Mapping[str, Tensor]) -> Iterator[str]:
    """Problems of the magnitudes of a DoRA."""
    for name, magnitude in magnitudes.items():
        module = modules[name]
        if "A" in module:
            yield from dora.magnitude_findings(name, magnitude, module["B"].shape[0], module["A"].shape[1])
        else:
            yield f"{name} has a magnitude (DoRA) without a LoRA; only magnitudes of a LoRA are read"


def _module_findings(name: str, module: Mapping[str, Tensor]) -> Iterator[str]:
    """Problems of the tensors of one module."""
    lokr = {key: tensor for key, tensor in module.items() if key in NAMES}
    if lokr and len(lokr) < len(module):
        yield f"{name} has factors of a LoRA and of a LoKr: two adapters in one file?"
    yield from lokr_findings(name, lokr) if lokr else module_findings(name, module)


def _factors(name: str, module: Mapping[str, Tensor], scale: Scale, low_rank: LowRank | None) -> tuple[Tensor, Tensor]:
    """A and B of one module in fp32, with its scale in B."""
    if "A" in module:
        return module["A"].float(), module["B"].float() * scale(name, module["A"].shape[0])
    assert low_rank is not None
    return to_lora(name, module, scale, low_rank)


def _by_module(
    path: Path, tensors: Mapping[str, Tensor], base: BaseSpec | None, plain: bool
) -> tuple[dict[str, dict[str, Tensor]], set[str]]:
    """Module -> factor ("A", "B", "alpha", "magnitude", such as "lokr_w1") -> tensor, and the styles of the keys.

    plain: whether keys of a LoKr or a DoRA are errors.
    """
    linears = tuple(base.linears) if base is not None else ()
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    styles = set()
    for name, tensor in tensors.items():
        key, kind = parse_any_key(name, linears), other_kind(name)
        if kind is not None and (key is None or plain):
            raise ConfigError(
                f"{path}: key {shortened(name)} is of another kind of adapter ({kind}); {remedy_for(kind)}"
            )
        if key is not None and kind == LOKR and PEFT in key.style:
            raise ConfigError(
                f"{path}: key {shortened(name)} is of a LoKr of peft, whose scale is in adapter_config.json, which is "
                "not read for a LoKr: export it with LyCORIS' keys and alpha"
            )
        if key is None:
            raise ConfigError(f"{path}: key {shortened(name)} has no supported adapter style: is it a LoRA?")
        if key.factor in modules[key.module]:
            raise ConfigError(
                f"{path}: key {shortened(name)} names {key.module} for a second time: two adapters in one file?"
            )
        modules[key.module][key.factor] = tensor
        styles.add(key.style)
    return modules, styles


def with_factors(metadata: Mapping[str, str], factors: ReferenceFactors) -> dict[str, str]:
    """Metadata with the user's factors added. ConfigError if the reference factor is still unknown or not a number."""
    values = {DOWNSCALE: factors.downscale, TEMPORAL: factors.temporal}
    new = {**metadata, **{key: str(value) for key, value in values.items() if value is not None}}
    if not factors.reference:
        new |= {KIND: PLAIN, DOWNSCALE: new.get(DOWNSCALE, "1")}
        new = {key: value for key, value in new.items() if key not in (MORE, USE)}
    if DOWNSCALE not in new:
        raise ConfigError(
            f"metadata lacks {DOWNSCALE}; other programs would take 1. Give --downscale 1 for an IC-LoRA whose "
            "reference had the clip's size, --downscale N for a smaller one, --no-reference for a plain LoRA"
        )
    for finding in metadata_findings(new):
        raise ConfigError(finding)
    return new

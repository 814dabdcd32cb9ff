"""Read, check and write the adapter file that ComfyUI, ltx-pipelines and diffusers load.

Format: `diffusion_model.<module>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank), with alpha / rank
multiplied into B and no alpha tensors. All metadata are strings; `reference_downscale_factor` is a whole number.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from iclora_train.adapters.alpha import scale_of_modules
from iclora_train.adapters.key_styles import DORA, LOKR, PREFIX, is_audio, other_kind, parse_any_key, parse_our_key
from iclora_train.adapters.ltx2_modules import foreign_module, foreign_size
from iclora_train.adapters.metadata import (
    DOWNSCALE,
    FAMILY,
    KIND,
    PLAIN,
    TEMPORAL,
    factor,
    metadata_findings,
    reference_frame,
    reference_layouts,
)
from iclora_train.adapters.references import ReferenceLayout
from iclora_train.adapters.slots import KEY as SLOTS
from iclora_train.adapters.slots import slot_findings
from iclora_train.config import ConfigError
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.safetensors_header import shortened
from iclora_train.ltx2.weights.safetensors_header import read_header

CONVERT = "`python -m iclora_train.adapters convert` writes it in the format that all three load"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_REASONS = {  # part of a key of another style -> the effect in the three programs that load adapters
    ".alpha": "alpha is not baked into lora_B: ltx-pipelines ignores it, diffusers refuses the file",
    "lora_unet_": "a kohya-style key, which only ComfyUI loads",
    ".default.": "peft's adapter name is in the key: diffusers would load an untrained adapter",
    "lora_down": "only ComfyUI loads lora_down and lora_up",
    "lora_up": "only ComfyUI loads lora_down and lora_up",
    "base_model.model.": "a peft-style key, which none of the programs loads",
    "transformer.": "a diffusers-style key, which ComfyUI and ltx-pipelines ignore without a message",
}
_NO_PREFIX = f"the prefix {PREFIX} is missing"


@dataclass(frozen=True)
class Adapter:
    """The content of an adapter file.

    weights: module name -> (A (rank,in), B (out,rank)). slots: a learned vector for each reference (n,D), see `slots`.
    """

    weights: dict[str, tuple[Tensor, Tensor]]
    metadata: dict[str, str] = field(default_factory=dict)
    slots: Tensor | None = None

    @property
    def downscale(self) -> int:
        """Factor by which the reference is smaller than the target, in height and width."""
        return factor(self.metadata, DOWNSCALE)

    @property
    def temporal_scale(self) -> int:
        """Factor by which the reference has fewer frames per second than the target."""
        return factor(self.metadata, TEMPORAL)

    @property
    def reference_frame(self) -> int | tuple[int, int] | None:
        """The frame of the video at which a reference of one frame stands; None if the reference has all frames."""
        return reference_frame(self.metadata)

    @property
    def references(self) -> list[ReferenceLayout]:
        """The layout of each reference, in order; none for a plain LoRA. The first has the three values above."""
        return reference_layouts(self.metadata)

    @property
    def in_context(self) -> bool:
        """Whether the adapter takes a reference. A plain LoRA (for a style or an effect) does not."""
        return self.metadata.get(KIND) != PLAIN

    @property
    def audio(self) -> list[str]:
        """Modules outside the video stream. This program does not use them, but writes them for other programs."""
        return [name for name in self.weights if is_audio(name)]

    @property
    def video(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The weights of the video stream."""
        return {name: factors for name, factors in self.weights.items() if not is_audio(name)}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file. ConfigError if it is not one."""
    header = read_header(path)
    return {key: stored.read() for key, stored in header.tensors.items()}, header.metadata


def read(path: Path) -> Adapter:
    """Read an adapter file. ConfigError names the file, the key, the problem and the remedy."""
    adapter, findings = inspect(path)
    if findings:
        more = f" (and {len(findings) - 1} more findings, see `check`)" if len(findings) > 1 else ""
        raise ConfigError(f"{path}: {findings[0]}{more}")
    return adapter


def inspect(path: Path) -> tuple[Adapter, list[str]]:
    """The valid modules of a file, and all findings about the rest.

    ConfigError if the file is not a safetensors file.
    """
    tensors, metadata = read_tensors(path)
    slots = tensors.pop(SLOTS, None)
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unreadable: dict[str, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        key = parse_our_key(name)
        if key is None:
            unreadable[_reason(name)].append(name)
        else:
            modules[key.module][key.factor] = tensor
    other_kinds_first = sorted(unreadable.items(), key=lambda item: other_kind(item[1][0]) is None)
    findings = [f"key {shortened(keys[0])}{_similar(keys)}: {reason}" for reason, keys in other_kinds_first]
    if modules and any(not key.startswith(PREFIX) for keys in unreadable.values() for key in keys):
        findings.append(f"keys with and without the prefix {PREFIX} are mixed: loaders would drop some of them")
    by_module = {name: list(module_findings(name, factors)) for name, factors in modules.items()}
    findings += [finding for module in by_module.values() for finding in module]
    weights = {name: (factors["A"], factors["B"]) for name, factors in modules.items() if not by_module[name]}
    findings += adapter_findings(weights) if not findings else []
    findings += _scale_findings(path, metadata, weights)
    findings += metadata_findings(metadata)
    of_slots = [] if slots is None else all_slot_findings(slots, metadata)
    return Adapter(weights, metadata, None if of_slots else slots), findings + of_slots


def all_slot_findings(slots: Tensor, metadata: Mapping[str, str]) -> list[str]:
    """Problems of the learned slots: of their numbers or, if these are valid, of their shape."""
    of_references = [] if metadata_findings(metadata) else slot_findings(slots, metadata)
    return list(tensor_findings(SLOTS, slots)) or list(of_references)


def _scale_findings(
    path: Path, metadata: Mapping[str, str], weights: Mapping[str, tuple[Tensor, Tensor]]
) -> Iterator[str]:
    """A finding if the metadata give a scale other than 1: programs that do not read it use the adapter at another
    strength."""
    try:
        scale = scale_of_modules(path, metadata, {}, set())
    except ConfigError as error:
        yield str(error).removeprefix(f"{path}: ")
        return
    scales = {name: scale(name, a.shape[0]) for name, (a, _) in weights.items()}
    name = next((name for name, value in scales.items() if value != 1), None)
    if name is not None:
        yield f"metadata give {name} the scale {scales[name]:g}, which some programs apply and others do not; {CONVERT}"


def _reason(key: str) -> str:
    """Why a key does not have our format, and the remedy."""
    kind = other_kind(key)
    if kind is not None:
        return f"is of another kind of adapter ({kind}); {remedy_for(kind)}"
    mark = next((mark for mark in _REASONS if mark in key), None)
    if mark is None and parse_any_key(key) is None:
        return f"is not {PREFIX}<module>.lora_A|lora_B.weight"
    return f"{_NO_PREFIX if mark is None else _REASONS[mark]}; {CONVERT}"


def remedy_for(kind: str) -> str:
    """What to do with an adapter that is not a plain LoRA."""
    if kind == LOKR:
        return "`python -m iclora_train.adapters convert FILE OUT --rank N` makes a plain LoRA of it"
    if kind == DORA:
        return "`python -m iclora_train.adapters convert FILE OUT --base BASE --rank N` makes a plain LoRA of it"
    return (
        "only plain LoRA can be read: merge it into the base with the program that trained it, then `extract` an "
        "adapter from the difference"
    )


def _similar(keys: list[str]) -> str:
    return f" and {len(keys) - 1} like it" if len(keys) > 1 else ""


def tensor_findings(key: str, tensor: Tensor) -> Iterator[str]:
    """Problems of the numbers of one tensor."""
    if tensor.dtype not in FLOATS:
        yield f"{key} is stored as {tensor.dtype}; save it as float32, bfloat16 or float16"
    elif not tensor.isfinite().all():
        yield f"{key} holds NaN or infinity: the training diverged; use an earlier checkpoint"


def module_findings(name: str, factors: Mapping[str, Tensor]) -> Iterator[str]:
    """Problems of the LoRA factors of one module."""
    for side, tensor in factors.items():
        yield from tensor_findings(f"{name}.lora_{side}.weight", tensor)
    if not factors:
        yield f"{name} has alpha and no weights; export it again"
    elif factors.keys() != {"A", "B"}:
        present = next(iter(factors))
        yield (
            f"{name} has lora_{present} without lora_{'B' if present == 'A' else 'A'}: "
            "loaders would fill it with noise or drop the module; export it again"
        )
    elif (
        any(tensor.ndim != 2 or not tensor.numel() for tensor in factors.values())
        or factors["A"].shape[0] != factors["B"].shape[1]
    ):
        yield (
            f"{name} has A {tuple(factors['A'].shape)} and B {tuple(factors['B'].shape)}, which do not multiply; "
            "they must be (rank, in) and (out, rank)"
        )


def model_findings(adapter: Adapter) -> Iterator[str]:
    """A module that LTX-2 does not have, and for an adapter that declares no base, sizes that LTX-2 does not have."""
    finding = foreign_module(adapter.weights)
    if finding is None and FAMILY not in adapter.metadata:
        finding = foreign_size({name: a.shape[1] for name, (a, _) in adapter.weights.items()})
    if finding is not None:
        yield f"{finding}. If it is for a model of your own, give that with --base"


def adapter_findings(weights: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[str]:
    """Problems of all modules together."""
    if not weights:
        yield "holds no adapter weights"
    elif not any(b.any() for _, b in weights.values()):
        yield "every lora_B is zero; the adapter was never trained"
    else:
        infinite = next((name for name, (_, b) in weights.items() if not b.isfinite().all()), None)
        if infinite is not None:
            yield f"{infinite}: alpha makes lora_B larger than fp32 can hold; export the adapter again"


def save(path: Path, adapter: Adapter, dtype: torch.dtype = torch.float32) -> None:
    """Write the file atomically, then read it back and compare the tensors. ConfigError if a value is not finite."""
    tensors = {}
    for name, (a, b) in sorted(adapter.weights.items()):
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.to(dtype).cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.to(dtype).cpu().contiguous()
    if adapter.slots is not None:
        tensors[SLOTS] = adapter.slots.to(dtype).cpu().contiguous()
    infinite = next((key for key, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if infinite is not None:
        raise ConfigError(
            f"{path} is not written: {infinite} would be infinite or NaN in {dtype}; use smaller strengths"
        )
    with write_atomic(path) as file:
        file.write(_sorted_header(serialize(tensors, {"format": "pt", **adapter.metadata})))
    written = read(path)
    for name, (a, b) in written.weights.items():
        assert torch.equal(a, tensors[f"{PREFIX}{name}.lora_A.weight"]), name
        assert torch.equal(b, tensors[f"{PREFIX}{name}.lora_B.weight"]), name
    assert adapter.slots is None or (written.slots is not None and torch.equal(written.slots, tensors[SLOTS]))


def _sorted_header(data: bytes) -> bytes:
    """The same safetensors file with a sorted header: the library's order of metadata differs from call to call."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors begin on a multiple of 8 bytes
    return len(header).to_bytes(8, "little") + header + data[8 + size :]

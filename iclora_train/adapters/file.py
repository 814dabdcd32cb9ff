"""The adapter file that ComfyUI, ltx-pipelines and diffusers all load: `Adapter`, `read`, `save`, and what is wrong
with a file that is not one.

Contract: `diffusion_model.<module>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank), alpha / rank baked into
B, no alpha tensors, metadata all strings with `reference_downscale_factor` as a whole number.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from iclora_train.adapters import key_styles as names
from iclora_train.adapters.key_styles import PREFIX
from iclora_train.config import ConfigError
from iclora_train.core.atomic_files import write_atomic

DOWNSCALE, TEMPORAL = "reference_downscale_factor", "reference_temporal_scale_factor"
KIND, PLAIN = "adapter_kind", "lora"  # marks an adapter that takes no reference
CONVERT = "`python -m iclora_train.adapters convert` writes it as it should be"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_WHY = {  # mark of a key of another style -> what such a key means to the three programs that load adapters
    ".alpha": "alpha is not baked into lora_B: ltx-pipelines ignores it, diffusers refuses the file",
    "lora_unet_": "a kohya-style key, which only ComfyUI knows",
    ".default.": "peft's adapter name is in the key: diffusers would load an untrained adapter",
    "lora_down": "only ComfyUI knows lora_down and lora_up",
    "lora_up": "only ComfyUI knows lora_down and lora_up",
    "base_model.model.": "a peft-style key, which none of the programs loads",
    "transformer.": "a diffusers-style key, which ComfyUI and ltx-pipelines pass over in silence",
}
_NO_PREFIX = f"the prefix {PREFIX} is missing"


@dataclass(frozen=True)
class Adapter:
    """An adapter as in the file: module name -> (A (rank,in), B (out,rank)), and the metadata."""

    weights: dict[str, tuple[Tensor, Tensor]]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def downscale(self) -> int:
        """How many times smaller the reference is than the target."""
        return int(self.metadata[DOWNSCALE])

    @property
    def temporal_scale(self) -> int:
        """How many times fewer frames per second the reference has."""
        return int(self.metadata.get(TEMPORAL, "1"))

    @property
    def in_context(self) -> bool:
        """Whether it takes a reference; a plain (style, effect) LoRA does not."""
        return self.metadata.get(KIND) != PLAIN

    @property
    def audio(self) -> list[str]:
        """Modules outside the video stream: kept for other programs, not used by this one."""
        return [name for name in self.weights if names.is_audio(name)]

    @property
    def video(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The weights of the video stream."""
        return {name: halves for name, halves in self.weights.items() if not names.is_audio(name)}


def open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file. ConfigError if it is none."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            return {key: opened.get_tensor(key) for key in opened.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is not a readable safetensors file: {error}") from error


def read(path: Path) -> Adapter:
    """Read an adapter file. ConfigError names the file, the key that is wrong, why, and what helps."""
    adapter, wrong = examine(path)
    if wrong:
        more = f" (and {len(wrong) - 1} more findings, see `check`)" if len(wrong) > 1 else ""
        raise ConfigError(f"{path}: {wrong[0]}{more}")
    return adapter


def examine(path: Path) -> tuple[Adapter, list[str]]:
    """The modules of a file that are as they should be, and all that is wrong with the rest. ConfigError for files that
    are no safetensors."""
    tensors, metadata = open_tensors(path)
    sides: dict[str, dict[str, Tensor]] = defaultdict(dict)
    strange: dict[str, list[str]] = defaultdict(list)
    for key, tensor in tensors.items():
        half = names.of_contract(key)
        if half is None:
            strange[_why(key)].append(key)
        else:
            sides[half.module][half.side] = tensor
    wrong = [f"key {keys[0]!r}{_others(keys)}: {why}" for why, keys in strange.items()]
    if sides and any(not key.startswith(PREFIX) for keys in strange.values() for key in keys):
        wrong.append(f"keys with and without the prefix {PREFIX} are mixed: loaders would drop some of them")
    of_pairs = {name: list(pair_findings(name, pair)) for name, pair in sides.items()}
    wrong += [finding for findings in of_pairs.values() for finding in findings]
    weights = {name: (pair["A"], pair["B"]) for name, pair in sides.items() if not of_pairs[name]}
    wrong += whole_findings(weights) if not wrong else []
    return Adapter(weights, metadata), wrong + metadata_findings(metadata)


def _why(key: str) -> str:
    """Why a key is not of our format, and what helps."""
    mark = next((mark for mark in _WHY if mark in key), None)
    if mark is None and names.of_any(key) is None:
        return f"is not {PREFIX}<module>.lora_A|lora_B.weight"
    return f"{_NO_PREFIX if mark is None else _WHY[mark]}; {CONVERT}"


def _others(keys: list[str]) -> str:
    return f" and {len(keys) - 1} like it" if len(keys) > 1 else ""


def pair_findings(name: str, pair: Mapping[str, Tensor]) -> Iterator[str]:
    """What is wrong with the halves of one module."""
    for side, tensor in pair.items():
        if tensor.dtype not in _FLOATS:
            yield f"{name}.lora_{side}.weight is stored as {tensor.dtype}; save it as float32, bfloat16 or float16"
        elif not tensor.isfinite().all():
            yield f"{name}.lora_{side}.weight holds NaN or infinity; the training diverged, use an earlier checkpoint"
    if not pair:
        yield f"{name} has alpha and no weights; export it again"
    elif pair.keys() != {"A", "B"}:
        held = next(iter(pair))
        yield (
            f"{name} has lora_{held} without the other half, lora_{'B' if held == 'A' else 'A'}: "
            "loaders would fill it with noise or drop the module; export it again"
        )
    elif any(tensor.ndim != 2 for tensor in pair.values()) or pair["A"].shape[0] != pair["B"].shape[1]:
        yield (
            f"{name} has A {tuple(pair['A'].shape)} and B {tuple(pair['B'].shape)}, which do not multiply; "
            "they must be (rank, in) and (out, rank)"
        )


def whole_findings(weights: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[str]:
    """What is wrong with all modules together."""
    if not weights:
        yield "holds no adapter weights"
    elif not any(b.any() for _, b in weights.values()):
        yield "every lora_B is zero; the adapter was never trained"


def metadata_findings(metadata: Mapping[str, str]) -> list[str]:
    """What is wrong with the factors in the metadata."""
    wrong = []
    if DOWNSCALE not in metadata:
        wrong.append(f"metadata lacks {DOWNSCALE}; loaders would silently take 1. `convert --downscale N` adds it")
    for key in (DOWNSCALE, TEMPORAL):
        value = metadata.get(key, "1")
        if not value.isdecimal() or int(value) < 1:
            wrong.append(
                f"metadata {key}={value!r} must be a whole number of at least 1: programs read anything else in "
                "different ways; `convert` with --downscale or --temporal-scale sets it"
            )
    return wrong


def save(path: Path, adapter: Adapter, dtype: torch.dtype = torch.float32) -> None:
    """Write the file (whole or not at all) and read it back: what was written is what was meant."""
    tensors = {}
    for name, (a, b) in sorted(adapter.weights.items()):
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.to(dtype).cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.to(dtype).cpu().contiguous()
    with write_atomic(path) as file:
        file.write(_sorted_header(serialize(tensors, {"format": "pt", **adapter.metadata})))
    back = read(path)
    for name, (a, b) in back.weights.items():
        assert torch.equal(a, tensors[f"{PREFIX}{name}.lora_A.weight"]), name
        assert torch.equal(b, tensors[f"{PREFIX}{name}.lora_B.weight"]), name


def _sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its header in order: the library writes metadata in another order each time."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors begin on a multiple of 8 bytes
    return len(header).to_bytes(8, "little") + header + data[8 + size :]

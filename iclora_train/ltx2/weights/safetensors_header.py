"""Safetensors files by their headers: what tensors they hold and where, without reading any; then one by one.

Format: 8 bytes length of the header, the header (JSON: dtype, shape and byte range of each tensor, and metadata of
strings), then the bytes of the tensors (huggingface/safetensors).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.ltx2.weights import fp8_scales as fp8

DTYPES = {  # of those that we can read exactly
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
}
_SAMPLE = 4096  # bytes hashed at the start and at the end of each tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk: its key in a file, dtype as safetensors names it, shape, and its bytes' place in the file."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> Tensor:
        """The tensor in memory of its own. (safetensors maps the whole file as private memory, which the system refuses
        for a file larger than the machine's memory.)"""
        values = torch.empty(self.end - self.start, dtype=torch.uint8)
        left = values.numpy().data
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.start)
            while left:
                count = stream.readinto(left)
                if not count:
                    raise ConfigError(f"{self.file} ends within {self.key}; fetch it again")
                left = left[count:]
        return values.view(DTYPES[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says about itself."""

    file: Path
    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]


def read_header(file: Path) -> Header:
    """Read a file's header. ConfigError if it is no safetensors file or if its end is missing."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            text = stream.read(length) if length <= size - 8 else b""
        parsed = json.loads(text)
        metadata = parsed.pop("__metadata__", None) or {}
        start = 8 + length
        tensors = {
            key: StoredTensor(
                file, key, of["dtype"], tuple(of["shape"]), *(start + place for place in of["data_offsets"])
            )
            for key, of in parsed.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is not a readable safetensors file ({error}); fetch it again") from error
    for stored in tensors.values():
        if (
            stored.dtype in DTYPES
            and math.prod(stored.shape) * DTYPES[stored.dtype].itemsize != stored.end - stored.start
        ):
            raise ConfigError(f"{file}: the size of {stored.key} contradicts its shape; fetch it again")
    end = max((stored.end for stored in tensors.values()), default=start)
    if end > size:
        raise ConfigError(f"{file} is truncated: it has {size} of {end} bytes; fetch it again")
    return Header(file, metadata, tensors)


Shapes = Mapping[str, tuple[int, ...]]


def mismatches(has: Shapes, wanted: Shapes) -> list[str]:
    """What keeps tensors of these names and shapes from filling the wanted ones: missing, unknown, misshapen."""
    wrong = [f"missing {name}" for name in wanted if name not in has]
    wrong += [f"unknown {name}" for name in has if name not in wanted]
    both = sorted(wanted.keys() & has.keys())
    wrong += [f"{name} is {tuple(has[name])}, not {tuple(wanted[name])}" for name in both if has[name] != wanted[name]]
    return wrong


class Component:
    """One part of a checkpoint: its tensors under our names, and its config.

    config: the whole official config, or config.json of a diffusers part (of a transformer: converted to official).
    """

    def __init__(
        self, name: str, config: dict[str, Any], stored: dict[str, StoredTensor], source: Path, diffusers: bool = False
    ) -> None:
        self.name, self.config, self.source, self.diffusers = name, config, source, diffusers
        self.stored = {key: at for key, at in stored.items() if not fp8.is_scale(key)}
        self.scales = {key: stored[fp8.scale_name(key)] for key in self.stored if fp8.scale_name(key) in stored}
        weights = {key.rpartition(".")[0] for key in self.stored}
        self.orphan_scales = sorted(  # scales of nothing
            key for key in stored.keys() - self.stored.keys() if key.rpartition(".")[0] not in weights
        )

    def merged_with(self, other: Component) -> Component:
        """This part, and what only `other` holds of it (LTX-2.5's connectors lie in two files)."""
        config = self.config | other.config
        return Component(self.name, config, other.with_scales | self.with_scales, self.source, self.diffusers)

    @property
    def with_scales(self) -> dict[str, StoredTensor]:
        """Tensors and scales."""
        return self.stored | {fp8.scale_name(key): at for key, at in self.scales.items()}

    @cached_property
    def files(self) -> list[Path]:
        """The files it lies in."""
        return sorted({at.file for at in self.stored.values()})

    def read(self, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, one at a time in the order of the disk; fp8 weights come times their scale, in fp32.

        ConfigError, before anything is read, unless every tensor is stored in a way that can be read exactly.
        """
        self.require_readable()
        for name in self.in_disk_order():
            yield name, self.tensor(name, device)

    def in_disk_order(self) -> list[str]:
        """Names of the tensors in the order of the disk."""
        return sorted(self.stored, key=lambda name: (self.stored[name].file, self.stored[name].start))

    def tensor(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """One tensor, as `read` gives it; KeyError if there is none of that name."""
        at = self.stored[name]
        tensor = at.read().to(device)
        scaled = name in self.scales and at.dtype in fp8.FP8
        return fp8.dequantize(tensor, self.scales[name].read()) if scaled else tensor

    def quantized(self, name: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor] | None:
        """A tensor's fp8 values and their scalar scale as they are stored; None if it is not stored in fp8."""
        at = self.stored[name]
        if at.dtype not in fp8.FP8:
            return None
        return at.read().to(device), self.scales[name].read().to(device)

    def require_readable(self) -> None:
        """ConfigError unless every tensor is stored in a way that can be read exactly."""
        dtypes = {name: at.dtype for name, at in self.stored.items()}
        fp8.require_scales(str(self.source), dtypes, {name: at.shape for name, at in self.scales.items()})

    def fingerprint(self) -> str:
        """Hash of names, dtypes, shapes and sampled bytes of the tensors: the same in whatever files they lie."""
        digest = hashlib.sha256()
        for name, at in sorted(self.stored.items()):
            digest.update(f"{name} {at.dtype} {at.shape}\n".encode())
            with at.file.open("rb") as stream:
                for start in (at.start, max(at.start, at.end - _SAMPLE)):
                    stream.seek(start)
                    digest.update(stream.read(min(_SAMPLE, at.end - at.start)))
        return digest.hexdigest()


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of a part as a mapping that reads a tensor when it is asked for."""

    def __init__(self, part: Component) -> None:
        part.require_readable()
        self.part = part

    def __getitem__(self, name: str) -> Tensor:
        return self.part.tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.part.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.part.stored)

    def __len__(self) -> int:
        return len(self.part.stored)

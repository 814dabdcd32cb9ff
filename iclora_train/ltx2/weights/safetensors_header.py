"""Safetensors files read by their headers: names, dtypes, shapes and byte ranges first, tensors one by one later.

`core.safetensors_header` has the format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.core.safetensors_header import LARGEST_HEADER, parse_header
from iclora_train.ltx2.weights import fp8_scales

DTYPES = {  # the dtypes that can be read exactly
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
_OTHER_FILES = {  # first bytes -> what the file is; read only if they cannot be the length of a header
    b"PK\x03\x04": "it is a pickle, which is never read",
    b"\x80\x02": "it is a pickle, which is never read",
    b"\x80\x04": "it is a pickle, which is never read",
    b"version ": "it is a Git LFS pointer and not the file: run `git lfs pull`",
    b"<": "it is a web page: the download needs a login or another link",
}
_SAMPLE = 4096  # bytes hashed at the start and at the end of each tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk: its file and key, dtype as safetensors names it, shape, and byte range in the file."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> Tensor:
        """The tensor in newly allocated memory. (The safetensors library maps the whole file as private memory, which
        the system refuses for a file larger than the machine's memory.)"""
        if self.dtype not in DTYPES:
            raise ConfigError(f"{self.file}: {self.key} is stored as {self.dtype}, which this program does not read")
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
    """The header of a file."""

    file: Path
    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]


def read_header(file: Path) -> Header:
    """Read a file's header. ConfigError if the file is not a safetensors file or if its end is missing."""
    try:
        if not file.is_file():  # a pipe would block
            raise FileNotFoundError("it does not exist" if not file.exists() else "it is not a file")
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if length > min(size - 8, LARGEST_HEADER):
                other = (reason for first, reason in _OTHER_FILES.items() if start.startswith(first))
                raise ValueError(next(other, f"a header of {length} bytes"))
            metadata, entries = parse_header(stream.read(length))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is not a readable safetensors file ({error}); fetch it again") from error
    data = 8 + length
    tensors = {
        key: StoredTensor(file, key, entry.dtype, entry.shape, data + entry.start, data + entry.end)
        for key, entry in entries.items()
    }
    end = max((stored.end for stored in tensors.values()), default=data)
    if end > size:
        raise ConfigError(f"{file} is truncated: it has {size} of {end} bytes; fetch it again")
    return Header(file, metadata, tensors)


class Component:
    """One component of a checkpoint (transformer, vae, ...): its tensors under the names used here, and its config.

    config: the whole official config, or config.json of a diffusers component (a transformer's is converted to the
    official form). source: the file or folder that messages name.
    """

    def __init__(
        self, name: str, config: dict[str, Any], stored: dict[str, StoredTensor], source: Path, diffusers: bool = False
    ) -> None:
        self.name, self.config, self.source, self.diffusers = name, config, source, diffusers
        self.stored = {key: tensor for key, tensor in stored.items() if not fp8_scales.is_scale(key)}
        scale_names = {key: fp8_scales.scale_name(key) for key in self.stored}
        self.scales = {key: stored[scale] for key, scale in scale_names.items() if scale in stored}
        modules = {key.rpartition(".")[0] for key in self.stored}
        self.orphan_scales = {  # scales without a weight
            key: stored[key] for key in stored.keys() - self.stored.keys() if key.rpartition(".")[0] not in modules
        }

    def merged_with(self, other: Component) -> Component:
        """This component, plus the tensors and config fields of `other` (LTX-2.5's connectors are in two files).

        If both have a tensor, it is this component's; if both have a config field, it is `other`'s.
        """
        config = self.config | other.config
        return Component(self.name, config, other.with_scales | self.with_scales, self.source, self.diffusers)

    @property
    def with_scales(self) -> dict[str, StoredTensor]:
        """Tensors and their scales, and scales without a weight."""
        scales = {fp8_scales.scale_name(key): scale for key, scale in self.scales.items()}
        return self.stored | scales | self.orphan_scales

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors, and of scales without a weight."""
        return {name: stored.shape for name, stored in (self.stored | self.orphan_scales).items()}

    @cached_property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted({stored.file for stored in self.stored.values()})

    @property
    def where(self) -> str:
        """The first three files, for messages."""
        return ", ".join(str(file) for file in self.files[:3]) or str(self.source)

    def read(self, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, one at a time in the order on disk. An fp8 weight is multiplied by its scale, in fp32.

        ConfigError as in `require_readable`, before any tensor is read.
        """
        self.require_readable()
        for name in self.in_disk_order():
            yield name, self.tensor(name, device)

    def in_disk_order(self) -> list[str]:
        """Names of the tensors in the order on disk."""
        return sorted(self.stored, key=lambda name: (self.stored[name].file, self.stored[name].start))

    def tensor(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """One tensor, as `read` yields it. KeyError if no tensor has this name."""
        stored = self.stored[name]
        tensor = stored.read().to(device)
        scaled = name in self.scales and stored.dtype in fp8_scales.FP8
        return fp8_scales.dequantize(tensor, self.scales[name].read()) if scaled else tensor

    def quantized(self, name: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor] | None:
        """fp8 values and scalar scale of a tensor as they are stored; None if the tensor is not stored in fp8."""
        stored = self.stored[name]
        if stored.dtype not in fp8_scales.FP8:
            return None
        return stored.read().to(device), self.scales[name].read().to(device)

    def require_readable(self) -> None:
        """ConfigError unless every tensor is stored in a dtype that can be read exactly, fp8 with its scale."""
        dtypes = {name: stored.dtype for name, stored in self.stored.items()}
        scales = {name: stored.shape for name, stored in self.scales.items()}
        fp8_scales.require_scales(str(self.source), dtypes, scales)

    def fingerprint(self) -> str:
        """Hash of names, dtypes, shapes and sampled bytes of the tensors. It does not depend on how the tensors are
        distributed over files."""
        digest = hashlib.sha256()
        for name, stored in sorted(self.stored.items()):
            digest.update(f"{name} {stored.dtype} {stored.shape}\n".encode())
            with stored.file.open("rb") as stream:
                for start in (stored.start, max(stored.start, stored.end - _SAMPLE)):
                    stream.seek(start)
                    digest.update(stream.read(min(_SAMPLE, stored.end - stored.start)))
        return digest.hexdigest()


class LazyTensors(Mapping[str, Tensor]):
    """A component's tensors as a mapping that reads a tensor from disk at each access."""

    def __init__(self, component: Component) -> None:
        component.require_readable()
        self.component = component

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors' shapes, without reading them."""
        return self.component.shapes

    def __getitem__(self, name: str) -> Tensor:
        return self.component.tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.component.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.component.stored)

    def __len__(self) -> int:
        return len(self.component.stored)

"""Write safetensors files of random tensors in small pieces, so that a file of 40 GB needs little memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from iclora_train.core.atomic_files import write_atomic
from scripts.synthetic.layout import Spec

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
PIECE = 1 << 24  # values generated at a time
FP8_MAX = 448.0  # largest finite value of float8_e4m3fn
SIGMAS = 6.0  # the largest fp8 value in standard deviations of a weight


def nbytes(spec: Spec) -> int:
    """Bytes of a tensor in the file."""
    return math.prod(spec.shape) * DTYPES[spec.dtype].itemsize


def to_fp8(specs: list[Spec], in_bf16: str = ".transformer_blocks.0.") -> list[Spec]:
    """The specs of an official fp8 file: the linears of all blocks but `in_bf16` in fp8, each with its two scales.

    `weight_scale` turns the stored values into weights; `input_scale` belongs to the activations. (The published files
    leave five blocks in bf16.)
    """
    converted = []
    for spec in specs:
        is_linear = ".transformer_blocks." in spec.name and spec.name.endswith(".weight") and len(spec.shape) == 2
        if not is_linear or in_bf16 in spec.name:
            converted.append(spec)
            continue
        converted.append(replace(spec, dtype="F8_E4M3"))
        converted.append(Spec(f"{spec.name}_scale", (), 0.0, scale_of(spec), "F32"))
        converted.append(Spec(spec.name.removesuffix("weight") + "input_scale", (), 0.0, 1.0, "F32"))
    return converted


def scale_of(spec: Spec) -> float:
    """`weight_scale` for a weight with this standard deviation."""
    return SIGMAS * spec.std / FP8_MAX


def values(spec: Spec, seed: int, device: str) -> Iterator[Tensor]:
    """The tensor's values, flattened, in pieces. A tensor has the same values in every layout."""
    key = hashlib.sha256(f"{seed} {spec.origin}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(key[:7], "little"))
    left = math.prod(spec.shape)
    while left:
        count = min(left, PIECE)
        piece = torch.randn(count, generator=generator, device=device) * spec.std + spec.mean
        if spec.dtype == "F8_E4M3":
            piece = (piece / scale_of(spec)).clamp(-FP8_MAX, FP8_MAX)
        yield piece.to(DTYPES[spec.dtype])
        left -= count


def write(path: Path, specs: list[Spec], metadata: dict[str, str], seed: int = 0, device: str = "cpu") -> None:
    """Write one file: the header, then the tensors, largest element size first so that each is aligned."""
    ordered = sorted(specs, key=lambda spec: (-DTYPES[spec.dtype].itemsize, spec.name))
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for spec in ordered:
        assert spec.name not in header, f"{spec.name} occurs twice"
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + nbytes(spec)],
        }
        offset += nbytes(spec)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with write_atomic(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for spec in ordered:
            _write_tensor(file, spec, seed, device)


def _write_tensor(file: IO[bytes], spec: Spec, seed: int, device: str) -> None:
    for piece in values(spec, seed, device):
        file.write(piece.cpu().view(torch.uint8).numpy().data)

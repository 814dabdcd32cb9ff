"""Adapters merged into the files of a base, tensor by tensor: a 46 GB file needs the memory of its largest linear.

The new file has the header of the old one: the same keys, dtypes, shapes and metadata. Linears stored in fp8 are
multiplied by their scale, changed, and stored with a fresh one; all that no adapter changes is copied byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from iclora_train.adapters.algebra import WeightedAdapters, combined_metadata, delta, modules, of_module
from iclora_train.adapters.base_spec import BaseSpec, base_findings, model_part, open_checkpoint, weight_findings
from iclora_train.config import ConfigError, require
from iclora_train.core.atomic_files import write_atomic
from iclora_train.ltx2.weights import fp8_scales as fp8
from iclora_train.ltx2.weights.key_names import MODEL_PREFIX
from iclora_train.ltx2.weights.safetensors_header import DTYPES, Component, StoredTensor, read_header

_CHUNK = 16 << 20  # bytes copied at a time
Advance = Callable[[int, int], None]  # bytes done, bytes in all


def merge(checkpoint: str, adapters: WeightedAdapters, out: Path, advance: Advance = lambda done, total: None) -> int:
    """Write the base at `checkpoint` with every adapter added at its strength to `out`; how many linears changed.

    W + strength x B A in fp32, rounded once. A file becomes a file, a folder of official files a folder.
    ConfigError for adapters of another base, for a diffusers folder, and if `out` exists.
    """
    target = BaseSpec.open(checkpoint)
    combined_metadata(adapters)
    for adapter, _ in adapters:
        for finding in (*base_findings(adapter.metadata, target), *weight_findings(adapter.weights, target)):
            raise ConfigError(f"the adapter {adapter.metadata.get('task', '')}: {finding}")
    opened = open_checkpoint(checkpoint)
    part = model_part(opened)
    require(not part.diffusers, f"{opened.source} is a diffusers folder: merge into an official file, or fuse it there")
    part.require_readable()
    require(not out.exists(), f"{out} exists: choose another name, nothing is overwritten")
    files = sorted(opened.source.glob("*.safetensors")) if opened.source.is_dir() else [opened.source]
    require(set(part.files) <= set(files), f"{opened.source}: give the transformer's own file, {part.files[0]}")
    total, done = sum(file.stat().st_size for file in files), 0
    for file in files:
        path = out / file.name if opened.source.is_dir() else out
        with write_atomic(path) as stream:
            _write(stream, file, part, adapters, partial(_advance, advance, done, total))
        done += file.stat().st_size
    return len(modules(adapters))


def _advance(advance: Advance, before: int, total: int, at: int) -> None:
    advance(before + at, total)


def _write(
    stream: IO[bytes], file: Path, part: Component, adapters: WeightedAdapters, advance: Callable[[int], None]
) -> None:
    """The bytes of `file` with the tensors in it that the adapters change replaced."""
    stored = sorted(read_header(file).tensors.values(), key=lambda at: at.start)
    changed = set(modules(adapters))
    with file.open("rb") as source:
        _copy(source, stream, 0, stored[0].start)
        for at in stored:
            module, _, leaf = at.key.removeprefix(MODEL_PREFIX).rpartition(".")
            stream.seek(at.start)
            if at.key.startswith(MODEL_PREFIX) and module in changed and leaf in ("weight", "weight_scale"):
                values, scale = _merged(part, module, adapters)
                stream.write(_bytes(values if leaf == "weight" else scale, at))
            else:
                _copy(source, stream, at.start, at.end)
            advance(at.end)


def _merged(part: Component, module: str, adapters: WeightedAdapters) -> tuple[Tensor, Tensor]:
    """The changed weight, divided by the scale that goes with it (1 where it has none). In fp8 files it is computed for
    the scale and again for the weight: the two lie far apart, and nothing is kept between them."""
    name = f"{module}.weight"
    values = part.tensor(name).float() + delta(of_module(adapters, module))
    if part.stored[name].dtype not in fp8.FP8:
        return values, torch.ones(())
    largest = torch.finfo(DTYPES[part.stored[name].dtype]).max
    least = torch.finfo(torch.float32).tiny  # of a weight that is all zero
    scale = (values.abs().max() / largest).clamp(min=least).to(DTYPES[part.scales[name].dtype]).float()
    return (values / scale).clamp(-largest, largest), scale


def _bytes(values: Tensor, at: StoredTensor) -> bytes:
    return values.reshape(at.shape).to(DTYPES[at.dtype]).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _copy(source: IO[bytes], stream: IO[bytes], start: int, end: int) -> None:
    source.seek(start)
    while start < end:
        start += stream.write(source.read(min(_CHUNK, end - start)))

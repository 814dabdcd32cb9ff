"""Merge adapters into the files of a base, tensor by tensor: a 46 GB file needs the memory of its largest linear.

The new file has the header of the old one: the same keys, dtypes, shapes and metadata. A linear stored in fp8 is
multiplied by its scale, changed, and stored with a new scale. All other tensors are copied byte by byte.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from iclora_train.adapters.algebra import WeightedAdapters, changed_modules, combined_metadata, factors_of, weight_delta
from iclora_train.adapters.base_spec import BaseSpec, base_findings, model_tensors, open_checkpoint, weight_findings
from iclora_train.adapters.slots import NOT_IN_BASE
from iclora_train.config import ConfigError, require
from iclora_train.core.atomic_files import DiskFullError, write_atomic
from iclora_train.ltx2.weights import fp8_scales
from iclora_train.ltx2.weights.key_names import MODEL_PREFIX
from iclora_train.ltx2.weights.safetensors_header import DTYPES, Component, StoredTensor, read_header

_CHUNK = 16 << 20  # bytes copied at a time
Advance = Callable[[int, int], None]  # finished bytes, all bytes


def merge(checkpoint: str, adapters: WeightedAdapters, out: Path, advance: Advance = lambda done, total: None) -> int:
    """Write the base at `checkpoint`, with every adapter added at its strength, to `out`.

    Returns the number of changed linears.

    W + strength * B A is computed in fp32 and rounded once. `out` is a file if the base is one, and a folder if the
    base is a folder of official files. Either is complete or absent. ConfigError for adapters of another base or with
    learned slots, for a diffusers folder, if `out` exists, and if a changed weight is not finite.
    """
    base = BaseSpec.open(checkpoint)
    combined_metadata(adapters)
    for adapter, _ in adapters:
        findings = [*base_findings(adapter.metadata, base), *weight_findings(adapter.weights, base)]
        if adapter.slots is not None:
            findings.append(NOT_IN_BASE)
        for finding in findings:
            raise ConfigError(f"the adapter {adapter.metadata.get('task', '')}: {finding}")
    opened = open_checkpoint(checkpoint)
    model = model_tensors(opened)
    require(
        not model.diffusers, f"{opened.source} is a diffusers folder: merge into an official file, or fuse in diffusers"
    )
    model.require_readable()
    require(not out.exists(), f"{out} exists: choose another name (nothing is overwritten)")
    files = sorted(opened.source.glob("*.safetensors")) if opened.source.is_dir() else [opened.source]
    require(set(model.files) <= set(files), f"{opened.source}: give the transformer's own file, {model.files[0]}")
    total, done = sum(file.stat().st_size for file in files), 0
    with _complete_or_absent(out, is_folder=opened.source.is_dir()) as target:
        for file in files:
            with write_atomic(target / file.name if opened.source.is_dir() else target) as stream:
                _write(stream, file, model, adapters, partial(_advance, advance, done, total))
            done += file.stat().st_size
    return len(changed_modules(adapters))


@contextlib.contextmanager
def _complete_or_absent(out: Path, is_folder: bool) -> Iterator[Path]:
    """The path to write to. A folder gets its name when all of its files are complete; a killed run leaves only
    `out`.tmp, which the next run replaces."""
    target = out.with_name(out.name + ".tmp") if is_folder else out
    try:
        if is_folder:
            shutil.rmtree(target, ignore_errors=True)
        yield target
        if is_folder:
            target.rename(out)
    except DiskFullError as error:
        raise DiskFullError(
            f"{out} could not be written, the disk is full: make room in {out.parent}, or choose another folder, and "
            "run the same command again"
        ) from error
    finally:
        if is_folder:
            shutil.rmtree(target, ignore_errors=True)


def _advance(advance: Advance, before: int, total: int, done: int) -> None:
    advance(before + done, total)


def _write(
    stream: IO[bytes], file: Path, model: Component, adapters: WeightedAdapters, advance: Callable[[int], None]
) -> None:
    """Copy `file` and replace the tensors that the adapters change."""
    stored = sorted(read_header(file).tensors.values(), key=lambda tensor: tensor.start)
    changed = set(changed_modules(adapters))
    with file.open("rb") as source:
        _copy(source, stream, 0, stored[0].start)
        for tensor in stored:
            module, _, leaf = tensor.key.removeprefix(MODEL_PREFIX).rpartition(".")
            stream.seek(tensor.start)
            if tensor.key.startswith(MODEL_PREFIX) and module in changed and leaf in ("weight", "weight_scale"):
                values, scale = _merged(model, module, adapters)
                stream.write(_bytes(values if leaf == "weight" else scale, tensor))
            else:
                _copy(source, stream, tensor.start, tensor.end)
            advance(tensor.end)


def _merged(model: Component, module: str, adapters: WeightedAdapters) -> tuple[Tensor, Tensor]:
    """The changed weight divided by its new scale, and the scale (1 if the file has none).

    For an fp8 linear this runs twice, once for the scale and once for the weight: the two are far apart in the file,
    and neither is held in memory.
    """
    name = f"{module}.weight"
    values = model.tensor(name).float() + weight_delta(factors_of(adapters, module))
    dtype = DTYPES[model.stored[name].dtype]
    fp8 = model.stored[name].dtype in fp8_scales.FP8
    if not (values if fp8 else values.to(dtype)).isfinite().all():
        raise ConfigError(f"{name} would be infinite or NaN in {dtype}: the adapter, or its strength, is too large")
    if not fp8:
        return values, torch.ones(())
    largest = torch.finfo(dtype).max
    least = torch.finfo(torch.float32).tiny  # for a weight that is all zero
    scale = (values.abs().max() / largest).clamp(min=least).to(DTYPES[model.scales[name].dtype]).float()
    return (values / scale).clamp(-largest, largest), scale


def _bytes(values: Tensor, tensor: StoredTensor) -> bytes:
    return (
        values.reshape(tensor.shape)
        .to(DTYPES[tensor.dtype])
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


def _copy(source: IO[bytes], stream: IO[bytes], start: int, end: int) -> None:
    source.seek(start)
    while start < end:
        start += stream.write(source.read(min(_CHUNK, end - start)))

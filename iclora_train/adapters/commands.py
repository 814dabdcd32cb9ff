"""The commands of `python -m iclora_train.adapters`. Each prints a line about its result and returns the exit code."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from iclora_train.adapters import algebra
from iclora_train.adapters import card as cards
from iclora_train.adapters import check as checks
from iclora_train.adapters import extract as extracts
from iclora_train.adapters import merge_files as merges
from iclora_train.adapters.base_spec import BaseSpec, model_tensors, open_checkpoint
from iclora_train.adapters.comfyui_settings import WorkflowSettings
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import Adapter, read
from iclora_train.adapters.low_rank import LowRank
from iclora_train.adapters.official import recognise
from iclora_train.adapters.precision import save_rounded
from iclora_train.config import require
from iclora_train.core.device import default_device
from iclora_train.core.progress import progress_bar
from iclora_train.ltx2.weights.safetensors_header import read_header

_SHOWN = 10  # findings printed per file


def check(args: argparse.Namespace) -> int:
    """Print a line per finding to stderr, and a line per valid file to stdout."""
    base = None if args.base is None else BaseSpec.open(args.base)
    count = 0
    for path in args.files:
        findings = checks.check(path, base)
        rest = [f"{len(findings) - _SHOWN} more findings"] if len(findings) > _SHOWN else []
        for finding in findings[:_SHOWN] + rest:
            print(f"error: {path}: {finding}", file=sys.stderr)
        count += len(findings)
        if not findings:
            adapter = read(path)
            print(describe(path, adapter))
            _print_notes(path, adapter, base)
    return 2 if count else 0


def _save(args: argparse.Namespace, adapter: Adapter) -> None:
    """Write the adapter as --dtype says, and print what the file holds and what rounding changed."""
    error = save_rounded(args.out, adapter, args.dtype)
    print(describe(args.out, adapter))
    if error:
        print(f"rounding to {args.dtype} changes B A by {error:.2%}; --dtype fp32 keeps it, in a file twice as large")


def _print_notes(path: Path, adapter: Adapter, base: BaseSpec | None) -> None:
    for note in checks.notes(path, adapter, base):
        print(f"note: {path}: {note}")


def describe(path: Path, adapter: Adapter) -> str:
    """An adapter in one line: number of linears, ranks, reference factor."""
    ranks = sorted({a.shape[0] for a, _ in adapter.weights.values()})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    layouts = adapter.references
    kind = f"reference factor {adapter.downscale}" if layouts else "a plain LoRA, which takes no reference"
    if len(layouts) > 1:
        kind = f"{len(layouts)} references: " + "; ".join(f"{layout.name}, {layout.in_words}" for layout in layouts)
        kind += "" if adapter.slots is None else "; with learned slots, which other programs ignore"
    uses = [(layout.name, words) for layout in layouts if (words := layout.use.in_words)]
    kind += "".join(f"; {name} in training: {words}" for name, words in uses)
    outside = "audio modules and cross-attention to audio"
    audio = f", {len(adapter.audio)} of them {outside}" if adapter.audio else ""
    return f"{path}: {len(adapter.weights)} linears{audio}; {rank}; {kind}"


def convert(args: argparse.Namespace) -> int:
    """Read an adapter of any style and write it in our format."""
    base = None if args.base is None else BaseSpec.open(args.base)
    adapter, low_rank = _imported(args, base)
    _save(args, adapter)
    if low_rank is not None:
        name, most = low_rank.worst
        print(
            f"the LoRA leaves out {low_rank.error:.2%} of the adapter's change of the weights (Frobenius norm), most "
            f"in {name}: {most:.2%}; --rank {low_rank.exact} leaves out nothing"
        )
    metadata = read_header(args.file).metadata
    match = recognise(args.file, metadata)
    if match is not None:
        for note in checks.adapter_notes(args.file, metadata, match, base):
            print(f"note: {args.file}: {note}")
    return 0


def _imported(args: argparse.Namespace, base: BaseSpec | None) -> tuple[Adapter, LowRank | None]:
    """The adapter of `convert`; with --rank, also what a LoRA of that rank leaves out of it."""
    if args.rank is None:
        return import_adapter(args.file, base, _factors(args), keep_slots=not args.no_slots), None
    require(args.rank >= 1, f"--rank {args.rank} must be at least 1")
    generator = torch.Generator(default_device()).manual_seed(0)
    with progress_bar("converting", None) as bar:
        low_rank = LowRank(args.rank, generator, None if args.base is None else _weights(args.base), bar.advance)
        adapter = import_adapter(args.file, base, _factors(args), low_rank, not args.no_slots)
    require(
        bool(low_rank.total), f"--rank {args.rank}: {args.file} is a plain LoRA, whose rank `combine --rank` changes"
    )
    return adapter, low_rank


def _weights(base: str) -> Callable[[str], Tensor]:
    """The function that reads the weight of a linear of a base."""
    tensors = model_tensors(open_checkpoint(base))

    def weight(name: str) -> Tensor:
        key = f"{name}.weight"
        require(key in tensors.stored, f"{base} has no {key}, on which the adapter's change depends: give another base")
        return tensors.tensor(key, default_device())

    return weight


def merge(args: argparse.Namespace) -> int:
    """Merge adapters into a base."""
    with progress_bar("merging", None) as bar:
        count = merges.merge(args.base, _adapters(args), args.out, bar.update)
    print(f"{args.out}: {count} linears changed")
    return 0


def extract(args: argparse.Namespace) -> int:
    """Write the adapter between two bases, and print the share of the difference that the adapter contains."""
    require(args.rank >= 1, f"--rank {args.rank} must be at least 1")
    generator = torch.Generator(default_device()).manual_seed(args.seed)
    with progress_bar("extracting", None) as bar:
        result = extracts.extract(args.base, args.merged, args.rank, _factors(args), args.task, generator, bar.update)
    least = min(result.energy, key=lambda name: result.energy[name])
    _save(args, result.adapter)
    print(
        f"the adapter holds {result.total:.2%} of the difference's energy; least in {least}: {result.energy[least]:.2%}"
    )
    if result.not_linear:
        first = result.not_linear[0]
        print(f"{len(result.not_linear)} other tensors differ, which an adapter cannot hold (first: {first})")
    return 0


def combine(args: argparse.Namespace) -> int:
    """Combine several adapters into one."""
    require(args.rank is None or args.rank >= 1, f"--rank {args.rank} must be at least 1")
    adapter = algebra.combine(_adapters(args), args.rank)
    _save(args, adapter)
    return 0


def card(args: argparse.Namespace) -> int:
    """Write the model card and the ComfyUI workflow of an adapter."""
    for path in cards.write_card(args.file, args.scores):
        print(path)
    return 0


def workflow(args: argparse.Namespace) -> int:
    """Write the ComfyUI workflow of an adapter, optionally for another size."""
    adapter = read(args.file)
    settings = WorkflowSettings.from_metadata(
        args.file, adapter.metadata, args.size, args.fps, adapter.slots is not None
    )
    for path in cards.write_workflow(args.file, settings):
        print(path)
    return 0


def _adapters(args: argparse.Namespace) -> list[tuple[Adapter, float]]:
    return [(read(Path(file)), _strength(strength)) for file, strength in args.adapter]


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    require(math.isfinite(value), f"--adapter FILE {text}: the strength must be a number, e.g. 1.0")
    return value


def _factors(args: argparse.Namespace) -> ReferenceFactors:
    return ReferenceFactors(args.downscale, args.temporal_scale, not args.no_reference)

"""The commands of `python -m iclora_train.adapters`: from arguments to files, with a line that says what was done.

Each returns the exit code.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from iclora_train.adapters import algebra
from iclora_train.adapters import card as cards
from iclora_train.adapters import check as checks
from iclora_train.adapters import extract as extracts
from iclora_train.adapters import merge_files as merges
from iclora_train.adapters.base_spec import BaseSpec
from iclora_train.adapters.comfyui_workflow import WorkflowSettings
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import Adapter, read, save
from iclora_train.config import ConfigError, require
from iclora_train.core.device import default_device
from iclora_train.core.progress import progress_bar

_SHOWN = 10  # findings of a file
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def check(args: argparse.Namespace) -> int:
    """One line per finding on stderr, one per good file on stdout."""
    target = None if args.base is None else BaseSpec.open(args.base)
    wrong = 0
    for path in args.files:
        findings = checks.check(path, target)
        rest = [f"{len(findings) - _SHOWN} more findings"] if len(findings) > _SHOWN else []
        for finding in findings[:_SHOWN] + rest:
            print(f"error: {path}: {finding}", file=sys.stderr)
        wrong += len(findings)
        if not findings:
            print(describe(path, read(path)))
    return 2 if wrong else 0


def describe(path: Path, adapter: Adapter) -> str:
    """What an adapter is, in a line."""
    ranks = sorted({a.shape[0] for a, _ in adapter.weights.values()})
    of = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    kind = f"reference factor {adapter.downscale}" if adapter.in_context else "takes no reference"
    audio = f", {len(adapter.audio)} of them audio modules, which this program passes over" if adapter.audio else ""
    return f"{path}: {len(adapter.weights)} linears{audio}; {of}; {kind}"


def convert(args: argparse.Namespace) -> int:
    """Read any style, write ours."""
    target = None if args.base is None else BaseSpec.open(args.base)
    adapter = import_adapter(args.file, target, _factors(args))
    save(args.out, adapter, _DTYPES[args.dtype])
    print(describe(args.out, adapter))
    return 0


def merge(args: argparse.Namespace) -> int:
    """Adapters into a base."""
    with progress_bar("merging", None) as bar:
        count = merges.merge(args.base, _adapters(args), args.out, bar.update)
    print(f"{args.out}: {count} linears changed")
    return 0


def extract(args: argparse.Namespace) -> int:
    """The adapter between two bases, and how much of their difference it holds."""
    require(args.rank >= 1, f"--rank {args.rank} must be at least 1")
    generator = torch.Generator(default_device()).manual_seed(args.seed)
    with progress_bar("extracting", None) as bar:
        found = extracts.extract(args.base, args.merged, args.rank, _factors(args), args.task, generator, bar.update)
    save(args.out, found.adapter)
    least = min(found.energy, key=lambda name: found.energy[name])
    print(describe(args.out, found.adapter))
    print(f"energy of the difference that it holds: {found.total:.2%}; least, {least}: {found.energy[least]:.2%}")
    if found.beyond:
        print(f"{len(found.beyond)} tensors differ that no adapter can hold (first: {found.beyond[0]})")
    return 0


def combine(args: argparse.Namespace) -> int:
    """Several adapters as one."""
    require(args.rank is None or args.rank >= 1, f"--rank {args.rank} must be at least 1")
    adapter = algebra.combine(_adapters(args), args.rank)
    save(args.out, adapter)
    print(describe(args.out, adapter))
    return 0


def card(args: argparse.Namespace) -> int:
    """Card and workflow beside an adapter."""
    for path in cards.write_beside(args.file, args.scores):
        print(path)
    return 0


def workflow(args: argparse.Namespace) -> int:
    """The workflow alone, at another size if wanted."""
    adapter = read(args.file)
    for path in cards.write_workflow(args.file, WorkflowSettings.of(args.file, adapter.metadata, args.size, args.fps)):
        print(path)
    return 0


def _adapters(args: argparse.Namespace) -> list[tuple[Adapter, float]]:
    return [(read(Path(file)), _strength(strength)) for file, strength in args.adapter]


def _strength(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--adapter FILE {text}: the strength must be a number, e.g. 1.0") from error


def _factors(args: argparse.Namespace) -> ReferenceFactors:
    return ReferenceFactors(args.downscale, args.temporal_scale, not args.no_reference)

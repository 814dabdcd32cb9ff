"""How long a preparation will take and how much it will write, from a few windows that were measured.

Everything is counted per pixel of the target (frames x height x width), so that windows of several sizes can be mixed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.table import Table

from iclora_train.config import Config, ConfigError
from iclora_train.config.cpus import available_cpus
from iclora_train.core.console import make_console
from iclora_train.core.records import Count, NonNegative, PositiveCount, Text
from iclora_train.data.shared_streams import SMALLEST

PAIR_PARTS = ("decode", "maker", "checks", "compression")  # work of the processes that data.workers counts
TRAIN_PAIRS, FIXED_PAIRS = "pairs", "pairs, val and heldout"  # kinds of bytes
SURELY = 0.7  # the disk surely cannot hold a result of which this share is larger than the free space
MB, GB = 1e6, 1e9


@dataclass(frozen=True)
class Cost:
    """Totals of `windows` measured windows.

    seconds: by part, of one process (PAIR_PARTS), of one GPU or the CPU (`vae`), and of one process for `clips` clips
    (`clips`: probe, hash, compare). bytes: by kind. TRAIN_PAIRS is counted as if all windows were of train, FIXED_PAIRS
    as if none were; `text` is of one caption.
    """

    windows: PositiveCount
    pixels: PositiveCount
    seconds: dict[Text, NonNegative]
    bytes: dict[Text, NonNegative]
    clips: Count = 0


@dataclass(frozen=True)
class Work:
    """What is to be done: windows and the pixels of their targets, clips to read, captions to encode.

    texts: captions in the shards; a shard stores a caption once, however many of its windows have it. fixed_pixels: the
    part of `pixels` in val and heldout.
    """

    windows: int
    pixels: int
    clips: int = 0
    captions: int = 0
    texts: int = 0
    fixed_pixels: int = 0


@dataclass(frozen=True)
class Machine:
    """Who works: processes, cores, GPUs, and the free bytes of the disk."""

    workers: int
    cores: int
    gpus: int
    free: int

    @classmethod
    def here(cls, config: Config) -> Machine:
        """This machine, with the workers of the settings."""
        gpus, free = torch.cuda.device_count(), free_bytes(Path(config.data.root))
        return cls(config.data.processes(), available_cpus(), gpus, free)


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of a preparation. `open`: the parts whose time was not measured."""

    seconds: dict[str, float]
    total_seconds: float
    bytes: dict[str, float]
    open: tuple[str, ...] = field(default=())

    @property
    def total_bytes(self) -> float:
        """Bytes of everything that is written."""
        return sum(self.bytes.values())


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def estimate(cost: Cost, work: Work, machine: Machine) -> Estimate:
    """Scale the cost of the measured windows to all windows.

    With workers, pairs are made while the VAE encodes on a GPU, so the slower of both counts. On a CPU they share the
    cores, so both count.
    """
    scale = work.pixels / cost.pixels
    processes = max(min(machine.workers, machine.cores), 1)
    seconds = {part: cost.seconds[part] * scale / processes for part in PAIR_PARTS if part in cost.seconds}
    pairs, vae = sum(seconds.values()), cost.seconds.get("vae", 0.0) * scale / max(machine.gpus, 1)
    clips = cost.seconds.get("clips", 0.0) * work.clips / max(cost.clips, 1)
    beside = machine.workers > 0 and machine.gpus > 0
    total = clips + (max(pairs, vae) if beside else pairs + vae)
    optional = {"clips": clips, "vae": vae}
    seconds |= {part: value for part, value in optional.items() if part in cost.seconds}
    parts = {"the VAE": "vae" not in cost.seconds, "the text encoder": work.captions > 0}
    missing = tuple(part for part, is_missing in parts.items() if is_missing)
    sizes = _pair_sizes(cost, work)
    sizes |= {kind: size * scale for kind, size in cost.bytes.items() if kind not in (TRAIN_PAIRS, FIXED_PAIRS, "text")}
    if "text" in cost.bytes:
        shared = cost.bytes["text"] >= SMALLEST
        sizes["text in latents"] = cost.bytes["text"] * (work.texts if shared else work.windows)
        sizes["text cache"] = cost.bytes["text"] * work.captions
    return Estimate(seconds, total, sizes, missing)


def _pair_sizes(cost: Cost, work: Work) -> dict[str, float]:
    """Bytes of the pairs of train and of the other splits. Where one of them was not measured, it is as the other."""
    measured = [cost.bytes[kind] for kind in (TRAIN_PAIRS, FIXED_PAIRS) if kind in cost.bytes]
    if not measured:
        return {}
    pixels = {TRAIN_PAIRS: work.pixels - work.fixed_pixels, FIXED_PAIRS: work.fixed_pixels}
    sizes = {kind: cost.bytes.get(kind, measured[0]) * count / cost.pixels for kind, count in pixels.items()}
    return {kind: size for kind, size in sizes.items() if size}


def require_room(result: Estimate, machine: Machine, config: Config) -> None:
    """ConfigError if the disk surely cannot hold the result, unless checks.disk=false; a warning if it barely can."""
    needed, free, root = result.total_bytes, machine.free, config.data.root
    if needed <= free:
        return
    numbers = f"about {size_text(needed)} will be written to {root}, and its disk has {size_text(free)} free"
    remedies = "make room, set data.root=<folder> on another disk, or lower data.train_windows"
    if config.checks.disk and SURELY * needed > free:
        raise ConfigError(f"{numbers}: {remedies}; checks.disk=false begins anyway")
    print(f"warning: {numbers}: {remedies}", file=sys.stderr)


def show_estimate(cost: Cost, work: Work, machine: Machine, result: Estimate) -> None:
    """Print the table of seconds and sizes on stdout, and a line with the totals."""
    console = make_console()
    table = Table("part", "s per window", "in all", title=f"time, measured on {cost.windows} windows")
    for part, seconds in result.seconds.items():
        each = cost.seconds[part] / cost.windows if part != "clips" else cost.seconds[part] / max(cost.clips, 1)
        label = {"vae": "VAE", "clips": "clips (s per clip)"}.get(part, part)
        table.add_row(label, f"{each:.2g}", time_text(seconds))
    console.print(table)
    table = Table("on disk", "MB per window", "in all", title="size")
    for kind, size in result.bytes.items():
        table.add_row(kind, f"{size / max(work.windows, 1) / MB:.3g}", size_text(size))
    console.print(table)
    for line in summary(work, machine, result):
        console.print(line, soft_wrap=True, highlight=False)


def summary(work: Work, machine: Machine, result: Estimate) -> Iterable[str]:
    """The estimate in two lines: time and workers, size and disk."""
    plural = "s" if machine.gpus > 1 else ""
    device = f"{machine.gpus} GPU{plural}" if machine.gpus else "CPU"
    without = f", without {' and '.join(result.open)}" if result.open else ""
    who = f"{max(machine.workers, 1)} process{'es' if machine.workers > 1 else ''} and {device}"
    yield f"{work.windows:,} windows: about {time_text(result.total_seconds)} with {who}{without}"
    yield f"on disk: about {size_text(result.total_bytes)}; free: {size_text(machine.free)}"


def time_text(seconds: float) -> str:
    """A duration for people: `40 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size_text(size: float) -> str:
    """A size for people: `850 kB`, `12 MB`, `3.4 GB`."""
    for unit, factor in (("GB", GB), ("MB", MB)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"

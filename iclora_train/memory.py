"""What a training step keeps of its activations, so that it fits the memory there is (`trainer.memory`).

Keeping everything is fastest. What does not fit on the GPU goes to the host as far as the bus carries it while the GPU
computes (`ltx2.spill`), and what does not fit there either is computed again in the backward pass (`compiled`). The
figures behind the choice are measured on the first blocks, on the largest clips, before step 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from iclora_train.batches import Batch
from iclora_train.config import Config, ConfigError, require
from iclora_train.dryrun import largest
from iclora_train.files import write_whole
from iclora_train.ltx2.compiled import compile_blocks
from iclora_train.ltx2.spill import ON_THE_WAY, Spill
from iclora_train.module import ICLoRA
from iclora_train.shards import ShardSet
from iclora_train.step import step_generator

GIB = 2**30
LOW = 24.0  # GiB of `trainer.memory=low`
MARGIN = 0.07  # of the budget: what the allocator cannot use, and what validation and saving take beside a step
LEVELS = (0.6, 0.3, 0.15, 0.0)  # of model.kept, the fastest first; .6 computes nothing again that costs a product
STATES = 12  # bytes of an adapter's parameter beside its value: gradient and AdamW's two moments, fp32
BUS = 0.85  # of the measured bandwidth that copies get beside the computation


@dataclass(frozen=True)
class Level:
    """What one value of model.kept costs: bytes that a block keeps, bytes of all else, seconds of a block forwards."""

    kept: float
    block: int
    rest: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """model.kept and model.spill, and the GiB that a step is then expected to take."""

    kept: float
    spill: float
    gib: float

    def __str__(self) -> str:
        away = f", {self.spill:.0%} of them on the host" if self.spill else ""
        return f"activations: kept {self.kept:g}{away}; about {self.gib:.1f} GiB"


def budget_of(memory: str | float, room: float) -> float:
    """GiB that a step may take: all there is (auto), LOW, or so many."""
    wanted = {"auto": room, "low": LOW}.get(memory) if isinstance(memory, str) else float(memory)
    if wanted is None or not wanted > 0:
        raise ConfigError(f"trainer.memory={memory} must be auto, low ({LOW:g} GiB), a number of GiB, or null")
    if wanted > room:
        raise ConfigError(f"trainer.memory={memory} is more than the {room:.1f} GiB of this GPU")
    return wanted


def fits(level: Level, blocks: int, budget: float, bandwidth: float, host: float) -> Plan | None:
    """The plan at this level, if there is one: the least share of the activations on the host that suffices.

    budget: bytes; bandwidth: of the bus in bytes per second; host: bytes that may be taken there.
    """
    whole = level.block * blocks
    over = level.rest + whole - budget
    if over <= 0:
        return Plan(level.kept, 0.0, (level.rest + whole) / GIB)
    over += ON_THE_WAY
    most = min(BUS * bandwidth * level.seconds * blocks, host, whole * (blocks - 3) / blocks)  # two are back at a time
    if over > most:
        return None
    share = min(1.0, over / whole * blocks / (blocks - 3))
    return Plan(level.kept, round(share + 0.005, 2), budget / GIB)


def choose(levels: Iterable[Level], blocks: int, budget: float, bandwidth: float, host: float) -> Plan | None:
    """The first level that fits without waiting for the bus; None if none does."""
    return next((plan for level in levels if (plan := fits(level, blocks, budget, bandwidth, host))), None)


def settled(config: Config, module: ICLoRA, shards: ShardSet, folder: Path) -> Plan | None:
    """The module set as trainer.memory says; what a run has chosen holds when it goes on on the same kind of GPU.

    None where there is nothing to choose: on a CPU, with blocks that are not compiled, or with model.kept set.
    """
    memory, device = config.trainer.get("memory"), module.transformer.patchify_proj.weight.device
    open_to_choice = device.type == "cuda" and module.transformer.kept is not None and config.model.kept is None
    if memory is None or not open_to_choice:
        require(
            memory in (None, "auto"),
            f"trainer.memory={memory} has no effect here: it needs a GPU, compiled blocks (model.compile) and "
            "model.kept=null; leave it out",
        )
        return None
    place = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "memory": str(memory)}
    known = folder / "memory.json"
    if known.exists() and (found := json.loads(known.read_text())).pop("place") == place:
        plan = Plan(**found)
        apply(module, plan.kept, plan.spill)
        return plan
    plan = settle(module, largest(config, shards, device)[1], memory)
    with write_whole(known) as file:
        file.write(json.dumps({"place": place, **asdict(plan)}).encode())
    return plan


class Levels:
    """The levels as far as they have been asked for: measuring one takes compiling it."""

    def __init__(self, module: ICLoRA, batch: Batch) -> None:
        self.module, self.batch = module, batch
        self.known: dict[float, Level | None] = {}

    def __iter__(self) -> Iterator[Level]:
        for kept in LEVELS:
            if kept not in self.known:
                self.known[kept] = measure(self.module, self.batch, kept)
            if (level := self.known[kept]) is not None:
                yield level

    def __str__(self) -> str:
        blocks = len(self.module.transformer.transformer_blocks)
        found = [level for level in self.known.values() if level is not None]
        return ", ".join(f"{at.rest / GIB:.1f} + {at.block * blocks / GIB:.1f} at {at.kept:g}" for at in found)


def settle(module: ICLoRA, batch: Batch, memory: str | float) -> Plan:
    """Measure on `batch`, the largest there is, choose, try a step, and leave the module set that way.

    From then on the process takes no more than that of the GPU. ConfigError when the smallest step does not fit.
    """
    device = batch["target"].device
    room = torch.cuda.get_device_properties(device).total_memory / GIB
    wanted = budget_of(memory, room)
    torch.cuda.set_per_process_memory_fraction(wanted / room, device)
    blocks, levels = len(module.transformer.transformer_blocks), Levels(module, batch)
    bandwidth, host, budget = bandwidth_of(device), 0.8 * free_on_host(), wanted * (1 - MARGIN) * GIB
    while (plan := choose(levels, blocks, budget, bandwidth, host)) is not None:
        apply(module, plan.kept, plan.spill)
        if holds(module, batch):
            return plan
        budget *= 1 - MARGIN
    raise ConfigError(
        f"trainer.memory={memory}: a step on the largest clips does not fit into {wanted:.1f} GiB (GiB beside and for "
        f"activations, with model.kept: {levels}); what would help: model.precision=fp8, "
        "model.offload=<blocks>, a smaller data.tokens_per_batch or data.batch_size, fewer data.frames, "
        "task.reference_downscale=2"
    )


def apply(module: ICLoRA, kept: float, spill: float) -> None:
    """Train with these from now on."""
    compile_blocks(module.transformer, kept)
    module.transformer.spill = Spill(spill) if spill else None


def holds(module: ICLoRA, batch: Batch) -> bool:
    """Whether a whole step fits beside what the optimizer will keep."""
    device = batch["target"].device
    torch.cuda.empty_cache()
    try:
        states = torch.empty(2 * 4 * sum(p.numel() for p in module.adapter), dtype=torch.uint8, device=device)
        _step(module, batch, module.transformer.transformer_blocks)
        del states
    except torch.OutOfMemoryError:
        return False
    finally:
        module.zero_grad()
    return True


def measure(module: ICLoRA, batch: Batch, kept: float) -> Level | None:
    """What `kept` costs, from steps through few blocks; the adapter is as it was afterwards. None: far too much.

    Steps of 3 and 6 blocks differ by what 3 blocks keep and take.
    """
    net = module.transformer
    apply(module, kept, 0.0)
    whole = net.transformer_blocks
    try:
        few, more = (_step(module, batch, nn.ModuleList(whole[:n])) for n in (3, 6))
    except torch.OutOfMemoryError:
        return None
    finally:
        net.transformer_blocks = whole
        for parameter in module.adapter:
            parameter.grad = None
    block = (more[0] - few[0]) // 3
    states = STATES * sum(parameter.numel() for parameter in module.adapter)
    return Level(kept, block, few[0] - 3 * block + states, (more[1] - few[1]) / 3)


def _step(module: ICLoRA, batch: Batch, blocks: nn.ModuleList) -> tuple[int, float]:
    """Peak bytes of a step through these blocks, and seconds of its forward pass, after one that compiles."""
    device, net = batch["target"].device, module.transformer
    net.transformer_blocks = blocks
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats(device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.autocast(device.type, torch.bfloat16, enabled=net.patchify_proj.weight.dtype == torch.bfloat16):
            begin.record()
            loss = module.losses(batch, step_generator(module.config.seed, 0, 0))[1].mean()
            end.record()
        loss.backward()
        module.zero_grad()
        torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device), begin.elapsed_time(end) / 1e3


def bandwidth_of(device: torch.device, size: int = 2**28) -> float:
    """Bytes per second from the GPU to pinned memory."""
    host, there = (
        torch.empty(size, dtype=torch.uint8, pin_memory=True),
        torch.empty(size, dtype=torch.uint8, device=device),
    )
    host.copy_(there)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    host.copy_(there, non_blocking=True)
    end.record()
    end.synchronize()
    return size / (begin.elapsed_time(end) / 1e3)


def free_on_host() -> float:
    """Bytes of memory that the host can still give."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024.0 * int(line.split()[1])
    return 0.0

"""Where a step's time goes on the GPU, by kind of work."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

THIN = 128  # a product with a smaller side is an adapter's
KINDS = {  # parts of the names of operators, or of kernels
    "attention": ("attention", "flash", "efficient"),
    "own kernels": ("iclora_train::",),
    "compiled": ("triton",),
    "optimizer": ("adam", "_foreach", "_fused", "multi_tensor"),
    "copies": ("aten::copy_", "aten::fill_", "aten::zero_", "memcpy", "memset"),
    "linear": ("nvjet", "gemm", "cutlass"),
}
BESIDE = ("Memcpy HtoD", "Memcpy DtoH")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::_scaled_mm", "aten::bmm")


class Origin(NamedTuple):
    """What a kernel is for, and the operator that launched it."""

    kind: str
    operator: str


Run = tuple[str, float]  # a kernel's name and milliseconds


def profile(step: Callable[[], object], seconds: float, replayed: Sequence[Run] | None = None) -> dict[str, Any]:
    """Milliseconds of each kind of work in a step, and the largest kernels; `seconds`: of a step without the profiler.

    replayed: what ran in a step that was replayed from CUDA graphs (`ran`), which name no operators: those of `step`,
    the same one kernel by kernel, are taken for it, and its own times.
    Idle is what the step takes beyond all kernels that compute: copies between host and GPU run beside them.
    """
    events = traced(step)
    kernels = _on_gpu(events) if replayed is None else replayed
    spent: dict[str, float] = defaultdict(float)
    largest: dict[str, float] = defaultdict(float)
    for (_, ms), origin in zip(kernels, origins(events, kernels), strict=True):
        spent[origin.kind] += ms
        largest[origin.operator[:100]] += ms
    spent["idle"] = 1e3 * seconds - sum(ms for name, ms in kernels if not name.startswith(BESIDE))
    top = sorted(largest.items(), key=lambda entry: -entry[1])[:25]
    return {
        "ms": {name: round(ms, 1) for name, ms in sorted(spent.items(), key=lambda entry: -entry[1])},
        "kernels": len(kernels),
        "largest": {name: round(ms, 2) for name, ms in top},
    }


def ran(step: Callable[[], object]) -> list[Run]:
    """The kernels of a step in the order in which they ran."""
    return _on_gpu(traced(step))


def traced(step: Callable[[], object]) -> Iterable[Any]:
    """The profiler's events of a step."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with torch.profiler.profile(activities=activities, record_shapes=True) as recorded:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return recorded.events() or []


def _on_gpu(events: Iterable[Any]) -> list[Run]:
    found = [
        event
        for event in events
        if event.device_type != DeviceType.CPU and not getattr(event, "is_user_annotation", False)
    ]
    found.sort(key=lambda event: event.time_range.start)
    return [(event.name, event.time_range.elapsed_us() / 1e3) for event in found]


def origins(events: Iterable[Any], kernels: Sequence[Run]) -> Iterator[Origin]:
    """Where each kernel comes from: from the operator that launched the one of that name before which as many others
    were launched; where there were not as many, the last."""
    known = launched(events)
    seen: Counter[str] = Counter()
    for name, _ in kernels:
        same = known.get(name)
        yield same[min(seen[name], len(same) - 1)] if same else Origin(kind_of(name, []), name)
        seen[name] += 1


def launched(events: Iterable[Any]) -> dict[str, list[Origin]]:
    """By name, where the kernels come from that operators launched, one operator after the other."""
    launching = [event for event in events if event.device_type == DeviceType.CPU and event.kernels]
    found: dict[str, list[Origin]] = defaultdict(list)
    for event in sorted(launching, key=lambda event: event.time_range.start):
        shapes = [shape for shape in event.input_shapes or [] if shape]
        for kernel in event.kernels:
            found[kernel.name].append(Origin(kind_of(event.name, shapes), f"{event.name} {shapes}"))
    return found


def kind_of(name: str, shapes: list[Any]) -> str:
    """What an operator or a kernel is for; what the compiler made is norms, modulation and the like."""
    if name in PRODUCTS:
        sides = [side for shape in shapes[:3] if len(shape) >= 2 for side in shape[-2:]]
        return "adapter" if min(sides, default=THIN) < THIN else "linear"
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "others")

"""Where the GPU's time goes in a training step, by kind of work."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

ADAPTER_SIDE = 128  # a matmul with a smaller side belongs to an adapter
KINDS = {  # substrings of the names of operators or kernels
    "attention": ("attention", "flash", "efficient"),
    "own kernels": ("iclora_train::",),
    "compiled": ("triton",),
    "optimizer": ("adam", "_foreach", "_fused", "multi_tensor"),
    "copies": ("aten::copy_", "aten::fill_", "aten::zero_", "memcpy", "memset"),
    "linear": ("nvjet", "gemm", "cutlass"),
}
HOST_COPIES = ("Memcpy HtoD", "Memcpy DtoH")
MATMULS = ("aten::mm", "aten::addmm", "aten::_scaled_mm", "aten::bmm")


class Origin(NamedTuple):
    """The kind of work of a kernel, and the operator that launched it."""

    kind: str
    operator: str


Kernel = tuple[str, float]  # name, milliseconds


def profile(step: Callable[[], object], seconds: float, replayed: Sequence[Kernel] | None = None) -> dict[str, Any]:
    """Milliseconds of a step by kind of work, and its largest kernels.

    seconds: time of a step without the profiler. Idle time is what remains after all kernels that compute. Copies
    between host and GPU overlap with them and do not count.
    replayed: the kernels of a step replayed from CUDA graphs (`executed_kernels`). They do not show their operators:
    these are taken from `step`, which must be the same step without graphs; the times are those of `replayed`.
    """
    events = record(step)
    kernels = _gpu_kernels(events) if replayed is None else replayed
    ms_by_kind: dict[str, float] = defaultdict(float)
    ms_by_operator: dict[str, float] = defaultdict(float)
    for (_, ms), origin in zip(kernels, origins(events, kernels), strict=True):
        ms_by_kind[origin.kind] += ms
        ms_by_operator[origin.operator[:100]] += ms
    ms_by_kind["idle"] = 1e3 * seconds - sum(ms for name, ms in kernels if not name.startswith(HOST_COPIES))
    largest = sorted(ms_by_operator.items(), key=lambda entry: -entry[1])[:25]
    return {
        "ms": {name: round(ms, 1) for name, ms in sorted(ms_by_kind.items(), key=lambda entry: -entry[1])},
        "kernels": len(kernels),
        "largest": {name: round(ms, 2) for name, ms in largest},
    }


def executed_kernels(step: Callable[[], object]) -> list[Kernel]:
    """The kernels of a step in the order of their execution."""
    return _gpu_kernels(record(step))


def record(step: Callable[[], object]) -> Iterable[Any]:
    """The profiler's events of a step."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return profiler.events() or []


def _gpu_kernels(events: Iterable[Any]) -> list[Kernel]:
    kernels = [
        event
        for event in events
        if event.device_type != DeviceType.CPU and not getattr(event, "is_user_annotation", False)
    ]
    kernels.sort(key=lambda event: event.time_range.start)
    return [(event.name, event.time_range.elapsed_us() / 1e3) for event in kernels]


def origins(events: Iterable[Any], kernels: Sequence[Kernel]) -> Iterator[Origin]:
    """The origin of each kernel: the n-th kernel of a name comes from the n-th launch of that name in `events`; further
    kernels of that name come from its last launch."""
    launches = origins_by_name(events)
    counts: Counter[str] = Counter()
    for name, _ in kernels:
        same = launches.get(name)
        yield same[min(counts[name], len(same) - 1)] if same else Origin(kind_of(name, []), name)
        counts[name] += 1


def origins_by_name(events: Iterable[Any]) -> dict[str, list[Origin]]:
    """Kernel name -> origins of the kernels of that name, in the order in which operators launched them."""
    operators = [event for event in events if event.device_type == DeviceType.CPU and event.kernels]
    launches: dict[str, list[Origin]] = defaultdict(list)
    for event in sorted(operators, key=lambda event: event.time_range.start):
        shapes = [shape for shape in event.input_shapes or [] if shape]
        for kernel in event.kernels:
            launches[kernel.name].append(Origin(kind_of(event.name, shapes), f"{event.name} {shapes}"))
    return launches


def kind_of(name: str, shapes: list[Any]) -> str:
    """The kind of work of an operator or kernel. "compiled" is what torch.compile generates: norms, modulation etc."""
    if name in MATMULS:
        sides = [side for shape in shapes[:3] if len(shape) >= 2 for side in shape[-2:]]
        return "adapter" if min(sides, default=ADAPTER_SIDE) < ADAPTER_SIDE else "linear"
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "others")

"""Where a step's time goes on the GPU, by kind of work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

THIN = 128  # a product with a smaller side is an adapter's
KINDS = {  # parts of the names of operators
    "attention": ("attention", "flash", "efficient"),
    "own kernels": ("iclora_train::",),
    "compiled": ("triton",),
    "optimizer": ("adam", "_foreach", "_fused"),
    "copies": ("aten::copy_", "aten::fill_", "aten::zero_", "memcpy", "memset"),
}
BESIDE = ("Memcpy HtoD", "Memcpy DtoH")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::_scaled_mm", "aten::bmm")


def profile(step: Callable[[], object], seconds: float, steps: int = 1) -> dict[str, Any]:
    """Milliseconds per step of each kind of work, and the largest kernels; `seconds`: of a step without the profiler.

    Idle is what the step takes beyond all kernels that compute: copies between host and GPU run beside them.
    """
    with torch.profiler.profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True
    ) as recorded:
        for _ in range(steps):
            step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    spent: dict[str, float] = defaultdict(float)
    largest: dict[str, float] = {}
    busy = moving = 0.0  # of all kernels; those that no operator launched are not in `spent` yet
    for event in recorded.key_averages(group_by_input_shape=True):
        own = event.self_device_time_total / 1e3 / steps
        if event.device_type != torch.autograd.DeviceType.CPU:
            busy += 0.0 if getattr(event, "is_user_annotation", False) else own  # a range that has kernels in it
            moving += own if event.key.startswith(BESIDE) else 0.0
        elif own > 0:
            spent[kind_of(event.key, event.input_shapes)] += own
            name = f"{event.key} {[shape for shape in event.input_shapes if shape]}"[:100]
            largest[name] = largest.get(name, 0.0) + own
    spent["others"] += busy - sum(spent.values())
    spent["idle"] = 1e3 * seconds - (busy - moving)
    top = sorted(largest.items(), key=lambda entry: -entry[1])[:25]
    return {
        "ms": {name: round(ms, 1) for name, ms in sorted(spent.items(), key=lambda entry: -entry[1])},
        "largest": {name: round(ms, 2) for name, ms in top},
    }


def kind_of(name: str, shapes: list[Any]) -> str:
    """What an operator is for; what the compiler made is norms, modulation and the like."""
    if name in PRODUCTS:
        sides = [side for shape in shapes[:3] if len(shape) >= 2 for side in shape[-2:]]
        return "adapter" if min(sides, default=THIN) < THIN else "linear"
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "others")

"""Profile of a step: kinds of work, kernels of CUDA graphs, idle time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from scripts import profile_step
from scripts.profile_step import executed_kernels, kind_of, profile

Launch = tuple[str, list[list[int]], list[tuple[str, float]]]  # operator, input shapes, (kernel, microseconds)


def events(launches: list[Launch]) -> list[SimpleNamespace]:
    """The profiler's events of operators that launch these kernels one after the other."""
    result, now = [], 0.0
    for index, (name, shapes, kernels) in enumerate(launches):
        times = SimpleNamespace(start=float(index))
        launched = [SimpleNamespace(name=kernel, duration=us) for kernel, us in kernels]
        result.append(
            SimpleNamespace(
                name=name, input_shapes=shapes, kernels=launched, device_type=DeviceType.CPU, time_range=times
            )
        )
        for kernel, us in kernels:
            times = SimpleNamespace(start=now, elapsed_us=lambda us=us: us)
            result.append(SimpleNamespace(name=kernel, kernels=[], device_type=DeviceType.CUDA, time_range=times))
            now += us
    return result[::-1]  # the profiler guarantees no order


LAUNCHES: list[Launch] = [
    ("aten::mm", [[4096, 4096], [4096, 4096]], [("gemm", 5000.0)]),
    ("aten::mm", [[4096, 4096], [4096, 32]], [("gemm", 1000.0)]),
    ("iclora_train::flash_forward", [], [("flash", 1500.0), ("sum", 500.0)]),
    ("aten::copy_", [], [("Memcpy DtoH (Device -> Pinned)", 9000.0)]),
]


def test_copies_that_overlap_with_computation_do_not_reduce_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_step, "record", lambda _step: events(LAUNCHES))
    result = profile(lambda: None, 0.010)["ms"]
    assert result == {"copies": 9.0, "linear": 5.0, "attention": 2.0, "idle": 2.0, "adapter": 1.0}


def test_replayed_kernels_have_the_kinds_of_the_launched_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_step, "record", lambda _step: events(LAUNCHES))
    replayed = [("set up", 100.0), ("gemm", 6.0), ("gemm", 2.0), ("flash", 3.0), ("sum", 1.0), ("sum", 1.0)]
    result = profile(lambda: None, 0.120, replayed)
    assert result["ms"] == {"others": 100.0, "idle": 7.0, "linear": 6.0, "attention": 5.0, "adapter": 2.0}
    assert result["kernels"] == len(replayed)
    assert result["largest"]["aten::mm [[4096, 4096], [4096, 32]]"] == 2.0


def test_kernels_are_listed_in_the_order_of_execution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_step, "record", lambda _step: events(LAUNCHES))
    names = ["gemm", "gemm", "flash", "sum", "Memcpy DtoH (Device -> Pinned)"]
    assert [name for name, _ in executed_kernels(lambda: None)] == names


def test_a_step_without_a_gpu_has_no_kernels() -> None:
    assert profile(lambda: torch.ones(2) + 1, 0.010) == {"ms": {"idle": 10.0}, "kernels": 0, "largest": {}}


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("aten::_scaled_mm", [[512, 4096], [4096, 4096]], "linear"),
        ("aten::mm", [[512, 32], [32, 4096]], "adapter"),
        ("iclora_train::flash_backward", [], "attention"),
        ("iclora_train::gelu_up", [], "own kernels"),
        ("triton_red_fused_0", [], "compiled"),
        ("aten::_fused_adamw_", [], "optimizer"),
        ("aten::copy_", [], "copies"),
        ("aten::index", [], "others"),
    ],
)
def test_kinds_of_work(name: str, shapes: list[list[int]], kind: str) -> None:
    assert kind_of(name, shapes) == kind

"""Where a step's time goes: what is counted as what, and what is left over."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from scripts import profile_step
from scripts.profile_step import kind_of, profile, ran

Launch = tuple[str, list[list[int]], list[tuple[str, float]]]  # an operator, its shapes, kernels and microseconds


def events(launches: list[Launch]) -> list[SimpleNamespace]:
    """What a profiler says of operators that launched these kernels, one after the other."""
    found, now = [], 0.0
    for place, (name, shapes, kernels) in enumerate(launches):
        times = SimpleNamespace(start=float(place))
        own = [SimpleNamespace(name=kernel, duration=spent) for kernel, spent in kernels]
        found.append(
            SimpleNamespace(name=name, input_shapes=shapes, kernels=own, device_type=DeviceType.CPU, time_range=times)
        )
        for kernel, spent in kernels:
            times = SimpleNamespace(start=now, elapsed_us=lambda spent=spent: spent)
            found.append(SimpleNamespace(name=kernel, kernels=[], device_type=DeviceType.CUDA, time_range=times))
            now += spent
    return found[::-1]  # in no order that means anything


LAUNCHES: list[Launch] = [
    ("aten::mm", [[4096, 4096], [4096, 4096]], [("gemm", 5000.0)]),
    ("aten::mm", [[4096, 4096], [4096, 32]], [("gemm", 1000.0)]),
    ("iclora_train::flash_forward", [], [("flash", 1500.0), ("sum", 500.0)]),
    ("aten::copy_", [], [("Memcpy DtoH (Device -> Pinned)", 9000.0)]),
]


def test_copies_beside_the_computation_are_not_taken_from_what_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_step, "traced", lambda _step: events(LAUNCHES))
    found = profile(lambda: None, 0.010)["ms"]
    assert found == {"copies": 9.0, "linear": 5.0, "attention": 2.0, "idle": 2.0, "adapter": 1.0}


def test_replayed_kernels_are_for_what_they_were_for_when_operators_launched_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profile_step, "traced", lambda _step: events(LAUNCHES))
    replayed = [("set up", 100.0), ("gemm", 6.0), ("gemm", 2.0), ("flash", 3.0), ("sum", 1.0), ("sum", 1.0)]
    found = profile(lambda: None, 0.120, replayed)
    assert found["ms"] == {"others": 100.0, "idle": 7.0, "linear": 6.0, "attention": 5.0, "adapter": 2.0}
    assert found["kernels"] == len(replayed)
    assert found["largest"]["aten::mm [[4096, 4096], [4096, 32]]"] == 2.0


def test_what_ran_is_told_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_step, "traced", lambda _step: events(LAUNCHES))
    names = ["gemm", "gemm", "flash", "sum", "Memcpy DtoH (Device -> Pinned)"]
    assert [name for name, _ in ran(lambda: None)] == names


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

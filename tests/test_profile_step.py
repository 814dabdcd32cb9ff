"""Where a step's time goes: what is counted as what, and what is left over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from scripts.profile_step import kind_of, profile


class Recorded:
    """A profiler that saw these events: name, shapes, microseconds on the GPU, and whether it is a kernel itself."""

    def __init__(self, events: list[tuple[str, list[list[int]], float, bool]]) -> None:
        self.events = events

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def key_averages(self, **_: Any) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                key=name,
                input_shapes=shapes,
                self_device_time_total=spent,
                device_type=DeviceType.CUDA if kernel else DeviceType.CPU,
            )
            for name, shapes, spent, kernel in self.events
        ]


def test_copies_beside_the_computation_are_not_taken_from_what_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        ("aten::mm", [[4096, 4096], [4096, 4096]], 6000.0, False),
        ("gemm", [], 6000.0, True),
        ("iclora_train::flash_forward", [], 2000.0, False),
        ("flash", [], 2000.0, True),
        ("aten::copy_", [], 9000.0, False),
        ("Memcpy DtoH (Device -> Pinned)", [], 9000.0, True),
    ]
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: Recorded(events))
    found = profile(lambda: None, 0.010)["ms"]
    assert found == {"copies": 9.0, "linear": 6.0, "attention": 2.0, "idle": 2.0, "others": 0.0}


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

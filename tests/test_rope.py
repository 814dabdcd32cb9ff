"""RopeCache: one table per position tensor, usable for training after sampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from iclora_train.ltx2.model import rope
from iclora_train.ltx2.model.rope import RopeCache, rope_table, rotate

ARGS = (16, 2, 10000.0, (20.0, 64.0, 64.0))  # width, heads, theta, max_position


def positions(n: int, start: float = 0.0) -> Tensor:
    """Positions (1,3,n,2): intervals of length 1, the first from `start`."""
    starts = start + torch.arange(3.0 * n).reshape(1, 3, n)
    return torch.stack([starts, starts + 1], dim=-1)


def test_a_table_is_computed_once_per_position_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []

    def counting(position: Tensor, *args: object) -> Tensor:
        computed.append(position.shape[2])
        return rope_table(position, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(rope, "rope_table", counting)
    cache, (a, b, c) = RopeCache(limit=2), (positions(4), positions(4, start=7.0), positions(6))
    for position in (a, a, b, a, c, c, b, a):
        assert torch.equal(cache.get(position, *ARGS, torch.float32), rope_table(position, *ARGS))
    assert computed == [4, 4, 6, 4]  # the third tensor evicted the first
    assert cache.get(a, *ARGS, torch.bfloat16).dtype == torch.bfloat16


def test_a_table_from_sampling_can_be_used_in_training() -> None:
    cache, position = RopeCache(), positions(4)
    with torch.inference_mode():
        cache.get(position, *ARGS, torch.float32)
    x = torch.randn(1, 4, 2, 8, requires_grad=True)
    rotate(x, cache.get(position, *ARGS, torch.float32)).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach())  # a rotation keeps lengths

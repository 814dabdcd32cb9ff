"""RotationCache of positions: made once for positions that stay, never taken for others'."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from iclora_train.ltx2.model import rope
from iclora_train.ltx2.model.rope import RotationCache, rotate, rotation

LIKE = (16, 2, 10000.0, (20.0, 64.0, 64.0))  # width, heads, theta, extents


def places(n: int, at: float = 0.0) -> Tensor:
    """Positions (1,3,n,2) from `at` on."""
    starts = at + torch.arange(3.0 * n).reshape(1, 3, n)
    return torch.stack([starts, starts + 1], dim=-1)


def test_positions_that_stay_are_rotated_once_and_each_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(position: Tensor, *like: object) -> Tensor:
        made.append(position.shape[2])
        return rotation(position, *like)  # type: ignore[arg-type]

    monkeypatch.setattr(rope, "rotation", counted)
    rotations, several = RotationCache(limit=2), [places(4), places(4, at=7.0), places(6)]
    for position in (several[0], several[0], several[1], several[0], several[2], several[2], several[1], several[0]):
        assert torch.equal(rotations.of(position, *LIKE, torch.float32), rotation(position, *LIKE))
    assert made == [4, 4, 6, 4]  # the third pushed out the first
    assert rotations.of(several[0], *LIKE, torch.bfloat16).dtype == torch.bfloat16


def test_what_was_rotated_for_a_clip_serves_training() -> None:
    rotations, position = RotationCache(), places(4)
    with torch.inference_mode():
        rotations.of(position, *LIKE, torch.float32)
    x = torch.randn(1, 4, 2, 8, requires_grad=True)
    rotate(x, rotations.of(position, *LIKE, torch.float32)).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach())  # a rotation keeps lengths

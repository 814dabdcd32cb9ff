"""What steps found, looked at later: the rows of looking at once, and an error that names the step of its cause."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from iclora_train.diffusion.loss import ClipLosses
from iclora_train.training.step_metrics import LOCALITY, DeferredMetrics, Row, bucket_name

SIGMA = torch.tensor([0.1, 0.3, 0.4, 0.9])


def alone(own: Tensor) -> Tensor:
    return own


def take(recent: DeferredMetrics) -> list[Row]:
    rows, diverged = recent.collect(alone)
    assert diverged is None
    return rows


def steps(
    count: int, bad: dict[tuple[int, int], float] | None = None, norms: dict[int, float] | None = None
) -> DeferredMetrics:
    """Steps 1, 2, ... of two batches with two clips each; `bad` losses by (step, clip)."""
    recent = DeferredMetrics()
    for step in range(1, count + 1):
        loss = torch.tensor([(bad or {}).get((step, i), step + i / 7) for i in range(4)])
        for part in (slice(0, 2), slice(2, 4)):
            recent.add([f"clip{i}" for i in range(4)[part]], ClipLosses(SIGMA[part], loss[part], None))
        recent.end_step(step, torch.tensor((norms or {}).get(step, step / 3)), lr=step / 10)
    return recent


def test_a_row_holds_the_mean_loss_of_a_step_and_of_its_noise_levels() -> None:
    (row,) = take(steps(1))
    assert row["loss"] == pytest.approx(1 + 6 / 7 / 4)
    assert [row[bucket_name(i)] for i in (0, 1, 3)] == pytest.approx([1, 1 + 1.5 / 7, 1 + 3 / 7])
    assert math.isnan(row["loss_0.50_0.75"])
    assert (row["step"], row["lr"]) == (1, 0.1)
    assert row["grad_norm"] == pytest.approx(1 / 3)


def test_locality_is_the_mean_over_the_batches_in_which_a_clip_had_a_region() -> None:
    recent, loss = DeferredMetrics(), torch.ones(2)
    for step, aparts in enumerate(([None, torch.tensor([0.0, 3.0])], [None, None]), 1):
        for apart in aparts:
            recent.add(["a", "b"], ClipLosses(SIGMA[:2], loss, apart))
        recent.end_step(step, torch.tensor(1.0), lr=0.1)
    first, second = take(recent)
    assert first[LOCALITY] == 1.5
    assert LOCALITY not in second


def test_looking_later_finds_the_same_bits() -> None:
    late = take(steps(9))
    assert [row["step"] for row in late] == list(range(1, 10))
    assert late[-1] | {"loss_0.50_0.75": 0} == take(steps(9))[-1] | {"loss_0.50_0.75": 0}
    recent, early = DeferredMetrics(), []
    for step in range(1, 10):
        recent.steps += steps(9).steps[step - 1 : step]
        early += take(recent)
    assert repr(early) == repr(late)
    assert take(recent) == []


def test_the_batches_of_a_step_under_way_wait_for_its_end() -> None:
    recent = steps(1)
    recent.add(["next"], ClipLosses(SIGMA[:1], torch.tensor([5.0]), None))
    assert len(take(recent)) == 1
    recent.end_step(2, torch.tensor(1.0), 0.1)
    assert take(recent)[0]["loss"] == 5


def test_the_first_step_that_is_not_finite_is_named_with_its_clips_and_the_rows_before_it_are_kept() -> None:
    rows, diverged = steps(6, bad={(4, 1): math.inf, (4, 3): math.nan, (5, 0): math.nan}).collect(alone)
    assert [row["step"] for row in rows] == [1, 2, 3]
    said = str(diverged)
    assert "the loss is not a finite number at step 4 (clip1 at sigma 0.300, clip3 at sigma 0.900)" in said
    assert "optim.optimizer.lr" in said
    assert "run=<name>" in said


def test_a_gradient_that_is_not_finite_is_named_with_its_step() -> None:
    rows, diverged = steps(6, norms={3: math.inf}).collect(alone)
    assert len(rows) == 2
    assert "the gradient is not finite at step 3" in str(diverged)


def test_every_process_stops_at_the_same_step_and_counts_all_clips() -> None:
    def with_another(own: Tensor) -> Tensor:
        return torch.stack([own, own + torch.tensor([[0.0], [2.0], [0.0]])])  # its losses are higher by 2

    rows, diverged = steps(3).collect(with_another)
    assert diverged is None
    assert rows[0]["loss"] == pytest.approx(2 + 6 / 7 / 4)

    def with_a_bad_one(own: Tensor) -> Tensor:
        other = own.clone()
        other[1, 5] = math.nan  # in its second step
        return torch.stack([own, other])

    rows, diverged = steps(3).collect(with_a_bad_one)
    assert len(rows) == 1
    assert "at step 2 (in another process)" in str(diverged)

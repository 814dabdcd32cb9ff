"""Deferred metrics: the same rows as reading every step at once, and an error that names the step that caused it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from iclora_train.diffusion.loss import ClipLosses
from iclora_train.training.step_metrics import LOCALITY, DeferredMetrics, Row, bucket_name

SIGMA = torch.tensor([0.1, 0.3, 0.4, 0.9])


def single_process(value: Any) -> list[Any]:
    return [value]


def collect(metrics: DeferredMetrics) -> list[Row]:
    rows, diverged = metrics.collect(single_process)
    assert diverged is None
    return rows


def steps(
    count: int, bad: dict[tuple[int, int], float] | None = None, norms: dict[int, float] | None = None
) -> DeferredMetrics:
    """Steps 1, 2, ... of two batches with two clips each. bad: loss by (step, clip). norms: gradient norm by step."""
    metrics = DeferredMetrics()
    for step in range(1, count + 1):
        loss = torch.tensor([(bad or {}).get((step, i), step + i / 7) for i in range(4)])
        for part in (slice(0, 2), slice(2, 4)):
            metrics.add([f"clip{i}" for i in range(4)[part]], ClipLosses(SIGMA[part], loss[part], None))
        metrics.end_step(step, torch.tensor((norms or {}).get(step, step / 3)), lr=step / 10)
    return metrics


def test_a_row_holds_the_mean_loss_of_a_step_and_of_its_noise_levels() -> None:
    (row,) = collect(steps(1))
    assert row["loss"] == pytest.approx(1 + 6 / 7 / 4)
    assert [row[bucket_name(i)] for i in (0, 1, 3)] == pytest.approx([1, 1 + 1.5 / 7, 1 + 3 / 7])
    assert math.isnan(row["loss_0.50_0.75"])
    assert (row["step"], row["lr"]) == (1, 0.1)
    assert row["grad_norm"] == pytest.approx(1 / 3)


def test_locality_is_the_mean_over_the_batches_in_which_a_clip_had_a_region() -> None:
    metrics, loss = DeferredMetrics(), torch.ones(2)
    for step, localities in enumerate(([None, torch.tensor([0.0, 3.0])], [None, None]), 1):
        for locality in localities:
            metrics.add(["a", "b"], ClipLosses(SIGMA[:2], loss, locality))
        metrics.end_step(step, torch.tensor(1.0), lr=0.1)
    first, second = collect(metrics)
    assert first[LOCALITY] == 1.5
    assert LOCALITY not in second


def test_reading_metrics_later_gives_the_same_bits() -> None:
    late = collect(steps(9))
    assert [row["step"] for row in late] == list(range(1, 10))
    assert late[-1] | {"loss_0.50_0.75": 0} == collect(steps(9))[-1] | {"loss_0.50_0.75": 0}
    metrics, early = DeferredMetrics(), []
    for step in range(1, 10):
        metrics.steps += steps(9).steps[step - 1 : step]
        early += collect(metrics)
    assert repr(early) == repr(late)
    assert collect(metrics) == []


def test_batches_of_an_unfinished_step_are_read_with_that_step() -> None:
    metrics = steps(1)
    metrics.add(["next"], ClipLosses(SIGMA[:1], torch.tensor([5.0]), None))
    assert len(collect(metrics)) == 1
    metrics.end_step(2, torch.tensor(1.0), 0.1)
    assert collect(metrics)[0]["loss"] == 5


def test_the_first_step_that_is_not_finite_is_named_with_its_clips_and_earlier_rows_are_returned() -> None:
    rows, diverged = steps(6, bad={(4, 1): math.inf, (4, 3): math.nan, (5, 0): math.nan}).collect(single_process)
    assert [row["step"] for row in rows] == [1, 2, 3]
    message = str(diverged)
    assert "the loss is not a finite number at step 4 (clip1 at sigma 0.300, clip3 at sigma 0.900)" in message
    assert "optim.optimizer.lr" in message
    assert "run=<name>" in message


def test_a_gradient_that_is_not_finite_is_named_with_its_step() -> None:
    rows, diverged = steps(6, norms={3: math.inf}).collect(single_process)
    assert len(rows) == 2
    assert "the gradient is not finite at step 3" in str(diverged)


def test_every_process_stops_at_the_same_step_and_counts_all_clips() -> None:
    """Losses of the second process are higher by 2; its batches are smaller."""

    def other(bad: dict[tuple[int, int], float] | None = None) -> DeferredMetrics:
        metrics = DeferredMetrics()
        for step in range(1, 4):
            for clip in range(2):
                loss = torch.tensor([(bad or {}).get((step, clip), step + 2.0)])
                metrics.add([f"other{clip}"], ClipLosses(SIGMA[-1:], loss, None))
            metrics.end_step(step, torch.tensor(1.0), lr=0.1)
        return metrics

    def with_other(metrics: DeferredMetrics) -> Callable[[Any], list[Any]]:
        values: list[Any] = []
        metrics.collect(lambda value: values.append(value) or [value])
        return lambda value: [value, *values]

    rows, diverged = steps(3).collect(with_other(other()))
    assert diverged is None
    assert rows[0]["loss"] == pytest.approx((4 * 1 + 6 / 7 + 2 * 3) / 6)
    rows, diverged = steps(3).collect(with_other(other({(2, 1): math.nan})))
    assert len(rows) == 1
    assert "at step 2 (other1 at sigma 0.900)" in str(diverged)

"""A symptom is raised by its own value only, and has a remedy."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from eval.judging.symptoms import SYMPTOMS, find_symptoms
from tests.scores_example import example


@pytest.fixture
def scores() -> dict[str, Any]:
    return deepcopy(example())


def levels(scores: dict[str, Any]) -> dict[str, str]:
    return {flag["symptom"]: flag["level"] for flag in find_symptoms(scores)}


def set_to(scores: dict[str, Any], path: str, mean: float) -> None:
    """Set `a/b/c` to an estimate with a narrow interval."""
    *parents, last = path.split("/")
    section = scores
    for key in parents:
        section = section[key]
    section[last] = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 12}


def test_a_good_run_has_no_symptom_and_gives_the_values(scores: dict[str, Any]) -> None:
    symptoms = find_symptoms(scores)
    assert [flag["symptom"] for flag in symptoms] == [symptom for symptom in SYMPTOMS if symptom != "memory"]
    assert {flag["level"] for flag in symptoms} == {"ok"}
    assert all(any(c.isdigit() for c in flag["reason"]) and not flag["remedy"] for flag in symptoms)


@pytest.mark.parametrize(
    ("path", "warn", "bad", "symptom"),
    [
        ("control/gain", 0.2, 0.02, "control not followed"),
        ("control/null", 1.0, 5.0, "strength without effect"),
        ("cells/adapter+reference/flicker", 2.5, 9.0, "flicker"),
        ("cells/adapter+reference/sharpness", 2.0, 3.0, "artefacts"),
        ("cells/adapter+reference/sharpness", 0.6, 0.3, "artefacts"),
    ],
)
def test_a_value_raises_only_its_own_symptom(
    scores: dict[str, Any], path: str, warn: float, bad: float, symptom: str
) -> None:
    before = levels(scores)
    for value, level in ((warn, "warn"), (bad, "bad")):
        set_to(scores, path, value)
        assert levels(scores) == {**before, symptom: level}
        raised = next(flag for flag in find_symptoms(scores) if flag["symptom"] == symptom)
        assert raised["remedy"]


def test_a_swap_that_changes_nothing_is_control_not_followed(scores: dict[str, Any]) -> None:
    set_to(scores, "control/swap_lost", 0.005)
    assert levels(scores)["control not followed"] == "bad"


def test_a_strength_curve_without_order_is_a_warning(scores: dict[str, Any]) -> None:
    set_to(scores, "control/curve/spearman", 0.1)
    assert levels(scores)["strength without effect"] == "warn"


def test_low_diversity_is_right_for_restoration_and_bad_for_structure(scores: dict[str, Any]) -> None:
    assert levels(scores)["too rigid"] == "ok"
    rigid = {**scores, "family": "structure"}
    assert levels(rigid)["too rigid"] == "bad"
    remedy = next(flag["remedy"] for flag in find_symptoms(rigid) if flag["symptom"] == "too rigid")
    assert "0.07" in remedy  # the strength of half the effect


@pytest.mark.parametrize(("peak", "level"), [(40, "ok"), (70, "warn"), (79, "bad")])
def test_memory_is_judged_if_it_was_measured(scores: dict[str, Any], peak: int, level: str) -> None:
    scores["provenance"]["memory"] = {"peak_bytes": peak << 30, "device_bytes": 80 << 30}
    assert levels(scores)["memory"] == level


def test_a_symptom_without_values_is_left_out(scores: dict[str, Any]) -> None:
    bare = {**scores, "control": None, "diversity": {}, "cells": {"adapter+reference": {}}}
    assert find_symptoms(bare) == []

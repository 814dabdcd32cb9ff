"""A symptom is raised by its own value only, and has a remedy."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from eval.judging.harm import harm, outliers
from eval.judging.symptoms import SYMPTOMS, find_symptoms
from eval.statistics.estimates import estimate
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
        ("cells/adapter+reference/warp_error", 2.0, 9.0, "flicker"),
        ("cells/adapter+reference/noise", 2.0, 4.5, "noise"),
        ("cells/adapter+reference/level_slope", 0.92, 0.86, "wrong levels"),
        ("cells/adapter+reference/level_slope", 1.08, 1.16, "wrong levels"),
        ("cells/adapter+reference/level_offset", 10, 18, "wrong levels"),
        ("cells/adapter+reference/level_bend", -1.9, -3.7, "wrong levels"),
        ("cells/adapter+reference/chroma_error", 3.0, 5.0, "wrong colours"),
        ("cells/adapter+reference/spatial_shift", 0.2, 1.0, "shifted picture"),
        ("cells/adapter+reference/motion", 0.4, 0.1, "frozen"),
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


def test_a_range_error_is_named_by_its_cause(scores: dict[str, Any]) -> None:
    for slope, offset, cause in (
        (0.858, 16.3, "written as 16..235"),
        (1.16, -18, "16..235 was read"),
        (0.8, 0, "gamma"),
    ):
        set_to(scores, "cells/adapter+reference/level_slope", slope)
        set_to(scores, "cells/adapter+reference/level_offset", offset)
        flag = next(flag for flag in find_symptoms(scores) if flag["symptom"] == "wrong levels")
        assert flag["level"] == "bad"
        assert cause in flag["remedy"]


def flag_of(scores: dict[str, Any], symptom: str) -> dict[str, Any]:
    return next(dict(flag) for flag in find_symptoms(scores) if flag["symptom"] == symptom)


def set_psnr(scores: dict[str, Any], values: list[float]) -> None:
    """The PSNR of the windows of adapter + reference, with its mean and the harm that follows."""
    scores["windows"]["adapter+reference"]["psnr"] = values
    scores["cells"]["adapter+reference"]["psnr"] = dict(estimate(values, [clip["source"] for clip in scores["clips"]]))
    scores["harm"] = harm(scores)


def test_one_wrong_file_is_named_though_the_mean_is_good(scores: dict[str, Any]) -> None:
    values = list(scores["windows"]["adapter+reference"]["psnr"])
    values[4] = 10.0  # as near as another recording's target
    set_psnr(scores, values)
    flag = flag_of(scores, "outliers")
    assert flag["level"] == "bad"
    assert "clip-00004 10.00" in flag["reason"]


def test_one_wrong_file_among_copies_of_the_targets_is_named_and_so_are_the_copies(scores: dict[str, Any]) -> None:
    values = [100.0] * len(scores["clips"])
    values[7] = 10.0
    set_psnr(scores, values)
    flag = flag_of(scores, "outliers")
    assert flag["level"] == "bad"
    assert "10 of 11 windows equal their target exactly" in flag["reason"]
    assert "clip-00007 10.00" in flag["reason"]


def test_a_few_windows_that_lose_against_their_input_are_named(scores: dict[str, Any]) -> None:
    values = [psnr + 3 for psnr in scores["windows"]["input"]["psnr"]]
    values[2] -= 3 + 6  # 6 dB below the input
    values[8] -= 3 + 0.4  # below the limit of what is seen
    set_psnr(scores, values)
    assert scores["harm"] == {
        **{"metric": "psnr", "limit": 0.5, "n": 11, "share": pytest.approx(1 / 11), "windows": ["clip-00002"]},
        **{"mean_loss": pytest.approx(6), "worst_loss": pytest.approx(6)},
    }
    flag = flag_of(scores, "worse than the input")
    assert flag["level"] == "ok"  # one of eleven
    assert "6.0 dB at worst (clip-00002)" in flag["reason"]
    set_psnr(scores, [psnr - (6 if i % 3 == 0 else -3) for i, psnr in enumerate(scores["windows"]["input"]["psnr"])])
    assert flag_of(scores, "worse than the input")["level"] == "bad"


def test_a_loss_against_an_input_without_damage_is_explained(scores: dict[str, Any]) -> None:
    """Black frames of an input equal their target and count 100 dB; those of an output do not, and look the same."""
    values = [psnr + 3 for psnr in scores["windows"]["input"]["psnr"]]
    values[2] -= 3 + 6
    set_psnr(scores, values)
    assert "equal the target" not in flag_of(scores, "worse than the input")["reason"]
    scores["equal_frames"] = {"rows": {"input": [0.0, 0.0, 0.2] + [0.0] * 8}, "changed": {}}
    assert "in 1 of them frames of the input equal" in flag_of(scores, "worse than the input")["reason"]


@pytest.mark.parametrize(
    ("metric", "value", "fault"),
    [
        ("flicker", 9.0, "flicker"),
        ("warp_error", 9.0, "flicker"),
        ("motion", 0.1, "frozen"),
        ("noise", 4.7, "noise"),
        ("level_slope", 0.86, "wrong levels"),
        ("level_offset", 16.0, "wrong levels"),
        ("chroma_error", 5.0, "wrong colours"),
        ("spatial_shift", 1.0, "shifted picture"),
    ],
)
def test_a_fault_of_one_window_is_named_though_the_mean_is_good(
    scores: dict[str, Any], metric: str, value: float, fault: str
) -> None:
    """3 % of noise in one of eleven windows raises the mean by 0.4 levels, which is no symptom."""
    before = levels(scores)
    scores["windows"]["adapter+reference"][metric][6] = value
    assert levels(scores) == {**before, "single windows": "warn"}
    assert (
        f"1 of 11 windows have a fault that the mean of the others hides (clip-00006: {fault})"
        in (flag_of(scores, "single windows")["reason"])
    )
    free = {**scores, "family": "structure"}
    is_fault = metric in ("flicker", "warp_error", "motion", "noise")
    assert levels(free)["single windows"] == ("warn" if is_fault else "ok")


def test_a_fault_of_all_windows_is_told_once(scores: dict[str, Any]) -> None:
    scores["windows"]["adapter+reference"]["noise"] = [4.7] * 11
    set_to(scores, "cells/adapter+reference/noise", 4.7)
    assert (levels(scores)["noise"], levels(scores)["single windows"]) == ("bad", "ok")


def test_an_output_that_looks_like_the_target_of_another_recording_is_named(scores: dict[str, Any]) -> None:
    """Also where the metrics of a control task spread so much that a wrong file is no outlier."""
    scores["likeness"]["own"][4] = 0.1  # the other: 0.2, which may be chance
    assert levels(scores)["exchanged clips"] == "ok"
    scores["likeness"]["own"][4], scores["likeness"]["other"][4] = 0.1, 0.9
    flag = flag_of(scores, "exchanged clips")
    assert flag["level"] == "bad"
    assert "10 of 11 outputs look most like their own target; 1 look like another one" in flag["reason"]
    assert f"clip-00004 like {scores['likeness']['nearest'][4]}" in flag["reason"]
    scores["likeness"]["own"] = [0.25] * 11  # outputs whose layout follows no target, e.g. of a control of motion
    assert levels(scores)["exchanged clips"] == "ok"


def test_no_harm_without_an_input_to_compare_with(scores: dict[str, Any]) -> None:
    assert harm({**scores, "family": "structure"}) is None
    assert scores["harm"]["windows"] == []
    assert (scores["harm"]["mean_loss"], scores["harm"]["worst_loss"]) == (None, 0)


def test_outliers_are_found_by_median_and_mad() -> None:
    assert outliers([30, 31, 29, 30.5, 10, None, 29.5]) == [4]
    assert outliers([1, 1.1, 0.9, 1, 7], sign=-1) == [4]
    assert outliers([30, 31, 29, 30.5, 60]) == []  # better than the others
    assert outliers([30, 10]) == []
    assert outliers([100.0] * 23 + [10.0]) == [23]
    spread = np.random.default_rng(0).normal(30, 4, (200, 24))
    assert np.mean([len(outliers(row.tolist())) > 0 for row in spread]) < 0.1  # normal values have hardly any


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
    bare = {**scores, "control": None, "diversity": {}, "cells": {"adapter+reference": {}}, "windows": {}, "harm": None}
    bare.pop("likeness")
    assert find_symptoms(bare) == []

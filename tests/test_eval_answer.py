"""The first sentence of a report: every outcome of the gates in words, and where the output is worse."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from eval.clips.conditions import (
    ADAPTER_REFERENCE,
    BASE,
    BASE_REFERENCE,
    CEILING,
    CLASSIC,
    FLOOR,
    INPUT,
    SWAPPED,
)
from eval.judging.answer import PHRASES, answer
from eval.judging.claims import Evidence, claims
from eval.judging.verdicts import gates_outcome, judge, unmeasured_gates
from iclora_train.config import Thresholds

RECORDINGS = [f"tape {i // 2}" for i in range(16)]
SPREAD = np.tile(np.repeat([-0.2, 0.2, 0.1, -0.1], 2), 2)  # dB, between recordings
METRICS = {
    **{key: {"title": "PSNR", "unit": "dB", "better": "high"} for key in ("psnr", "psnr_y", "psnr_inside")},
    "psnr_outside": {"title": "PSNR outside", "unit": "dB", "better": "high"},
    "chroma_error": {"title": "chroma error", "unit": "levels", "better": "low"},
    "edge_f1": {"title": "edge F1", "unit": "", "better": "high"},
    "track_error": {"title": "track error", "unit": "px", "better": "low"},
}


def judged(family: str, adherence: str, rows: dict[str, dict[str, Any]], recordings: list[str]) -> dict[str, Any]:
    """The parts of scores.json from which the sentence is made. rows: condition -> metric -> mean, or values."""
    table = {
        row: {m: np.asarray(v, float) if np.ndim(v) else v + 0 * SPREAD[: len(recordings)] for m, v in metrics.items()}
        for row, metrics in rows.items()
    }
    low = frozenset(key for key, metric in METRICS.items() if metric["better"] == "low")
    titles = {key: metric["title"] for key, metric in METRICS.items()}
    evidence = Evidence(table, [], {}, recordings, adherence, lower_is_better=low, titles=titles)
    verdicts, missing = judge(family, evidence, Thresholds()), unmeasured_gates(family, evidence, Thresholds())
    return {
        **{"task": "deblur", "family": family, "primary": adherence, "adherence": adherence, "metrics": METRICS},
        "adapter": {"path": "runs/deblur/adapter.safetensors", "metadata": {}},
        "clips": [{"key": f"w-{i:02d}", "source": source} for i, source in enumerate(recordings)],
        "windows": {row: {m: v.tolist() for m, v in metrics.items()} for row, metrics in table.items()},
        "verdicts": verdicts,
        "gates": {"outcome": gates_outcome(verdicts, missing), "not_measured": missing},
    }


def restoration(count: int = 16, **psnr: Any) -> dict[str, Any]:
    """An evaluation of a restoration adapter; a row is left out by None."""
    rows = {ADAPTER_REFERENCE: 30 + SPREAD, INPUT: 28.0, BASE_REFERENCE: 26.0, CLASSIC: 29.5, SWAPPED: 10.0, BASE: 9.0}
    rows |= {name.replace("_", " "): value for name, value in psnr.items()}
    table = {row: {"psnr": np.broadcast_to(v, 16)[:count]} for row, v in rows.items() if v is not None}
    return judged("restoration", "psnr", table, RECORDINGS[:count])


NO_LOSS = "; it is worse than its input by more than 0.5 dB in none of 16 windows."


def test_an_adapter_that_is_better_than_everything() -> None:
    assert answer(restoration()) == (
        "deblur is better than its input (+2.0 dB, 95 % +1.9 to +2.1 over 8 recordings), than the best classic filter "
        "(+0.5 dB, 95 % +0.4 to +0.6) and than the base with the reference (+4.0 dB, 95 % +3.9 to +4.1) and follows "
        "its own reference" + NO_LOSS
    )


def test_bad_symptoms_are_named_after_gates_that_hold() -> None:
    """Of what neither a gate nor the count of windows says; a warning is left to the report."""
    levels = {"control not followed": "bad", "noise": "bad", "flicker": "warn", "wrong levels": "bad", "memory": "bad"}
    scores = restoration() | {"flags": [{"symptom": name, "level": level} for name, level in levels.items()]}
    expected = answer(restoration())[:-1] + "; its clips have bad symptoms: noise and wrong levels."
    assert answer(scores) == expected
    assert answer(restoration() | {"flags": []}) == answer(restoration())


def test_windows_that_are_worse_than_their_input_are_counted_and_the_worst_is_named() -> None:
    output = 31 + SPREAD
    output[[3, 8, 9]] = 27.2, 26.8, 27.3
    text = answer(restoration(**{ADAPTER_REFERENCE: output}))
    assert text.endswith("worse than its input by more than 0.5 dB in 3 of 16 windows, most in w-08 (by 1.2 dB).")


@pytest.mark.parametrize(
    ("psnr", "words"),
    [
        (28.3, "is not better than its input (+0.3 dB, 95 % +0.2 to +0.4 over 8 recordings, required ≥ 0.7 dB)"),
        (28.0, "is not better than its input (+0.0 dB, 95 % -0.1 to +0.1 over 8 recordings)"),
        (26.9, "is worse than its input (-1.1 dB, 95 % -1.2 to -1.0 over 8 recordings)"),
    ],
)
def test_a_gain_that_is_too_small_or_a_loss_is_called_so(psnr: float, words: str) -> None:
    text = answer(restoration(**{ADAPTER_REFERENCE: psnr + SPREAD, CLASSIC: None, BASE_REFERENCE: 20.0}))
    assert text.startswith(f"deblur {words}; it is better than the base with the reference (")
    assert "and follows its own reference" in text


def test_what_is_not_decided_is_said_to_be_open() -> None:
    noisy = 29 + 4 * np.sin(np.arange(16) // 2)
    text = answer(restoration(**{INPUT: noisy - 1, CLASSIC: noisy}))
    assert re.match(
        r"whether deblur is better than its input \(\+1\.7.*\) or than the best classic filter \(\+0\.7.*\) is not "
        r"decided; it is better than the base with the reference \(\+4\.0 dB, .*\) and follows its own reference; "
        r"it is worse",
        text,
    )


def test_too_few_clips_decide_nothing() -> None:
    text = answer(restoration(count=4))
    assert text.startswith("4 windows of 2 recordings are too few to decide whether deblur is better than its input (")
    assert "is better than its input (+2.0 dB" in text
    assert "decided" not in text
    assert "or follows its own reference; it is worse than its input by more than 0.5 dB in none of 4 windows." in text


def test_clips_of_another_program_and_no_adapter_are_named() -> None:
    videos = restoration(**{BASE_REFERENCE: None, BASE: None, SWAPPED: None})
    videos["adapter"] = {"path": "clips/other model", "metadata": {"videos_sha256": "ab"}}
    assert answer(videos) == (
        "deblur in the clips of other model is better than its input (+2.0 dB, 95 % +1.9 to +2.1 over 8 recordings) "
        "and than the best classic filter (+0.5 dB, 95 % +0.4 to +0.6); it was not compared with the base with the "
        "reference or another clip's reference" + NO_LOSS
    )
    none = restoration(**{BASE_REFERENCE: 30 + SPREAD, ADAPTER_REFERENCE: 30 + SPREAD})
    none["adapter"]["path"] = "none"
    assert answer(none).startswith("deblur without an adapter is better than its input")
    assert "not better than the base with the reference (+0.0 dB, 95 % +0.0 to +0.0" in answer(none)


def test_nothing_was_judged() -> None:
    unjudged = {**restoration(), "verdicts": [], "gates": {"outcome": "inconclusive", "not_measured": ["swap_drop"]}}
    assert answer(unjudged) == ("deblur was not judged: it was not compared with another clip's reference" + NO_LOSS)


def test_a_control_task_follows_its_reference_better_than_base_and_another_clip() -> None:
    rows: dict[str, dict[str, Any]] = {
        ADAPTER_REFERENCE: {"edge_f1": 0.8 + SPREAD / 10, "edge_gap": 0.5 + SPREAD / 10, "psnr": 20 + SPREAD},
        BASE_REFERENCE: {"edge_f1": 0.4, "psnr": 9.0},
        BASE: {"edge_f1": 0.3, "psnr": 9.0},
        SWAPPED: {"edge_f1": 0.3, "psnr": 9.0},
        CEILING: {"edge_f1": 0.95, "psnr": 35.0},
        FLOOR: {"edge_f1": 0.28, "psnr": 9.0},
        INPUT: {"edge_f1": 1.0, "psnr": 5.0},
    }
    control = judged("structure", "edge_f1", rows, RECORDINGS)
    assert answer(control) == (
        "deblur follows its reference beyond chance (edge F1 above chance 0.50, 95 % 0.49 to 0.51 over 8 recordings), "
        "is nearer to the target than the base with the reference (+11.0 dB, 95 % +10.9 to +11.1) and changes with "
        "the reference; its edge F1 is worse than that of the base alone in none of 16 windows."
    )
    rows[BASE]["edge_f1"] = np.where(np.arange(16) == 5, 0.9, 0.3)
    text = answer(judged("structure", "edge_f1", rows, RECORDINGS))
    assert text.endswith("worse than that of the base alone in 1 of 16 windows, most in w-05 (by 0.09).")


def test_a_metric_that_is_better_when_low_is_worse_by_a_positive_amount_in_its_unit() -> None:
    rows: dict[str, dict[str, Any]] = {
        ADAPTER_REFERENCE: {"track_error": 2.0, "psnr": 6 + SPREAD},
        BASE_REFERENCE: {"track_error": 5.0, "psnr": 9.0},
        BASE: {"track_error": np.where(np.arange(16) == 5, 1.0, 6.0), "psnr": 9.0},
        INPUT: {"track_error": 1.0, "psnr": 5.0},
    }
    text = answer(judged("structure", "track_error", rows, RECORDINGS))
    assert "is further from the target than the base with the reference (-3.0 dB" in text
    assert text.endswith(
        "track error is worse than that of the base alone in 1 of 16 windows, most in w-05 (by 1.00 px)."
    )
    rows[BASE]["track_error"] = np.full(16, np.nan)
    unmeasured = judged("structure", "track_error", rows, RECORDINGS)
    unmeasured["windows"][BASE]["track_error"] = [None] * 16
    assert "the base alone" not in answer(unmeasured)


def of_controls(counts: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """An evaluation of a set with several controls that has only the gate `follows`, inconclusive for each control.

    counts: control -> windows and recordings.
    """
    scores = restoration()
    gate = next(verdict for verdict in scores["verdicts"] if verdict["name"] == "gain_over_input")
    gates = []
    for control, (windows, recordings) in counts.items():
        value = {**gate["value"], "mean": 0.4, "low": -0.1, "high": 0.9}
        estimates = {"value": {**value, "n": windows}, "by_source": {**value, "n": recordings}}
        gates.append({**gate, **estimates, "name": f"follows.{control}", "outcome": "inconclusive"})
    return {**scores, "verdicts": gates, "gates": {"outcome": "inconclusive", "not_measured": []}}


def test_controls_with_too_few_clips_are_named_apart_from_those_with_enough() -> None:
    value = "share of the way from chance to the VAE 0.40, 95 % -0.10 to 0.90"
    text = answer(of_controls({"canny": (16, 8), "pose": (4, 2), "depth": (12, 6), "tracks": (12, 6), "flow": (9, 2)}))
    assert text == (
        f"whether deblur follows its reference for canny ({value} over 8 recordings), its reference for depth ({value} "
        f"over 6 recordings) or its reference for tracks ({value}) is not decided; 4 windows of 2 recordings are too "
        f"few to decide whether it follows its reference for pose ({value} over 2 recordings); 9 windows of 2 "
        f"recordings are too few to decide whether it follows its reference for flow ({value} over 2 recordings)"
        + NO_LOSS
    )


def test_the_count_is_given_again_where_it_changes_in_the_order_of_the_text() -> None:
    scores = of_controls({"canny": (16, 8), "pose": (12, 6)})
    picture = [{**gate, "name": gate["name"].replace("follows", "picture")} for gate in scores["verdicts"]]
    scores["verdicts"] = [verdict for pair in zip(scores["verdicts"], picture, strict=True) for verdict in pair]
    counts = re.findall(r"for (\w+) \([^)]*over (\d) recordings", answer(scores))
    assert counts == [("canny", "8"), ("pose", "6"), ("canny", "8"), ("pose", "6")]


def test_a_gate_of_one_control_that_was_not_measured_is_not_taken_for_those_of_the_others() -> None:
    scores = of_controls({"canny": (16, 8)})
    scores["gates"]["not_measured"] = ["picture.pose", "swap_floor.pose", "new_gate.pose"]
    assert (
        "it was not compared with the base with the reference for pose, another clip's reference for pose or the gate "
        "new_gate.pose;" in answer(scores)
    )


def test_colours_are_compared_as_a_ratio() -> None:
    rows = {
        ADAPTER_REFERENCE: {"chroma_error": 6 + SPREAD, "psnr_y": 30.0, "psnr": 24 + SPREAD},
        INPUT: {"chroma_error": 10.0, "psnr_y": 30.0, "psnr": 22.0},
        BASE_REFERENCE: {"chroma_error": 5.0, "psnr_y": 30.0, "psnr": 22.0},
        SWAPPED: {"chroma_error": 10.0, "psnr_y": 10.0, "psnr": 9.0},
        CEILING: {"chroma_error": 1.0, "psnr_y": 35.0, "psnr": 34.0},
    }
    assert answer(judged("colorize", "psnr_y", rows, RECORDINGS)) == (
        "deblur is nearer to the right colours than its input (chroma error relative to it 0.60, 95 % 0.59 to 0.61 "
        "over 8 recordings) and follows its own reference; it is further from the right colours than the base with "
        "the reference (chroma error relative to it 1.20, 95 % 1.17 to 1.23 over 8 recordings)" + NO_LOSS
    )


@pytest.mark.parametrize("family", ["restoration", "colorize", "structure", "edit"])
def test_every_gate_has_words(family: str) -> None:
    metrics = {key: np.zeros(16) for key in (*METRICS, "edge_gap")}
    rows = dict.fromkeys((ADAPTER_REFERENCE, INPUT, BASE_REFERENCE, BASE, CLASSIC, SWAPPED, CEILING, FLOOR), metrics)
    for adherence in ("edge_f1", "track_error"):
        evidence = Evidence(rows, [], {}, RECORDINGS, adherence)
        gates = {claim.name for claim in claims(family, evidence, Thresholds()) if claim.kind == "gate"}
        assert gates <= set(PHRASES)


def test_a_gate_without_words_is_called_by_its_name() -> None:
    scores = deepcopy(restoration())
    scores["verdicts"][0] = {**scores["verdicts"][0], "name": "new_gate"}
    assert re.match(r"deblur meets the gate new_gate \(new_gate 2\.00, 95 %", answer(scores))

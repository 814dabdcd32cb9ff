"""Verdicts on constructed values: a good adapter passes, and each fault fails the claims that test for it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from eval.judging.claims import Bound
from eval.judging.control import collect_evidence, control_scores, mask_scores
from eval.judging.evidence import Evidence
from eval.judging.verdicts import Verdict, gates_outcome, judge, unmeasured_gates
from eval.metrics import Metric
from eval.scores import headline
from eval.scoring.results import Results
from eval.statistics.estimates import Values
from iclora_train.config import ConfigError, Thresholds

N = 12
STRENGTHS = (0.0, 0.1, 0.5, 1.0)
LOWER = {"chroma_error", "track_error"}
RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 0.02, (64, N))  # different for every row, far below the effects


def rows(metric: str, levels: Mapping[str, float], spread: float = 1.0) -> dict[str, dict[str, Values]]:
    """Row -> metric -> values of N windows around a level."""
    return {row: {metric: level + spread * NOISE[i]} for i, (row, level) in enumerate(levels.items())}


def merged(*tables: dict[str, dict[str, Values]]) -> dict[str, dict[str, Values]]:
    return {row: {k: v for table in tables for k, v in table.get(row, {}).items()} for table in tables for row in table}


def make_results(
    cells: dict[str, dict[str, Values]],
    curve: list[float],
    metric: str,
    disturbance: float = 0.1,
    null: float = 0.0,
    fade: tuple[float, float] = (0.2, 1.0),
) -> Results:
    """Results with a strength curve of `metric` (from 0 up; strength 1 is the row adapter+reference).

    disturbance: of the half mask. null: difference between strength 0 and no reference. fade: shares of the effect in
    the first and the last latent frame.
    """
    for i, (strength, level) in enumerate(zip(STRENGTHS[:-1], curve, strict=True)):
        cells[f"strength {strength:g}"] = {metric: level + 0.01 * NOISE[40 + i]}
    ones = np.ones(N)
    dropped = 20 + NOISE[50]
    changed = {"kept": disturbance * dropped, "dropped": dropped, "null": null * ones, "drift": ones}
    changed |= {"inside": ones, "outside": ones, "full_inside": ones, "full_outside": ones}
    shares = np.stack([fade[0] + NOISE[51], 0.7 + NOISE[52], fade[1] + NOISE[53]], axis=1)  # (windows, latent frames)
    by_latent_frame = {
        "adapter+reference": 30 + 0 * shares,
        "strength 0": 10 + 0 * shares,
        "fade mask": 10 + 20 * shares,
    }
    donor = {metric: cells["swapped"][metric] + 5}
    return Results(rows=cells, donor=donor, changes=changed, by_latent_frame=by_latent_frame, clips=N)


def evidence_of(results: Results, primary: str, recordings: list[str] | None = None) -> Evidence:
    """The evidence; by default, window i belongs to recording i % 4."""
    names = {metric for row in results.rows.values() for metric in row}
    metrics = [Metric(name, name, "", "low" if name in LOWER else "high", "picture") for name in sorted(names)]
    return collect_evidence(results, STRENGTHS, recordings or [f"clip{i % 4}" for i in range(N)], metrics, primary)


def failing(family: str, results: Results, primary: str, thresholds: Thresholds | None = None) -> set[str]:
    verdicts = judge(family, evidence_of(results, primary), thresholds or Thresholds())
    assert all(verdict["by_source"]["n"] == 4 for verdict in verdicts)
    return {verdict["name"] for verdict in verdicts if not verdict["passed"]}


DEBLUR = {  # rounded scores of a good adapter on nano
    **{"adapter+reference": 31.2, "base+reference": 26.4, "base": 12.0, "adapter": 12.4, "swapped": 10.0},
    **{"input": 28.1, "classic filter": 29.5, "ceiling": 38.1, "floor": 9.5},
}
DEBLUR_CURVE = [12.4, 27.9, 30.9]


def deblur(
    curve: list[float] | None = None,
    disturbance: float = 0.1,
    null: float = 0.0,
    fade: tuple[float, float] = (0.2, 1.0),
    **levels: float,
) -> Results:
    names = {"classic_filter": "classic filter"}
    changed = {names.get(key, key.replace("_", "+")): level for key, level in levels.items()}
    return make_results(rows("psnr", {**DEBLUR, **changed}), curve or DEBLUR_CURVE, "psnr", disturbance, null, fade)


def test_a_good_restoration_adapter_passes_every_claim() -> None:
    assert failing("restoration", deblur(), "psnr") == set()
    names = {verdict["name"] for verdict in judge("restoration", evidence_of(deblur(), "psnr"), Thresholds())}
    assert names >= {"gain_over_input", "swap_drop", "control_gain", "curve_monotone", "fade_follows", "null_change"}


@pytest.mark.parametrize(
    ("results", "fails"),
    [
        # untrained, or no adapter: every condition equals the base
        (
            deblur([12.0, 24.0, 26.0], adapter_reference=26.4, adapter=12.0),
            {"gain_over_input", "gain_over_classic", "gain_over_base"},
        ),
        (deblur(classic_filter=32.0), {"gain_over_classic"}),  # better than the input, like a filter without a model
        # trained on shuffled pairs: every reference is ignored
        (
            deblur([13.0, 13.0, 13.0], disturbance=1.0, adapter_reference=13.0, adapter=13.0, swapped=13.0),
            {
                *("gain_over_input", "gain_over_classic", "gain_over_base", "swap_drop", "control_gain"),
                *("strength_monotone", "curve_monotone", "mask_local"),
            },
        ),
        # trained with the wrong factor: the reference acts, but in the wrong place
        (
            deblur([12.4, 15.0, 16.0], adapter_reference=16.5, swapped=9.5),
            {"gain_over_input", "gain_over_classic", "gain_over_base", "swap_drop", "control_gain"},
        ),
        (deblur(swapped=24.0), {"swap_drop"}),  # follows the caption instead of the reference
        (deblur([12.4, 31.5, 30.9]), {"strength_monotone"}),  # PSNR falls between two rising strengths
        (deblur([31.0, 12.0, 31.1]), {"strength_monotone", "curve_monotone"}),
        (deblur(disturbance=0.4), {"mask_local"}),
        (deblur(fade=(0.95, 1.0)), {"fade_follows"}),  # the mask has no effect over time
        (deblur(null=5.0), {"null_change"}),  # the strength path is broken
    ],
)
def test_a_bad_restoration_adapter_fails_the_matching_claims(results: Results, fails: set[str]) -> None:
    assert failing("restoration", results, "psnr") == fails


def test_fade_is_not_judged_if_the_reference_has_no_effect_in_a_latent_frame() -> None:
    still = deblur()
    for levels in still.by_latent_frame.values():
        levels[:, 0] = 31.0  # the same under every condition
    names = {verdict["name"] for verdict in judge("restoration", evidence_of(still, "psnr"), Thresholds())}
    assert "curve_monotone" in names
    assert "fade_follows" not in names


def gain_over_input(gains: Values) -> Verdict:
    """The verdict on PSNR gains over the input, per window; window i belongs to recording i % 4."""
    results = deblur()
    results.rows["adapter+reference"]["psnr"] = results.rows["input"]["psnr"] + gains
    return next(v for v in judge("restoration", evidence_of(results, "psnr"), Thresholds()) if v["p"] is not None)


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        (np.full(N, 2.0), "holds"),
        (np.full(N, 0.5), "fails"),  # above 0 and below the threshold
        (np.array([20.0, *(-0.1 for _ in range(N - 1))]), "inconclusive"),  # one lucky window
        (np.tile([9.0, 0.1, 0.1, 0.1], 3), "inconclusive"),  # one lucky recording, in all of its windows
        (np.tile([0.4, 1.0, 0.9, 0.8], 3), "inconclusive"),  # surely above 0, but around the threshold
    ],
)
def test_a_gain_is_tested_against_its_threshold(gains: Values, outcome: str) -> None:
    verdict = gain_over_input(gains + 0.01 * NOISE[60])
    assert (verdict["name"], verdict["kind"]) == ("gain_over_input", "gate")
    assert (verdict["outcome"], verdict["passed"]) == (outcome, outcome == "holds")
    assert verdict["p"] is not None
    assert verdict["p_holm"] is not None
    assert verdict["p_holm"] >= verdict["p"]
    assert (verdict["p"] < 0.025) == (outcome == "holds")


@pytest.mark.parametrize(("t", "outcome"), [(3.3, "inconclusive"), (5.0, "holds")])
def test_a_gate_that_holds_alone_may_be_chance(t: float, outcome: str) -> None:
    """With 3 degrees of freedom an interval ends at t = 3.18; the first of three gates needs p < 0.05 / 3, t = 3.74."""
    results = deblur(swapped=27.0)
    del results.rows["classic filter"]  # without it there are three gates
    spread = np.tile([-1.0, 0.0, 1.0, 0.0], 3)  # standard error of the four recordings: 0.408
    results.rows["adapter+reference"]["psnr"] = results.rows["input"]["psnr"] + 0.7 + t * 0.408 + spread
    results.rows["base+reference"] = results.rows["adapter+reference"]
    verdicts = judge("restoration", evidence_of(results, "psnr"), Thresholds())
    assert [verdict["outcome"] for verdict in verdicts[:3]] == [outcome, "fails", "fails"]
    assert verdicts[0]["value"]["low"] is not None
    assert verdicts[0]["value"]["low"] > 0.7


CHROMA = {
    "adapter+reference": 8.0,
    "base+reference": 10.0,
    "base": 20.0,
    "swapped": 18.0,
    "input": 10.0,
    "ceiling": 1.0,
}
LUMA = {"adapter+reference": 34.0, "base+reference": 34.0, "swapped": 12.0, "ceiling": 35.0}


@pytest.mark.parametrize(
    ("chroma", "luma", "fails"),
    [
        ({"adapter+reference": 7.0}, {}, set()),
        ({"adapter+reference": 8.5}, {}, {"chroma_ratio", "chroma_over_base"}),
        ({"adapter+reference": 7.0, "base+reference": 8.5}, {}, {"base_grey", "chroma_over_base"}),  # little better
        ({"adapter+reference": 7.0, "base+reference": 11.5}, {}, {"base_grey"}),
        ({"adapter+reference": 7.0}, {"adapter+reference": 31.0}, {"luma_kept"}),
        ({"adapter+reference": 10.0}, {}, {"chroma_ratio", "chroma_over_base"}),  # untrained
    ],
)
def test_colorize_verdicts(chroma: dict[str, float], luma: dict[str, float], fails: set[str]) -> None:
    cells = merged(rows("chroma_error", {**CHROMA, **chroma}), rows("psnr_y", {**LUMA, **luma}))
    assert failing("colorize", make_results(cells, [20.0, 14.0, 9.0], "chroma_error"), "chroma_error") == fails


EDGES = {"adapter+reference": 0.51, "base": 0.16, "swapped": 0.19, "ceiling": 0.93, "floor": 0.185, "input": 0.3}
PICTURE = {"adapter+reference": 12.1, "base+reference": 6.8}


@pytest.mark.parametrize(
    ("edges", "gap", "psnr", "curve", "fails"),
    [
        ({}, 0.33, 12.1, [0.17, 0.35, 0.48], set()),
        ({}, 0.33, 9.0, [0.17, 0.35, 0.48], {"picture"}),  # repaints the drawing like the base
        ({"swapped": 0.45}, 0.33, 12.1, [0.17, 0.35, 0.48], {"swap_floor"}),
        (
            {"adapter+reference": 0.18, "swapped": 0.18},
            0.0,
            12.1,
            [0.181, 0.179, 0.18],
            {"edge_gap", "control_gain", "swap_floor", "curve_monotone"},
        ),
    ],
)
def test_edge_verdicts(edges: dict[str, float], gap: float, psnr: float, curve: list[float], fails: set[str]) -> None:
    cells = merged(
        rows("edge_f1", {**EDGES, **edges}, 0.1),
        rows("edge_gap", {"adapter+reference": gap}),
        rows("psnr", {**PICTURE, "adapter+reference": psnr}),
    )
    assert failing("structure", make_results(cells, curve, "edge_f1"), "edge_f1") == fails


TRACKS = {"adapter+reference": 3.0, "base": 20.0, "swapped": 19.0, "ceiling": 1.0, "floor": 21.0, "input": 15.0}


@pytest.mark.parametrize(
    ("levels", "fails"),
    [
        ({}, set()),
        (
            {"adapter+reference": 20.0},
            {"follows", "control_gain", "swap_floor", "curve_monotone"},
        ),
    ],
)
def test_other_controls_are_judged_between_floor_and_ceiling(levels: dict[str, float], fails: set[str]) -> None:
    """A metric that is better when lower, and that was not measured on one window."""
    cells = merged(rows("track_error", {**TRACKS, **levels}), rows("psnr", PICTURE))
    cells["adapter+reference"]["track_error"][3] = np.nan
    curve = [20.0, 10.0, 5.0] if not fails else [5.0, 20.0, 5.0]
    assert failing("structure", make_results(cells, curve, "track_error"), "track_error") == fails


@pytest.mark.parametrize(
    ("inside", "outside", "fails"),
    [(22.0, 34.0, set()), (11.0, 34.0, {"gain_over_input", "gain_over_base"}), (22.0, 30.0, {"preserved"})],
)
def test_edit_verdicts(inside: float, outside: float, fails: set[str]) -> None:
    no_control = {"base+reference": 11.0, "input": 10.0, "swapped": 9.0}
    cells = merged(
        rows("psnr_inside", {"adapter+reference": inside, **no_control}),
        rows("psnr_outside", {"adapter+reference": outside, **no_control, "base": 8.0, "ceiling": 35.0}),
    )
    results = make_results(cells, [9.0, 20.0, 30.0], "psnr_outside")
    if inside == 11.0:
        results.rows["adapter+reference"]["psnr_inside"] = results.rows["base+reference"]["psnr_inside"] - 1
    assert failing("edit", results, "psnr_outside") == fails


def test_videos_of_another_program_get_only_the_claims_that_can_be_measured() -> None:
    """Only outputs, input, ceiling and floor are measured: claims about other conditions are not made."""
    results = deblur()
    rows_of_videos = {row: results.rows[row] for row in ("adapter+reference", "input", "ceiling", "floor")}
    verdicts = judge("restoration", evidence_of(Results(rows=rows_of_videos, clips=N), "psnr"), Thresholds())
    assert [verdict["name"] for verdict in verdicts] == ["gain_over_input"]
    assert control_scores(Results(rows=rows_of_videos), evidence_of(Results(rows=rows_of_videos), "psnr")) is None
    assert mask_scores(Results(rows=rows_of_videos), evidence_of(Results(rows=rows_of_videos), "psnr"), 8, 4) is None


def test_changed_thresholds_apply_and_are_named() -> None:
    strict = Thresholds(gain_over_input=5.0, swap_drop=30.0)
    assert failing("restoration", deblur(), "psnr", strict) == {"gain_over_input", "swap_drop"}
    assert strict.changed == ["gain_over_input", "swap_drop"]
    assert Thresholds().changed == []
    with pytest.raises(ConfigError, match=r"eval.thresholds.significance=1.5 must lie"):
        Thresholds(significance=1.5)


def test_control_and_mask_scores() -> None:
    results = deblur()
    control = control_scores(results, evidence_of(results, "psnr"))
    assert control is not None
    assert control["gain"]["mean"] == pytest.approx((31.2 - 12.0) / (38.1 - 12.0), abs=0.01)
    assert control["swap_lost"]["mean"] == pytest.approx(21.2, abs=0.05)
    assert control["swap_won"]["mean"] == pytest.approx(5)
    masked = mask_scores(results, evidence_of(results, "psnr"), 8, 4)
    assert masked is not None
    assert masked["half"]["disturbance"]["mean"] == pytest.approx(0.1)
    assert [block["weight"] for block in masked["fade"]["blocks"]] == [0, 0.5, 1]
    assert masked["fade"]["correlation"]["mean"] > 0.9


def test_bounds() -> None:
    gain = Bound(0.7, unit="dB")
    assert str(gain) == "≥ 0.7 dB"
    assert gain.contains(0.7)
    assert gain.excludes(0.1, 0.6)
    assert not gain.excludes(0.1, 0.7)
    assert not gain.excludes(0.8, 1.0)
    between = Bound(0.9, 1.1)
    assert str(between) == "≥ 0.9 and ≤ 1.1"
    assert between.excludes(1.2, 1.3)
    assert between.excludes(0.2, 0.3)
    assert not between.excludes(0.2, 1.3)
    strict = Bound(high=1 / 3, strict=True)
    assert str(strict) == "< 0.333"
    assert strict.excludes(1 / 3, 1 / 3)
    assert not strict.contains(1 / 3)
    each = [f"tape {i}" for i in range(8)]
    inside = between.p(np.linspace(0.97, 1.03, 8), each)
    at_the_edge = between.p(np.linspace(1.0, 1.2, 8), each)
    assert inside is not None
    assert at_the_edge is not None
    assert inside < 1e-4
    assert at_the_edge == pytest.approx(0.5)


def summary(results: Results, thresholds: Thresholds) -> list[str]:
    """Console lines of an evaluation of a restoration task."""
    evidence = evidence_of(results, "psnr")
    verdicts = judge("restoration", evidence, thresholds)
    unmeasured = unmeasured_gates("restoration", evidence, thresholds)
    gates = {"outcome": gates_outcome(verdicts, unmeasured), "not_measured": unmeasured}
    return headline({"verdicts": verdicts, "gates": gates, "thresholds": {"changed": thresholds.changed}})


def test_the_console_counts_gates_and_names_changed_thresholds() -> None:
    lines = summary(deblur(), Thresholds(swap_drop=30.0))
    assert lines[-3:] == [
        "1 of 4 gates fails (swap_drop), 3 hold",
        "6 diagnostics: 6 hold, 0 fail, 0 inconclusive",
        "thresholds changed from the defaults: swap_drop",
    ]
    failed = next(line for line in lines if line.startswith("FAILS"))
    assert failed.startswith("FAILS         gate        swap_drop          21.198")
    assert "(n 12)  required ≥ 30 dB  p 1" in failed


def test_an_adapter_that_does_nothing_gets_no_title_of_success() -> None:
    """Every condition equals the base, which copies its reference: all diagnostics hold, and no gain does."""
    nothing = deblur([12.0, 24.0, 26.0], adapter_reference=26.4, adapter=12.0)
    assert summary(nothing, Thresholds())[-2:] == [
        "3 of 4 gates fail (gain_over_input, gain_over_classic, gain_over_base), 1 holds",
        "6 diagnostics: 6 hold, 0 fail, 0 inconclusive",
    ]


def test_gates_that_were_not_measured_leave_an_evaluation_inconclusive() -> None:
    results = deblur()
    rows_of_videos = {row: results.rows[row] for row in ("adapter+reference", "input", "ceiling", "floor")}
    lines = summary(Results(rows=rows_of_videos, clips=N), Thresholds())
    assert lines[-2] == "2 of 3 gates not measured (gain_over_base, swap_drop), 1 holds"
    evidence = evidence_of(Results(rows=rows_of_videos), "psnr")
    verdicts = judge("restoration", evidence, Thresholds())
    assert gates_outcome(verdicts, ["swap_drop"]) == "inconclusive"
    assert gates_outcome(verdicts, []) == "holds"


@pytest.mark.parametrize("family", ["restoration", "colorize", "structure", "edit"])
def test_every_family_has_three_gates(family: str) -> None:
    bare = evidence_of(Results(rows={"adapter+reference": {"psnr": np.full(N, np.nan)}}, clips=N), "psnr")
    assert len(unmeasured_gates(family, bare, Thresholds())) == 3


@pytest.mark.parametrize(("windows", "recordings"), [(7, 7), (12, 2)])
def test_few_windows_or_recordings_decide_nothing(windows: int, recordings: int) -> None:
    few = [f"tape {i % recordings}" for i in range(N)]
    results = deblur()
    for row in results.rows.values():
        row["psnr"][windows:] = np.nan
    verdict = judge("restoration", evidence_of(results, "psnr", few), Thresholds())[0]
    assert (verdict["value"]["n"], verdict["by_source"]["n"]) == (windows, recordings)
    assert (verdict["outcome"], verdict["passed"]) == ("inconclusive", False)

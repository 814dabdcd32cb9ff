"""Claims and comparisons of hand-made scores with three controls: one that fails is neither hidden nor merged."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.compare import compare, load
from eval.judging.symptoms import find_symptoms
from eval.junit import claim_cases, comparison_cases
from eval.scores import headline, judged
from eval.scoring.common_scale import ControlScale, agreement_by_frame, recorded_scales, with_agreement
from iclora_train.config import ConfigError, Thresholds
from iclora_train.core.scores import as_json

PER_CONTROL = 9
METRICS = {"canny": "edge_f1", "pose": "pose_pck", "depth": "depth_error"}
ROWS = {  # row -> metric -> level of an adapter that follows
    "adapter+reference": {"edge_f1": 0.80, "pose_pck": 0.70, "depth_error": 0.10, "psnr": 15.0},
    "base+reference": {"edge_f1": 0.60, "pose_pck": 0.20, "depth_error": 0.40, "psnr": 7.0},
    "base": {"edge_f1": 0.22, "pose_pck": 0.12, "depth_error": 0.50, "psnr": 9.0},
    "adapter": {"edge_f1": 0.22, "pose_pck": 0.12, "depth_error": 0.50, "psnr": 9.0},
    "swapped": {"edge_f1": 0.23, "pose_pck": 0.12, "depth_error": 0.49, "psnr": 9.0},
    "input": {"edge_f1": 0.50, "pose_pck": 0.02, "depth_error": 0.60, "psnr": 6.0},
    "ceiling": {"edge_f1": 0.95, "pose_pck": 0.90, "depth_error": 0.05, "psnr": 31.0},
    "floor": {"edge_f1": 0.20, "pose_pck": 0.10, "depth_error": 0.50, "psnr": 9.0},
}
CHANGES = {
    **{"inside": 9, "outside": 1, "kept": 1, "dropped": 9},
    **{"full_inside": 9, "full_outside": 9, "null": 0.1, "drift": 1},
}
STRENGTHS = {"strength 0": 0.05, "strength 0.1": 0.4, "strength 0.5": 0.8}  # share of the effect


def values_of(
    levels: dict[str, float], windows: dict[str, list[int]], rng: np.random.Generator, recordings: list[str]
) -> dict[str, list[float | None]]:
    """Metric -> value per window around a level, with a deviation of each recording; null for other controls."""
    count = len(recordings)
    deviation = {name: rng.normal(0, 0.01) for name in sorted(set(recordings))}
    result: dict[str, list[float | None]] = {}
    for metric, level in levels.items():
        own = {i for name, numbers in windows.items() if METRICS[name] == metric for i in numbers}
        everywhere = metric in ("psnr", "edge_f1")
        noisy = [level + deviation[recordings[i]] + rng.normal(0, 0.005) for i in range(count)]
        result[metric] = [value if everywhere or i in own else None for i, value in enumerate(noisy)]
    return result


def make_scores(changed: dict[str, float] | None = None, seed: int = 0, depth_recordings: int = 6) -> dict[str, Any]:
    """scores.json of an adapter. changed: levels of its row adapter+reference that differ from `ROWS`."""
    rng = np.random.default_rng(seed)
    names = list(METRICS)
    windows = {name: list(range(k, 3 * PER_CONTROL, 3)) for k, name in enumerate(names)}
    of = {name: depth_recordings if name == "depth" else 6 for name in names}
    recordings = [f"tape {(i // 3) % of[names[i % 3]]}" for i in range(3 * PER_CONTROL)]
    own = {**ROWS["adapter+reference"], **(changed or {})}
    levels = {**ROWS, "adapter+reference": own}
    none = ROWS["base"]
    strengths = {name: {m: none[m] + share * (own[m] - none[m]) for m in own} for name, share in STRENGTHS.items()}
    tables = {row: values_of(levels[row], windows, rng, recordings) for row in levels}
    for row, measured in tables.items():
        measured["edge_gap"] = [f - ROWS["floor"]["edge_f1"] for f in measured["edge_f1"] if f is not None]
        assert len(measured["edge_gap"]) == len(recordings), row
    better = {"edge_f1": "high", "edge_gap": "high", "pose_pck": "high", "psnr": "high", "depth_error": "low"}
    controls = {}
    for name, metric in METRICS.items():
        ends = [np.mean([tables[row][metric][i] for i in windows[name]]) for row in ("floor", "ceiling")]
        facts = {"metric": metric, "reader": f"reader of {name}", "windows": windows[name], "in_agreement": True}
        controls[name] = {**facts, "floor": float(ends[0]), "ceiling": float(ends[1])}
    scores: dict[str, Any] = {
        **{"schema": 2, "task": "union", "family": "structure", "primary": "agreement", "adherence": "agreement"},
        "clips": [
            {"key": f"w{i}", "source": r, "partner": f"w{i}", "control": names[i % 3]} for i, r in enumerate(recordings)
        ],
        "seeds": [0],
        "base": {"name": "tiny", "family": "tiny", "version": "2.3", "fingerprint": "f"},
        "metrics": {
            key: {"title": key, "unit": "", "better": direction, "group": "structure"}
            for key, direction in {"agreement": "high", **better}.items()
        },
        "readers": {name: f"reader of {name}" for name in names},
        "controls": controls,
        "windows": tables,
        "per_window": {
            "conditions": {name: values_of(row, windows, rng, recordings) for name, row in strengths.items()},
            **{"donor": values_of(own, windows, rng, recordings), "latent_frames": {}, "diversity": {}, "seeds": {}},
            "changes": {key: (level + rng.normal(0, 0.01, len(recordings))).tolist() for key, level in CHANGES.items()},
        },
        "thresholds": {**vars(Thresholds()), "changed": []},
        "frames": {},
        "provenance": {
            **{"protocol": 1, "definitions": 2, "shards": {"pairs": "p"}, "precision": "fp32", "device": "cpu"},
            **{"versions": {}, "settings": {"sample": {}}, "memory": None},
        },
    }
    scales = recorded_scales(scores)
    for table in (scores["windows"], scores["per_window"]["conditions"], {"donor": scores["per_window"]["donor"]}):
        for row in table.values():
            arrays = {key: np.array(values, np.float64) for key, values in row.items()}
            agreement = with_agreement(arrays, scales)["agreement"]
            row["agreement"] = [None if np.isnan(x) else float(x) for x in agreement]
    scores |= judged(scores, 8, 4)
    return scores


FOLLOWS = make_scores()
EDGES_ONLY = {"pose_pck": 0.12}  # the edges of a pose's window are followed, its joints are not


def outcomes(scores: dict[str, Any], kind: str = "gate") -> dict[str, str]:
    return {verdict["name"]: verdict["outcome"] for verdict in scores["verdicts"] if verdict["kind"] == kind}


def test_every_control_has_the_claims_of_its_own_metric() -> None:
    gates = {"edge_gap.canny", "follows.pose", "follows.depth"}
    gates |= {f"{name}.{control}" for name in ("picture", "swap_floor") for control in METRICS}
    assert outcomes(FOLLOWS) == dict.fromkeys(gates, "holds")
    assert FOLLOWS["gates"] == {"outcome": "holds", "not_measured": []}
    diagnostics = outcomes(FOLLOWS, "diagnostic")
    assert set(diagnostics.values()) == {"holds"}
    names = {f"{name}.{control}" for name in ("control_gain", "curve_monotone", "mask_local") for control in METRICS}
    assert diagnostics.keys() == names | {"own_over_swapped", "null_change"}
    assert all(verdict["value"]["n"] == PER_CONTROL for verdict in FOLLOWS["verdicts"] if "control" in verdict)
    assert FOLLOWS["controls"]["depth"]["control"]["gain"]["mean"] == pytest.approx(0.4 / 0.45, abs=0.02)
    assert FOLLOWS["controls"]["depth"]["mask"]["half"]["disturbance"]["n"] == PER_CONTROL


def test_a_control_that_is_not_followed_is_not_hidden_by_the_others() -> None:
    scores = make_scores(EDGES_ONLY)
    assert scores["control"]["gain"]["mean"] > 0.3  # together it looks well
    assert scores["gates"]["outcome"] == "fails"
    failing = {name for name, outcome in outcomes(scores).items() if outcome == "fails"}
    assert failing == {"follows.pose"}
    assert outcomes(scores)["swap_floor.pose"] != "holds"
    assert {name: entry["outcome"] for name, entry in scores["controls"].items()} == {
        **{"canny": "holds", "depth": "holds"},
        "pose": "fails",
    }
    cases = {case.name: case.state for case in claim_cases(scores)}
    assert (cases["follows.pose"], cases["edge_gap.canny"]) == ("failed", "passed")
    assert "control pose: pose_pck 0.12" in "\n".join(headline(scores))
    symptom = next(
        entry for entry in find_symptoms(scores | {"harm": None}) if entry["symptom"] == "control not followed"
    )
    assert symptom["level"] == "bad"
    assert "pose control gain" in symptom["reason"]


def test_a_control_of_few_recordings_decides_nothing_and_is_named() -> None:
    scores = make_scores(depth_recordings=2)
    assert scores["controls"]["depth"]["too_few"]
    assert (scores["controls"]["depth"]["outcome"], scores["controls"]["pose"]["outcome"]) == ("inconclusive", "holds")
    assert scores["gates"]["outcome"] == "inconclusive"
    assert {n for n, outcome in outcomes(scores).items() if outcome == "inconclusive"} == {
        f"{name}.depth" for name in ("follows", "picture", "swap_floor")
    }
    assert any("9 windows of 2 recordings, too few to decide" in line for line in headline(scores))


def test_a_metric_that_sees_nothing_in_the_targets_decides_nothing() -> None:
    """Nobody is detected in any clip, so ceiling, floor and output are all 0: that is not a success."""
    scores = deepcopy(FOLLOWS)
    for row in (*scores["windows"].values(), *scores["per_window"]["conditions"].values()):
        row["pose_pck"] = [None if value is None else 0.0 for value in row["pose_pck"]]
    scores |= judged(scores, 8, 4)
    assert outcomes(scores)["swap_floor.pose"] == "fails"
    assert "follows.pose" in scores["gates"]["not_measured"]
    assert "control_gain.pose" not in outcomes(scores, "diagnostic")


# ---- the common scale


def test_the_scale_ignores_units_and_directions() -> None:
    rows = {"m": np.array([3.0, 5.0, 1.0]), "n": np.array([np.nan, 20.0, 10.0])}
    scales = {"low": ControlScale("m", (0, 2), 5.0, 1.0, True), "high": ControlScale("n", (1, 2), 10.0, 30.0)}
    assert with_agreement(rows, scales)["agreement"].tolist() == [0.5, 0.5, 0.5]  # the third window has both: 1 and 0
    assert with_agreement(rows, {}) == rows
    frames = {"m": [[5.0, 3.0], None, [1.0, 1.0]], "psnr": [[1.0, 1.0]] * 3}
    assert agreement_by_frame(frames, scales) == [[0.0, 0.5], None, [1.0, 1.0]]
    upside_down = {"low": ControlScale("m", (0, 2), 1.0, 5.0, True), "none": ControlScale("n", (1,), None, None)}
    assert np.isnan(with_agreement(rows, upside_down)["agreement"]).all()


# ---- comparison


def test_a_control_that_got_worse_is_found_behind_one_that_got_better() -> None:
    better_edges = make_scores({"edge_f1": 0.95, "pose_pck": 0.55}, seed=1)
    result = compare(FOLLOWS, better_edges)
    assert not result["gates"]["agreement"]["failed"]
    assert {name for name, gate in result["gates"].items() if gate["failed"]} == {"pose_pck.pose"}
    assert result["worse"]
    assert result["metrics"]["edge_f1.canny"]["difference"]["n"] == PER_CONTROL
    assert result["metrics"]["edge_f1"]["difference"]["n"] == 3 * PER_CONTROL
    states = {case.name: case.state for case in comparison_cases(result)}
    assert (states["pose_pck.pose"], states["edge_f1.canny"]) == ("failed", "passed")
    assert not compare(FOLLOWS, better_edges, {"pose_pck.pose": 0.3})["worse"]


def test_two_evaluations_share_the_scale_of_the_first() -> None:
    other_base = deepcopy(FOLLOWS)
    for entry in other_base["controls"].values():
        entry["ceiling"] = (entry["floor"] + entry["ceiling"]) / 2  # a worse VAE, and the same outputs
    row = other_base["windows"]["adapter+reference"]
    row["agreement"] = [2 * value for value in row["agreement"]]
    assert compare(FOLLOWS, other_base)["metrics"]["agreement"]["difference"]["mean"] == pytest.approx(0)


def test_controls_read_by_other_networks_are_not_compared() -> None:
    other = {**FOLLOWS, "readers": {**FOLLOWS["readers"], "depth": "dpt other"}}
    with pytest.raises(ConfigError, match="their readers of the control differ"):
        compare(FOLLOWS, other)
    older = {key: value for key, value in FOLLOWS.items() if key != "readers"}  # does not name them
    assert not compare(FOLLOWS, older)["worse"]
    chosen = deepcopy(FOLLOWS)
    chosen["provenance"]["settings"]["eval"] = {"depth_network": None, "pose_network": None}
    assert not compare(older, chosen)["worse"]
    for key in ("depth_network", "pose_network"):
        chosen["provenance"]["settings"]["eval"] = {key: "another"}
        for pair in ((older, chosen), (chosen, older)):
            with pytest.raises(ConfigError, match=f"their readers of the control differ.*eval.{key}"):
                compare(*pair)
        assert not compare(chosen, FOLLOWS)["worse"], "both name their readers, which are the same"


def test_readers_of_one_name_are_compared_by_the_hash_of_their_content() -> None:
    first, second, unhashed = (
        {**FOLLOWS, "readers": {**FOLLOWS["readers"], "depth": f"dpt model{end}"}}
        for end in (" (0123abcd)", " (0123abce)", "")
    )
    with pytest.raises(ConfigError, match="their readers of the control differ"):
        compare(first, second)
    assert not compare(first, first)["worse"]
    assert not compare(first, unhashed)["worse"]  # as version 0.1 named them
    other = {**unhashed, "readers": {**unhashed["readers"], "depth": "dpt other"}}
    with pytest.raises(ConfigError, match="their readers of the control differ"):
        compare(first, other)


def older(scores: dict[str, Any]) -> dict[str, Any]:
    """The scores of a union by an earlier version, which judged every window by its edges."""
    old = {key: value for key, value in deepcopy(scores).items() if key not in ("controls", "readers", "digest")}
    old |= {"primary": "edge_f1", "adherence": "edge_f1"}
    old["clips"] = [{key: clip[key] for key in ("key", "source", "partner")} for clip in old["clips"]]
    del old["metrics"]["agreement"]
    for row in (*old["windows"].values(), *old["per_window"]["conditions"].values(), old["per_window"]["donor"]):
        del row["agreement"]
    del old["thresholds"]["own_over_swapped"]
    return old


def test_scores_of_an_earlier_version_are_read_and_judged(tmp_path: Path) -> None:
    old = older(FOLLOWS)
    (tmp_path / "scores.json").write_bytes(as_json(old))
    read = load(tmp_path)
    assert not compare(read, read)["worse"]
    assert {"edge_gap", "picture", "swap_floor"} <= {verdict["name"] for verdict in judged(read, 8, 4)["verdicts"]}
    with pytest.raises(ConfigError, match="their primary, clips differ"):
        compare(read, FOLLOWS)


def test_damaged_controls_are_named(tmp_path: Path) -> None:
    damaged = deepcopy(FOLLOWS)
    damaged["controls"]["pose"]["windows"].append(99)
    (tmp_path / "scores.json").write_bytes(as_json(damaged))
    with pytest.raises(ConfigError, match="a control has a metric or windows that it does not list"):
        load(tmp_path)
    damaged["controls"]["pose"] = {"metric": 3}
    (tmp_path / "scores.json").write_bytes(as_json(damaged))
    with pytest.raises(ConfigError, match="is not a scores"):
        load(tmp_path)

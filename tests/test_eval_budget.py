"""eval.budget: what is sampled within a given time, in the order of what it tells, and always the same plan."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from eval.budget import CORE, SAMPLING_SHARE, Plan, Request, choose, half_width, interval_factor
from eval.clips.conditions import all_conditions
from eval.clips.cost import ClipCost
from eval.clips.sampled import SampledClips
from eval.run import evaluate
from eval.scoring.measuring_time import MeasuringTime
from iclora_train.config import ConfigError
from iclora_train.config.durations import duration_text
from iclora_train.config.evaluation import Eval
from iclora_train.core.training_time import count_training_time, evaluation_budget, training_seconds
from tests.eval_world import World, build, compose_config
from tests.test_eval import SCHEMA, violations

COST = ClipCost(with_reference=0.1, without_reference=0.05, decoding=1.0, passes=3)  # 10 s a clip with 30 steps
FULL = Request(all_conditions(Eval().strengths), 24, (0, 1, 2), 30, 24, COST)
SMALLEST = 8 * (3 * 10.0 + 1.0) / SAMPLING_SHARE  # seconds of the three conditions of CORE on eight windows


def test_a_budget_for_everything_leaves_nothing_out() -> None:
    assert choose(FULL, 1e6) == FULL.everything


@pytest.mark.parametrize("budget", [SMALLEST + 1, 600, 1200, 1800, 3600, 7200])
def test_a_plan_fits_its_budget_and_can_decide_a_claim(budget: float) -> None:
    plan = choose(FULL, budget)
    assert FULL.seconds(plan) <= SAMPLING_SHARE * budget
    assert plan.windows >= 8
    assert set(CORE) <= set(plan.conditions)
    assert plan.steps == 30


def test_more_time_buys_conditions_then_probes_windows_and_seeds() -> None:
    plans = [choose(FULL, seconds) for seconds in range(300, 12_000, 50)]
    sizes = [(plan.probes, plan.windows, len(plan.seeds)) for plan in plans]
    assert sizes == sorted(sizes)
    for smaller, larger in pairwise(plans):
        assert set(smaller.conditions) <= set(larger.conditions)
    first_with = {name: [name in plan.conditions for plan in plans].index(True) for name in plans[-1].conditions}
    order = ["swapped", "base", "strength 0", "strength 0.5", "strength 0.75", "half mask", "fade mask", "empty prompt"]
    assert [first_with[name] for name in order] == sorted(first_with[name] for name in order)
    assert first_with["strength 0"] == first_with["adapter"]  # the null test needs both
    with_seeds = next(plan for plan in plans if len(plan.seeds) > 1)
    assert (len(with_seeds.conditions), with_seeds.probes, with_seeds.windows) == (14, True, 24)


def test_of_several_references_each_is_swapped_first_and_then_left_out() -> None:
    several = replace(FULL, conditions=all_conditions(Eval().strengths, references=["first", "still"]))
    more = several.seconds(several.everything) - FULL.seconds(FULL.everything)
    assert more == pytest.approx(4 * 24 * 3 * 10.0)  # each of both swapped, each left out
    budgets = range(300, 16_000, 20)
    plans = [choose(several, seconds) for seconds in budgets]
    first_with = {name: [name in plan.conditions for plan in plans].index(True) for name in plans[-1].conditions}
    of_each = ["swapped first", "swapped still", "without first", "without still"]
    order = [first_with[name] for name in ("base+reference", *of_each, "base", "strength 0")]
    assert sorted(set(order)) == order  # none comes together with another one
    assert all(several.seconds(plan) <= SAMPLING_SHARE * of_plan for plan, of_plan in zip(plans, budgets, strict=True))


def test_only_a_budget_below_three_conditions_costs_steps_and_never_more_than_half_of_them() -> None:
    tight = choose(FULL, 0.7 * SMALLEST)
    assert (tight.conditions, tight.windows, tight.seeds) == (CORE, 8, (0,))
    assert 15 < tight.steps < 30
    assert choose(FULL, 1.0).steps == 15  # exceeds the budget, and `apply_budget` says so
    assert choose(replace(FULL, fixed_steps=True), 1.0).steps == 30
    assert choose(replace(FULL, windows=4), 1.0).windows == 4  # there are no more


def test_processes_share_the_sampling_and_one_of_them_measures() -> None:
    request = replace(FULL, measuring=MeasuringTime(0.5))
    everything = request.everything
    metrics = request.seconds_of_metrics(everything)
    assert metrics == 24 * (3 * (14 + 1) + 4) * 0.5
    alone, round_trips = FULL.seconds(everything), 24 * COST.decoding
    assert request.seconds(everything) == pytest.approx(alone + metrics)
    shared = (alone - round_trips) / 4 + round_trips + metrics
    assert replace(request, processes=4).seconds(everything) == pytest.approx(shared)
    on_gpu = replace(request, measuring=MeasuringTime(0.5, overlaps=True))
    assert on_gpu.seconds(everything) == alone  # a batch is measured while the next one is sampled
    assert replace(on_gpu, processes=4).seconds(everything) == pytest.approx(shared)
    assert choose(request, 3600).clips < choose(FULL, 3600).clips < choose(replace(FULL, processes=4), 3600).clips


def test_intervals_grow_with_fewer_windows_and_more_with_fewer_recordings() -> None:
    assert interval_factor(24, 24, 7) == 1
    of_as_many = interval_factor(24, 8, 7)  # 8 windows of all 7 recordings
    assert 1 < of_as_many < (24 / 8) ** 0.5
    assert of_as_many < interval_factor(24, 8, 24)  # 8 recordings instead of 24
    assert half_width(24, 7) == pytest.approx(2.447 * (0.45 / 7 + 0.55 / 24) ** 0.5, rel=1e-3)
    assert math.isnan(interval_factor(24, 8, 1))


def test_the_settings_of_a_budget() -> None:
    assert Eval(budget="30m").budget_seconds == 1800
    assert Eval().budget_seconds is Eval(budget=None).budget_seconds is None
    with pytest.raises(ConfigError, match=r"eval.budget=soon is not a duration above 0: write e.g. 90s, 30m or 2h"):
        Eval(budget="soon")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Ten held-out windows of five recordings."""
    sources = {"train": ["sea"], "heldout": ["cat", "dog", "cow", "owl", "fox"]}
    return build(tmp_path_factory.mktemp("budget"), sources)


def budgeted(
    world: World, monkeypatch: pytest.MonkeyPatch, seconds: float, *more: str, metrics: float = 0.0
) -> dict[str, Any]:
    """scores.json of an evaluation with a budget, where sampling a clip costs ten seconds. metrics: seconds of one."""
    monkeypatch.setattr(SampledClips, "measure_cost", lambda source, batch: ClipCost(5.0, 5.0, 0.0, 1))
    monkeypatch.setattr("eval.planning.measure_measuring", lambda *_: MeasuringTime(metrics))
    report = evaluate(world.config("eval.windows=10", "eval.label=fast", f"eval.budget={seconds}s", *more))
    result: dict[str, Any] = json.loads((report.parent / "scores.json").read_text())
    return result


def test_the_plan_is_evaluated_stored_and_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = budgeted(world, monkeypatch, 8 * 10 * 4 / SAMPLING_SHARE)
    plan = result["plan"]
    assert (plan["windows"], plan["seeds"], plan["steps"], plan["probes"]) == (8, [0], 2, False)
    assert plan["conditions"] == ["adapter+reference", "base+reference", "base", "swapped"]
    assert (plan["requested"]["windows"], plan["requested"]["seeds"]) == (10, [0, 1])
    assert violations(result, SCHEMA) == []
    assert len(result["clips"]) == 8
    assert result["cells"].keys() == {*plan["conditions"], "input", "classic filter", "ceiling", "floor"}
    assert (result["mask"], result["simple"], result["diversity"]) == (None, None, {})
    assert "gain_over_base" in [verdict["name"] for verdict in result["verdicts"]]
    assert all(verdict["value"]["n"] == 8 for verdict in result["verdicts"])
    out = capsys.readouterr().out
    assert "left out" in out
    assert "8 of 10 windows, 1 of 2 seeds, 2 of 2 steps: 32 clips" in out
    recordings = len({clip["source"] for clip in result["clips"]})
    factor = interval_factor(10, 8, recordings)
    assert plan["interval_factor"] == pytest.approx(factor, abs=0.001)
    assert f"about {factor:.2f} times as wide as with 10 windows" in out
    monkeypatch.setattr(SampledClips, "measure_cost", lambda *_: pytest.fail("it was measured again"))
    report = evaluate(world.config("eval.windows=10", "eval.label=fast", f"eval.budget={8 * 10 * 4 / SAMPLING_SHARE}s"))
    again = json.loads((report.parent / "scores.json").read_text())
    assert again["plan"] == plan
    assert again["digest"] == result["digest"]
    out = capsys.readouterr().out
    assert "±" in out  # expected from the earlier results


@pytest.mark.parametrize("conditions", [5, 6, 7, 9, 10])
def test_every_stage_of_a_plan_can_be_judged_and_reported(
    conditions: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = budgeted(world, monkeypatch, 8 * 10 * conditions / SAMPLING_SHARE, f"eval.label=stage{conditions}")
    assert len(result["plan"]["conditions"]) <= conditions
    assert violations(result, SCHEMA) == []
    claims = {verdict["name"] for verdict in result["verdicts"]}
    assert ("null_change" in claims) == ("strength 0" in result["plan"]["conditions"])
    assert ("mask_local" in claims) == ("half mask" in result["plan"]["conditions"])


def test_slow_metrics_leave_less_to_sample(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = budgeted(world, monkeypatch, 8 * 10 * 4 / SAMPLING_SHARE, "eval.label=slow", metrics=1.0)
    assert result["plan"]["conditions"] == list(CORE)  # without the time of the metrics: the base too
    measured = 8 * (3 + 1 + 4)  # three conditions, swapped twice, four rows without a model
    assert result["plan"]["seconds"] == 8 * 10 * 3 + measured
    assert re.search(rf"metrics +\W+ +\W {duration_text(measured)}", capsys.readouterr().out)


def test_a_budget_that_is_too_small_is_exceeded_with_a_warning(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = budgeted(world, monkeypatch, 1, "eval.label=tiny")
    assert result["plan"]["conditions"] == list(CORE)
    assert "warning: this exceeds eval.budget, because fewer clips decide no claim" in capsys.readouterr().out


def test_after_training_on_a_real_base_the_budget_is_a_quarter_of_the_training_time(tmp_path: Path) -> None:
    folder = tmp_path / "deblur-nano"
    config = compose_config(["conf=deblur", f"runs_dir={tmp_path}"])
    assert evaluation_budget(config, embedded=False) is None  # a run of an earlier version
    for _ in range(2):
        with count_training_time(folder):
            pass
    assert training_seconds(folder) is not None
    (folder / "training.json").write_text('{"seconds": 3600}')
    with pytest.raises(KeyboardInterrupt), count_training_time(folder):  # an interrupted session counts too
        raise KeyboardInterrupt
    assert training_seconds(folder) == pytest.approx(3600, abs=1)
    assert evaluation_budget(config, embedded=False) == pytest.approx(900, abs=1)
    assert evaluation_budget(config, embedded=True) is None
    for more in ("eval.budget=null", "adapter=other.safetensors", "eval.against=before.json"):
        assert evaluation_budget(compose_config(["conf=deblur", f"runs_dir={tmp_path}", more]), embedded=False) is None
    (folder / "training.json").write_text('{"seconds": "long"}')
    with pytest.raises(ConfigError, match=r"training.json is damaged .*: delete it"):
        evaluation_budget(config, embedded=False)


def test_the_plan_has_a_clip_for_each_condition_window_and_seed() -> None:
    assert Plan(CORE, 8, (0, 1), 30, probes=False).clips == 48

"""eval.sequential: the error rate holds over all looks, sampling stops when the gates are decided, and says so."""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from eval.budget import CORE
from eval.clips.conditions import Condition
from eval.clips.sampled import SampledClips
from eval.clips.sampling_ranks import FIRST, SamplingRank
from eval.clips.windows import Window
from eval.judging.claims import Bound
from eval.judging.stopping import stopping_line
from eval.judging.verdicts import Verdict, judge
from eval.looks import Announcement, announce, follow_looks, looks_key, looks_of, planned_looks
from eval.run import evaluate, open_source, results_folder
from eval.statistics.estimates import estimate
from eval.statistics.sequential import Looks, nominal_levels, sequential_p, spending
from iclora_train.config import ConfigError, Thresholds
from iclora_train.config.evaluation import Eval
from iclora_train.core.atomic_files import seen_alive
from tests.command import run
from tests.eval_world import World, build, without_evaluation, without_run
from tests.test_eval import SCHEMA, violations
from tests.test_eval_verdicts import DEBLUR, evidence_of, make_results, rows
from tests.test_statistics import clustered

COUNTS = (3, 4, 5, 6, 7)
TYPICAL = np.repeat(np.arange(7), [4, 4, 4, 3, 3, 3, 3])  # the recording of each of 24 windows


def test_boundaries_of_many_recordings_are_the_published_ones() -> None:
    """Five looks at equal steps, two-sided 5 %: 4.877, 3.357, 2.680, 2.290, 2.031 (Jennison and Turnbull 2000)."""
    levels = nominal_levels((400, 800, 1200, 1600, 2000), 2000, 0.05)
    assert stats.norm.isf(np.array(levels) / 2) == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=0.06)
    assert spending(1.0, 0.05) == pytest.approx(0.05)
    assert nominal_levels((7,), 7, 0.05) == pytest.approx((0.05,))


@pytest.mark.parametrize("icc", [0.0, 0.45])
def test_the_error_rate_holds_for_windows_that_are_alike_within_a_recording(icc: float) -> None:
    """Looks after 3 to 7 recordings with 4 or 3 windows each: 5 % in all. Five tests at 5 % each would err 13 %."""
    rng, draws = np.random.default_rng(3), 20_000
    levels = nominal_levels(COUNTS, 7, 0.05)
    windows = rng.normal(0, (1 - icc) ** 0.5, (draws, len(TYPICAL)))
    windows += rng.normal(0, icc**0.5, (draws, 7))[:, TYPICAL]
    means = np.stack([windows[:, i == TYPICAL].mean(1) for i in range(7)], axis=1)  # (draws, recordings)
    rejected, above, naive = np.zeros((3, draws), bool)
    for count, level in zip(COUNTS, levels, strict=True):
        seen = means[:, :count]
        t = seen.mean(1) / (seen.std(1, ddof=1) / count**0.5)
        above |= ~rejected & (t > stats.t.isf(level / 2, count - 1))
        rejected |= np.abs(t) > stats.t.isf(level / 2, count - 1)
        naive |= np.abs(t) > stats.t.isf(0.025, count - 1)
    assert 0.045 <= rejected.mean() <= 0.055
    assert 0.021 <= above.mean() <= 0.029
    assert naive.mean() > 0.1


def test_intervals_and_p_say_the_same_at_every_look() -> None:
    """The interval ends at the threshold where the p of all looks is 2.5 %."""
    names, rng = [str(number) for number in TYPICAL], np.random.default_rng(0)
    for looks in (Looks((3,), 7), Looks((3, 5), 7), Looks((3, 5, 7), 7)):
        kept = [i for i in range(24) if TYPICAL[i] < looks.counts[-1]]
        values, of = clustered(rng, TYPICAL, 0.4)[kept], [names[i] for i in kept]
        low = estimate(values, of, looks.coverage)["low"]
        assert low is not None
        p = looks.p(Bound(low).p(values, of))
        assert p == pytest.approx(0.025, rel=0.02)
    assert Looks((7,), 7).p(0.2) == 0.2
    assert Looks((7,), 7).p(None) is None
    assert sequential_p(0.01, (3, 5), 7) > 0.01


def test_a_p_of_all_looks_is_uniform_at_most() -> None:
    """Stop at whichever look has the smallest p: it is below 5 % in at most 5 % of the cases."""
    rng, draws = np.random.default_rng(5), 2000
    means = rng.normal(size=(draws, 7))
    smallest = np.ones(draws)
    for k in range(len(COUNTS)):
        seen = means[:, : COUNTS[k]]
        p = stats.ttest_1samp(seen, 0, axis=1, alternative="greater").pvalue
        few = np.quantile(p, np.linspace(0, 0.3, 40))  # the p of a look is a rising function: interpolate it
        valid = np.interp(p, few, [sequential_p(float(x), COUNTS[: k + 1], 7) for x in few])
        smallest = np.minimum(smallest, valid)
    assert (smallest < 0.05).mean() <= 0.06


def windows(*recordings: str) -> list[Window]:
    return [Window(i, f"{name}-{i}", name, "64x64x9", 0) for i, name in enumerate(recordings)]


def test_looks_begin_when_a_claim_can_be_decided() -> None:
    many = windows(*(name for name in "abcdefg" for _ in range(4)))
    assert planned_looks(many) == [3, 4, 5, 6, 7]
    assert planned_looks(windows(*(name for name in "abcdefg" for _ in range(2)))) == [4, 5, 6, 7], "8 windows"
    assert planned_looks(windows(*(f"{i:02d}" for i in range(30)))) == [8, 14, 19, 24, 30]
    assert planned_looks(windows(*"aabbcc")) == [3], "too few: one look, which is the plain protocol"
    assert planned_looks(windows(*"aaaaaaaabbbbbbbb")) == [2]


def test_verdicts_allow_for_the_looks() -> None:
    """A gate that holds in a plain evaluation is undecided when the same values are a third of what is planned."""
    known = evidence_of(make_results(rows("psnr", DEBLUR), [12.0, 20.0, 28.0], "psnr"), "psnr")

    def gate(thresholds: Thresholds, looks: Looks | None) -> Verdict:
        return next(v for v in judge("restoration", known, thresholds, looks) if v["name"] == "gain_over_input")

    value = gate(Thresholds(), None)["value"]
    assert value["low"] is not None
    close = Thresholds(gain_over_input=value["mean"] - 3 * (value["mean"] - value["low"]))
    assert gate(close, None)["outcome"] == gate(close, Looks((4,), 4))["outcome"] == "holds"
    early = gate(close, Looks((4,), 12))
    assert early["outcome"] == "inconclusive"
    assert early["value"]["low"] < close.gain_over_input < value["low"]  # type: ignore[operator]
    assert early["p"] > gate(close, None)["p"]  # type: ignore[operator]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six recordings with two windows each."""
    sources = {"train": ["sea", "road"], "heldout": ["cat", "dog", "cow", "hen", "pig", "fox"]}
    return build(tmp_path_factory.mktemp("sequential"), sources)


def options(*more: str) -> list[str]:
    return ["eval.windows=12", "eval.seeds=[0]", "eval.sequential=true", *more]


def scores_of(world: World, *more: str) -> dict[str, Any]:
    config = world.config(*options(*more))
    evaluate(config)
    result: dict[str, Any] = json.loads((results_folder(config) / "scores.json").read_text())
    return result


DECIDED = [  # thresholds that every output misses or meets by far
    *("eval.thresholds.gain_over_input=100", "eval.thresholds.gain_over_base=100"),
    *("eval.thresholds.gain_over_classic=100", "eval.thresholds.swap_drop=100"),
]


def test_sampling_stops_when_every_gate_is_decided(world: World) -> None:
    result = scores_of(world, *DECIDED)
    entry = result["sequential"]
    assert violations(result, SCHEMA) == []
    assert entry["planned_looks"] == [4, 5, 6]
    assert entry["stopped_early"]
    assert len(result["clips"]) == entry["looks"][-1]["windows"] < 12
    assert entry["looks"][-1]["undecided"] == []
    assert {v["outcome"] for v in result["verdicts"] if v["kind"] == "gate"} == {"fails"}
    assert result["windows"].keys() >= {"base", "adapter", "empty prompt"}, "the other conditions are there, too"
    folder = results_folder(world.config(*options(*DECIDED)))
    assert folder.name.endswith("-sequential-12x1-" + folder.name[-6:])
    assert "sampling stopped early (look " in (folder / "report.html").read_text()


def test_the_interval_of_a_claim_is_wider_than_that_of_a_plain_evaluation(world: World) -> None:
    result = scores_of(world, *DECIDED)
    verdict = next(v for v in result["verdicts"] if v["name"] == "gain_over_base")
    sources = [clip["source"] for clip in result["clips"]]
    rows = [np.array(result["windows"][name]["psnr"]) for name in ("adapter+reference", "base+reference")]
    plain = estimate(rows[0] - rows[1], sources)
    assert plain["low"] is not None
    assert verdict["value"]["mean"] == pytest.approx(plain["mean"], abs=1e-5)
    assert verdict["value"]["low"] < plain["low"]


def test_nothing_is_sampled_for_recordings_that_are_not_needed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: set[str] = set()
    sample = SampledClips._sample

    def record(self: SampledClips, condition: Any, batch: Any, sampler: Any) -> Any:
        if len(sampler.sigmas) == 3:  # not the timing of the cost, which has one step
            sampled.update(item.window.source for item in batch)
        return sample(self, condition, batch, sampler)

    monkeypatch.setattr(SampledClips, "_sample", record)
    more = [*DECIDED, "seed=5"]
    entry = scores_of(world, *more)["sequential"]
    assert entry["stopped_early"]
    assert len(sampled) == entry["looks"][-1]["recordings"]


def test_undecided_gates_are_sampled_to_the_end(world: World) -> None:
    """A threshold in the middle of the values, which no look can decide."""
    plain = scores_of(world, *DECIDED, "eval.thresholds.gain_over_base=100")
    value = next(v["value"]["mean"] for v in plain["verdicts"] if v["name"] == "gain_over_base")
    result = scores_of(world, *DECIDED[:1], *DECIDED[2:], f"eval.thresholds.gain_over_base={value:.4f}")
    entry = result["sequential"]
    assert [look["recordings"] for look in entry["looks"]] == [4, 5, 6]
    assert not entry["stopped_early"]
    assert "gain_over_base" in entry["looks"][0]["undecided"]
    assert "went on to the last look (look 3 of 3, 6 of 6 recordings" in stopping_line(entry)
    assert len(result["clips"]) == 12


def test_the_order_is_random_but_the_same_every_time(world: World) -> None:
    held_out = open_source(world.bare("adapter=none", "eval.windows=12")).held_out
    orders = {seed: [w.key for w in held_out.in_random_order(seed).windows] for seed in range(4)}
    assert orders[0] == [w.key for w in held_out.in_random_order(0).windows]
    assert len({tuple(order) for order in orders.values()}) > 1
    shuffled = held_out.in_random_order(1)
    partner = {w.key: held_out.windows_and_donors[w.partner].key for w in held_out.windows}
    assert {w.key: shuffled.windows_and_donors[w.partner].key for w in shuffled.windows} == partner
    recordings = [w.source for w in shuffled.windows]
    assert recordings == [name for name in dict.fromkeys(recordings) for _ in range(2)], "windows stay together"
    first = shuffled.first(4)
    assert [w.key for w in first.windows] == orders[1][:4]
    assert first.windows_and_donors == shuffled.windows_and_donors


def test_settings_that_do_not_go_together_are_refused() -> None:
    for more in ({"budget": "30m"}, {"against": "runs/other"}, {"metrics": ["fvd"]}):
        with pytest.raises(ConfigError, match=r"eval\.sequential=true"):
            Eval(sequential=True, **more)


def test_two_processes_stop_where_one_stops_with_the_same_scores(world: World, tmp_path: Path) -> None:
    alone, other = scores_of(world, *DECIDED), without_evaluation(world, tmp_path)
    result = run(other.root, "eval", *other.arguments, *options(*DECIDED, "eval.devices=2"))
    assert result.code == 0, result.err
    assert "terminated" not in result.err, "the other process ends without a word"
    assert "2 processes sample" in result.out
    assert re.search("At most:\n.*\n.*Sampling takes 2 processes about", result.out)
    spread = json.loads(next(other.root.glob("runs/*/eval-*/scores.json")).read_text())
    assert without_run(spread) == without_run(alone)
    assert spread["sequential"]["stopped_early"]
    assert not list(other.root.rglob("eval-cells/*.lock"))


@pytest.fixture
def sampler(world: World, tmp_path: Path) -> SampledClips:
    """The clips of a process other than the first, with an empty cache."""
    source = open_source(without_evaluation(world, tmp_path).config(*options("eval.strengths=[1.0]")))
    assert isinstance(source, SampledClips)
    return source


def test_other_processes_sample_the_look_that_is_announced_and_what_no_gate_needs_meanwhile(
    sampler: SampledClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered = sampler.held_out.in_random_order(sampler.config.seed)
    looks, key = looks_of(ordered, [0], 3), looks_key(sampler, ordered)
    sampled: list[tuple[str, str]] = []  # condition, recording
    make = SampledClips._make

    def record(self: SampledClips, condition: Condition, batch: Any) -> Any:
        sampled.extend((condition.name, item.window.source) for item in batch)
        return make(self, condition, batch)

    def first_process(seconds: float) -> None:
        """What it does while the others wait: nothing is announced, then the first look, then that it is the last."""
        waited.append(len(sampled))
        announce(tmp_path, Announcement(key, 0, is_last=len(waited) > 1))

    waited: list[int] = []
    monkeypatch.setattr(SampledClips, "_make", record)
    monkeypatch.setattr(time, "sleep", first_process)
    announce(tmp_path, Announcement("of another evaluation", 2, is_last=True))
    follow_looks(sampler, tmp_path, SamplingRank(1, 2))
    names = [condition.name for condition in sampler.conditions]
    assert waited == [0, len(names) * looks[0].windows], "nothing is left to do while the gates are judged"
    assert {source for _, source in sampled} == {window.source for window in ordered.windows[: looks[0].windows]}
    order = [name in CORE for name, _ in sampled]
    assert order == sorted(order, reverse=True), "the conditions of the gates come first"


def test_other_processes_end_with_an_error_when_the_first_one_is_gone(
    sampler: SampledClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: first.close())
    first = ExitStack()
    first.enter_context(seen_alive(tmp_path / FIRST))
    with pytest.raises(ConfigError, match="the first process has ended before all was sampled"):
        follow_looks(sampler, tmp_path, SamplingRank(1, 2))

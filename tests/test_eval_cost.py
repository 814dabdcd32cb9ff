"""An evaluation says before its first clip what it costs: clips, passes, seconds, the expected end."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.clips.conditions import Condition, all_conditions, at_strength, batches
from eval.clips.cost import ClipCost, Forecast
from eval.clips.sampled import SampledClips
from eval.metrics import Clip, GroundTruth, Measurement
from eval.metrics.base import CachedClip, Metric, MetricGroup, Values
from eval.metrics.extra import ClipFeatures
from eval.run import open_source
from eval.scoring.measuring_time import measure_measuring
from eval.suites import suite_of
from iclora_train.config import ConfigError
from iclora_train.config.durations import duration_text, end_text, parse_duration
from iclora_train.config.evaluation import Eval
from iclora_train.core.local_ranks import evaluation_processes
from iclora_train.diffusion.guidance import Guidance
from iclora_train.training.dry_run import evaluation_cost
from tests.command import run
from tests.eval_world import World, build, compose_config

COST = ClipCost(with_reference=0.5, without_reference=0.25, decoding=2.0, passes=3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("cost"))


def test_the_evaluation_after_training_samples_on_every_gpu_that_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def processes(*more: str, gpus: int = 8) -> int:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        return evaluation_processes(compose_config(["conf=deblur", *more]))

    assert processes() == 1
    assert processes("trainer.devices=4") == 4
    assert processes("trainer.devices=4", gpus=2) == 2
    assert processes("trainer.devices=4", "eval.sequential=true") == 4
    assert processes("eval.devices=3", gpus=0) == processes("trainer.devices=4", "eval.devices=3") == 3
    with pytest.raises(ConfigError, match=r"eval.devices=9, but 8 GPUs are visible"):
        processes("eval.devices=9")
    for name, value in {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "0")
    assert processes() == 8  # torchrun on two nodes: those of this one
    assert processes("eval.devices=2") == 2
    assert processes(gpus=0) == 1


def test_durations_are_read_and_written() -> None:
    assert [parse_duration("eval.budget", text) for text in ("90s", "30m", "2h", "1.5h")] == [90, 1800, 7200, 5400]
    for text in ("30", "m", "-1h", "0s", "1d", "2h30m"):
        with pytest.raises(ConfigError, match=re.escape(f"eval.budget={text} is not a duration")):
            parse_duration("eval.budget", text)
    assert [duration_text(seconds) for seconds in (45, 720, 9000)] == ["45 s", "12 min", "2.5 hours"]
    evening = datetime(2026, 1, 6, 22, 0)
    assert [end_text(seconds, evening) for seconds in (3600, 4 * 3600)] == ["23:00", "Wed 02:00"]


def test_a_clip_costs_its_passes_and_its_decoding() -> None:
    assert COST.of(at_strength(1), steps=10) == 10 * 3 * 0.5 + 2
    assert COST.of(Condition("base", False, "none"), steps=10) == 10 * 3 * 0.25 + 2
    text = torch.zeros(1, 1, 1)
    assert [Guidance().passes, Guidance(3.0, text).passes, Guidance(3.0, text, stg_scale=1.0).passes] == [1, 2, 3]


def test_a_forecast_is_corrected_by_finished_batches() -> None:
    forecast = Forecast({("base", 0): 10.0, ("base", 1): 10.0, ("base", 2): 20.0})
    assert forecast.seconds_left == 40
    forecast.finish(("swapped", 0), 0.01)  # from the cache
    forecast.finish(("base", 0), 15.0)
    assert forecast.seconds_left == 45
    assert forecast.note.startswith("sampling ends ")
    forecast.finish(("base", 1), 5.0)
    assert forecast.seconds_left == 20
    forecast.finish(("base", 2), 20.0)
    assert (forecast.seconds_left, forecast.note) == (0, "")


def test_the_number_of_clips_is_that_of_the_conditions() -> None:
    for strengths in (Eval().strengths, [1.0, 0.25, 0.0], [0.5]):
        settings = Eval(strengths=strengths, seeds=[0, 1])
        assert settings.clips_of(5) == len(all_conditions(strengths)) * 5 * 2
    assert Eval().clips_of(24) == 1008


def test_the_measured_cost_is_positive_and_counts_guidance(world: World) -> None:
    source = open_source(world.config("sample.guidance=3.0"))
    assert isinstance(source, SampledClips)
    cost = source.measure_cost(batches(source.held_out.windows, source.seeds, 3)[0])
    assert cost.passes == 2
    assert min(cost.with_reference, cost.without_reference, cost.decoding) > 0


def test_the_time_of_the_metrics_is_measured_with_all_threads(world: World) -> None:
    source = open_source(world.config("eval.workers=2"))
    suite, seconds = suite_of(source.config, source.held_out, 32, 5), 0.2

    def slow(output: CachedClip, truth: GroundTruth) -> Measurement:
        time.sleep(seconds)
        return Measurement({"slow": 0.0})

    def features(clip: Clip) -> Values:
        time.sleep(2 * seconds)
        return np.zeros(1)

    usual = measure_measuring(source, suite, None)
    assert 0 < usual.clip < seconds
    assert (usual.features, usual.overlaps) == (0, False)  # on a CPU, sampling and measuring take turns
    with_slow = replace(suite, groups=(*suite.groups, MetricGroup((Metric("slow", "", "", None, "picture"),), slow)))
    measured = measure_measuring(source, with_slow, ClipFeatures("slow", features))
    assert seconds / 2 <= measured.clip < 2 * seconds  # two threads
    assert seconds <= measured.features < 2 * seconds
    clips = 2 * (2 * (2 + 1) + 4)  # windows x (seeds x conditions, swapped twice, and four rows without a model)
    described = 2 * (2 * 2 + 3 + 1)  # not the floor, but the targets
    expected = clips * measured.clip + described * measured.features
    assert measured.of(["adapter+reference", "swapped"], 2, 2) == pytest.approx(expected)


def test_the_command_prints_the_cost_before_it_samples_and_on_resuming_what_is_done(world: World) -> None:
    first = run(world.root, "eval", *world.arguments)
    assert first.code == 0, first.err
    lines = first.out.splitlines()
    (number,) = [i for i, line in enumerate(lines) if line.startswith("80 clips in 10 conditions, and 24 of synthetic")]
    assert lines[number].endswith(" with 2 passes each (2 steps x 1): 208 passes")
    cost = r"measured: [\d.e-]+ s per pass and clip, .* [\d.e-]+ s for the metrics. .*about \d+ s, until \d\d:\d\d"
    assert re.match(cost, lines[number + 1])
    assert lines[number + 2].lstrip().startswith("synthetic probes")
    cells = sorted(Path(world.root, "runs/deblur-nano/eval-cells").glob("*.safetensors"))
    again = run(world.root, "eval", *world.arguments)
    assert re.search(
        r"all 80 clips of 10 conditions are sampled already; measuring takes about \d+ s, until \d", again.out
    )
    more = run(world.root, "eval", *world.arguments, "eval.strengths=[1.0,0.5,0.25,0.0]")
    assert "88 clips in 11 conditions, 80 are done, and 0 of synthetic probes" in more.out
    assert len(cells) < len(list(Path(world.root, "runs/deblur-nano/eval-cells").glob("*.safetensors")))


def test_the_dry_run_of_training_counts_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(
        *more: str, windows: int = 100, clip: float | None = 36.0, embedded: bool = True, processes: int = 1
    ) -> str:
        settings = compose_config(["conf=deblur", *more])
        monkeypatch.setattr("iclora_train.training.dry_run.evaluation_processes", lambda _: processes)
        return str(evaluation_cost(settings, windows, clip, training=7200.0, embedded=embedded))

    assert cost() == "10.1 for the evaluation's 1,008 clips (fewer with eval.budget or eval=quick)"
    assert cost(windows=12).startswith("5.0 for the evaluation's 504 clips")
    assert cost(embedded=False) == "0.5 for the evaluation, limited by eval.budget"  # a quarter of two hours
    assert cost("eval.budget=null", embedded=False) == cost()
    assert cost("eval.budget=3h") == "3.0 for the evaluation, limited by eval.budget"
    assert (
        cost(processes=4)
        == "2.5 for the evaluation's 1,008 clips by 4 processes (fewer with eval.budget or eval=quick)"
    )
    assert cost("eval.budget=3h", processes=4).startswith("2.5 for")  # four processes need less than the budget
    assert cost("eval.metrics=[warp_own]").endswith("eval=quick), without the time of eval.metrics")
    assert cost("eval.metrics=[warp_own]", "eval.budget=3h") == cost("eval.budget=3h")  # it is part of the budget
    assert cost("eval.after_training=false") == cost(clip=None) == cost(windows=0) == "None"

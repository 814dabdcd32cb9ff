"""`python -m eval` on a tiny random base: complete, resumable, and strict about its inputs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from eval.clips.clip_source import ClipCache, ClipSource
from eval.clips.conditions import Condition, Item, all_conditions, batches
from eval.clips.windows import HeldOut
from eval.run import evaluate, open_source, results_folder
from iclora_train.config import ConfigError
from iclora_train.core.atomic_files import exclusive
from iclora_train.ltx2.base_model import BaseModel, open_base
from tests.command import run, start
from tests.eval_world import (
    World,
    build,
    compose_config,
    refused,
    scores,
    without_evaluation,
    without_run,
    write_adapter,
)
from tests.tiny import write_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEMA = json.loads((Path(__file__).parent.parent / "eval" / "scores.schema.json").read_text())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which the command has finished once."""
    world = build(tmp_path_factory.mktemp("judged"))
    result = run(world.root, "eval", *world.arguments)
    assert result.code == 0, result.err
    assert f"report  {world.results / 'report.html'}" in result.out
    return world


@pytest.fixture
def world(evaluated: World, tmp_path: Path) -> World:
    return without_evaluation(evaluated, tmp_path)


def violations(value: Any, schema: dict[str, Any], where: str = "$") -> list[str]:
    """Violations of a schema by a JSON value, for the keywords that scores.schema.json uses."""
    if "$ref" in schema:
        return violations(value, SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]], where)
    result = []
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    fits = any(value is None if n == "null" else isinstance(value, kinds[n]) for n in types)
    if types and (not fits or (isinstance(value, bool) and "boolean" not in types)):
        return [f"{where}: {value!r} is not {' or '.join(types)}"]
    if "const" in schema and value != schema["const"]:
        result.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        result.append(f"{where}: {value!r} is not one of {schema['enum']}")
    if "minimum" in schema and value < schema["minimum"]:
        result.append(f"{where}: {value} is below {schema['minimum']}")
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            result.append(f"{where}: {len(value)} items")
        result += [v for i, x in enumerate(value) for v in violations(x, schema.get("items", {}), f"{where}[{i}]")]
    if isinstance(value, dict):
        properties, other = schema.get("properties", {}), schema.get("additionalProperties", {})
        result += [f"{where}: no {key}" for key in schema.get("required", []) if key not in value]
        for key, inner in value.items():
            matching = (of for pattern, of in schema.get("patternProperties", {}).items() if re.search(pattern, key))
            rule = properties[key] if key in properties else next(matching, other)
            result += [f"{where}.{key}: unknown"] if rule is False else violations(inner, rule, f"{where}.{key}")
    return result


def test_scores_follow_the_schema(evaluated: World) -> None:
    result = scores(evaluated)
    assert violations(result, SCHEMA) == []
    assert violations({**result, "task": 3, "extra": 1}, SCHEMA) == ["$.task: 3 is not string", "$.extra: unknown"]
    assert [entry["s"] for entry in result["strength"]] == [1, 0.5, 0]
    assert result["strength"][0]["metrics"] == result["cells"]["adapter+reference"]
    assert all(row["psnr"]["n"] == 4 for row in result["cells"].values())
    assert result["timings"]["sampling_seconds"].keys() == {condition.name for condition in all_conditions([1, 0.5, 0])}
    frames = result["frames"]["adapter+reference"]["psnr"]
    assert [len(series) for series in frames] == [5] * 4


def test_the_classic_filter_is_a_row_and_harm_is_against_the_input(evaluated: World) -> None:
    result = scores(evaluated)
    classic, harm = result["classic"], result["harm"]
    assert classic["filter"] == max(classic["candidates"], key=lambda name: classic["candidates"][name])
    assert classic["windows"] == 4
    filtered = result["cells"]["classic filter"]["psnr"]["mean"]
    assert filtered == pytest.approx(classic["candidates"][classic["filter"]], abs=1e-3)
    gains = np.subtract(result["windows"]["adapter+reference"]["psnr"], result["windows"]["input"]["psnr"])
    assert harm["share"] == np.mean(gains < -harm["limit"]) == len(harm["windows"]) / 4 > 0  # the adapter is random
    assert harm["worst_loss"] == pytest.approx(-gains.min())
    assert harm["windows"][0] == result["clips"][int(gains.argmin())]["key"]


def test_conditions_differ_as_expected(evaluated: World) -> None:
    result = scores(evaluated)
    psnr = {name: row["psnr"]["mean"] for name, row in result["cells"].items()}
    models = ("adapter+reference", "base+reference", "base", "adapter", "swapped", "empty prompt")
    assert len({round(psnr[name], 6) for name in models}) == 6
    assert psnr["input"] == pytest.approx(np.mean(result["windows"]["input"]["psnr"]), abs=1e-5)
    assert result["cells"]["floor"]["edge_gap"]["mean"] < 0
    assert result["control"]["null"]["mean"] < 0.01  # strength 0 equals no reference
    assert result["strength"][-1]["metrics"]["psnr"]["mean"] == pytest.approx(psnr["adapter"], abs=0.01)
    assert result["mask"]["half"]["inside"]["mean"] > 0
    assert [block["weight"] for block in result["mask"]["fade"]["blocks"]] == [0, 1]
    assert result["control"]["drift"]["mean"] > 1
    assert result["diversity"]["adapter+reference"]["n"] == 4


def test_a_killed_evaluation_resumes_and_gives_the_same_scores(evaluated: World, world: World) -> None:
    """Killed with SIGKILL once a few batches are on disk; the second run reuses them and gives the same scores."""
    cached = world.root / "runs" / "deblur-nano" / "eval-cells"
    process = start(world.root, "eval", *world.arguments)
    while len(list(cached.glob("*.safetensors"))) < 6 and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    before = {path: path.stat().st_mtime_ns for path in cached.glob("*.safetensors")}
    assert not list(world.root.rglob("scores.json"))
    assert 6 <= len(before) < len(list((evaluated.root / "runs").rglob("*.safetensors")))
    assert run(world.root, "eval", *world.arguments).code == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert without_run(scores(world)) == without_run(scores(evaluated))


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGUSR1, 138, "terminated")]
)
def test_a_signal_stops_at_once_and_keeps_finished_batches(number: int, code: int, word: str, world: World) -> None:
    cached = world.root / "runs" / "deblur-nano" / "eval-cells"
    process = start(world.root, "eval", *world.arguments)
    while len(list(cached.glob("*.safetensors"))) < 6 and process.is_alive():
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(20)
    assert process.exitcode == code
    message = (world.root / "err.txt").read_text().splitlines()[-1]
    assert message == f"{word}: the same command continues with the finished clips"
    assert len(list(cached.glob("*.safetensors"))) >= 6
    assert not list(cached.glob("*.tmp"))


def test_another_adapter_reuses_the_cached_clips_of_the_base(evaluated: World) -> None:
    cached = evaluated.root / "runs" / "deblur-nano" / "eval-cells"
    before = len(list(cached.iterdir()))
    other = evaluated.root / "other.safetensors"
    write_adapter(other, BaseModel.open(str(evaluated.root / "base")), task="another")
    source = open_source(evaluated.config(f"adapter={other}"))
    sampled = sample_all(source)
    assert len(list(cached.iterdir())) - before == sum(condition.adapter for condition, _ in sampled)
    assert len(sampled) == 10 * 3  # batches of a condition: 8 items, 3 at a time


def test_precision_and_guidance_are_part_of_the_cache_key(world: World) -> None:
    cached, counts = world.root / "runs" / "deblur-nano" / "eval-cells", []
    for more in ("model.precision=bf16", "sample.guidance=2.0"):
        sampled = sample_all(open_source(world.config(more, "eval.seeds=[0]")))
        counts.append(len(list(cached.iterdir())))
    assert counts == [len(sampled), 2 * len(sampled)]


def sample_all(source: ClipSource) -> list[tuple[Condition, tuple[Item, ...]]]:
    """Sample every batch of every condition."""
    config = source.config.eval
    parts = [
        (condition, batch)
        for condition in source.conditions
        for batch in batches(source.held_out.windows, config.seeds, 3)
    ]
    for condition, batch in parts:
        source.clips(condition, batch)
    return parts


def test_a_damaged_cache_file_is_named(tmp_path: Path) -> None:
    cache = ClipCache(tmp_path)
    cache.write({"a": 1}, torch.arange(3, dtype=torch.uint8).reshape(3, 1, 1, 1, 1).expand(3, 5, 8, 8, 3), 1.5)
    clips, seconds = cache.read({"a": 1})
    assert (clips.shape, seconds) == ((3, 5, 8, 8, 3), 1.5)
    middle, _ = cache.read({"a": 1}, slice(1, 2))
    assert middle.shape == (1, 5, 8, 8, 3)
    assert (middle == 1).all()
    cache.path({"a": 1}).write_bytes(b"half a file")
    with pytest.raises(ConfigError, match="is damaged"):
        cache.read({"a": 1})


def test_leakage_is_refused(tmp_path: Path) -> None:
    leaky = build(tmp_path, {"train": ["sea", "cat"], "heldout": ["cat", "dog"]})
    refused(leaky.config(), r"leakage: cat of split heldout \(1 clips in all\)")


def test_cuts_of_one_recording_are_one_source(tmp_path: Path) -> None:
    """Four clips of two recordings: partners come from the other recording, and claims count two units."""
    sources = {"train": ["sea"], "heldout": ["cat", "cat close", "dog", "dog close"]}
    world = build(tmp_path, sources, recording=lambda clip: f"{clip.split()[0]}.mov")
    held_out = HeldOut.open(world.config("eval.windows=8"), BaseModel.open(str(tmp_path / "base")))
    assert [window.source for window in held_out.windows] == ["cat.mov"] * 4 + ["dog.mov"] * 4
    assert [window.partner for window in held_out.windows] == [4, 5, 6, 7, 0, 1, 2, 3]


def test_fewer_windows_than_asked_for_are_evaluated_with_a_note(evaluated: World) -> None:
    held_out = HeldOut.open(evaluated.config("eval.windows=5"), open_base(evaluated.config().model))
    assert len(held_out.windows) == 4
    assert [note.split(" holds ")[1] for note in held_out.notes] == ["4 windows of split heldout: these are evaluated"]


def test_a_second_evaluation_into_the_same_folder_is_refused(world: World) -> None:
    with exclusive(results_folder(world.config()), "..."):
        refused(world.config(), "is being written by another process")


def test_missing_and_mismatched_inputs_are_named(evaluated: World, tmp_path: Path) -> None:
    refused(evaluated.config(f"adapter={tmp_path / 'none.safetensors'}"), r"none.safetensors does not exist")
    refused(
        evaluated.config("eval.split=val"),
        "split val of .* has no windows: prepare more clips",
    )
    refused(evaluated.config(f"data.root={tmp_path}"), "run data_prep")
    other = write_tiny_base(tmp_path / "base", seed=1)
    refused(evaluated.config(f"model.checkpoint={other}"), "was made by another base")


def test_pairs_without_references_are_refused(tmp_path: Path) -> None:
    refused(build(tmp_path, references=0).config(), "its pairs have no reference")


def test_eval_quick_sets_windows_seeds_and_strengths(evaluated: World) -> None:
    config = evaluated.config("eval=quick")
    explicit = (4, [0, 1], [1.0, 0.5, 0.0])  # explicit settings win
    assert (config.eval.windows, config.eval.seeds, config.eval.strengths) == explicit
    defaults = compose_config(["conf=deblur", "eval=quick"])
    assert (defaults.eval.windows, defaults.eval.seeds, defaults.eval.strengths) == (12, [0], [1.0, 0.25, 0.0])


def test_the_report_compares_with_an_earlier_evaluation(evaluated: World, tmp_path: Path) -> None:
    refused(evaluated.config(f"eval.against={tmp_path}"), "contains no scores.json")
    before = tmp_path / "scores.json"
    shutil.copy(evaluated.results / "scores.json", before)
    junit = tmp_path / "claims.xml"
    report = evaluate(evaluated.config(f"eval.against={before}", "adapter=none", f"eval.junit={junit}"))
    assert "paired" in report.read_text()
    result = json.loads((report.parent / "scores.json").read_text())
    expected = [verdict["name"] for verdict in result["verdicts"]]
    expected += [f"symptom {flag['symptom']}" for flag in result["flags"]]
    assert [case.attrib["name"] for case in ElementTree.parse(junit).iter("testcase")] == expected
    assert scores(evaluated) == json.loads(before.read_text())  # adapter=none writes into another folder

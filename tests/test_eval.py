"""eval from the command line on a tiny random base: complete, resumable, and strict about what it is given."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.clips.clip_source import ClipCache, ClipSource
from eval.clips.conditions import Condition, Item, all_conditions, batches
from eval.clips.windows import HeldOut
from eval.run import evaluate, open_source
from iclora_train.config import ConfigError
from iclora_train.ltx2.base_model import BaseModel
from tests.command import run, start
from tests.eval_world import World, build, compose_config, refused, scores, without_run, write_adapter
from tests.tiny import write_tiny_base

SCHEMA = json.loads((Path(__file__).parent.parent / "eval" / "scores.schema.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The world is too small for more, and tests share few cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which the command has been run once, from beginning to end."""
    world = build(tmp_path_factory.mktemp("judged"))
    done = run(world.root, "eval", *world.arguments)
    assert done.code == 0, done.err
    assert f"report  {world.results / 'report.html'}" in done.out
    return world


@pytest.fixture
def world(judged: World, tmp_path: Path) -> World:
    """A fresh world with nothing judged yet; shards and base are those of `judged`."""
    shutil.copy(judged.adapter, tmp_path / "adapter.safetensors")
    overrides = [o for o in judged.overrides if not o.startswith("runs_dir")]
    return World(tmp_path, [*overrides, f"runs_dir={tmp_path / 'runs'}"])


def violations(value: Any, schema: dict[str, Any], where: str = "$") -> list[str]:
    """What of a JSON value breaks a schema, for the keywords that scores.schema.json uses."""
    if "$ref" in schema:
        return violations(value, SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]], where)
    found = []
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    fits = any(value is None if n == "null" else isinstance(value, kinds[n]) for n in names)
    if names and (not fits or (isinstance(value, bool) and "boolean" not in names)):
        return [f"{where}: {value!r} is no {' or '.join(names)}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is none of {schema['enum']}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{where}: {value} is below {schema['minimum']}")
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            found.append(f"{where}: {len(value)} items")
        found += [v for i, x in enumerate(value) for v in violations(x, schema.get("items", {}), f"{where}[{i}]")]
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
        found += [f"{where}: no {key}" for key in schema.get("required", []) if key not in value]
        for key, inner in value.items():
            rule = known.get(key, other)
            found += [f"{where}.{key}: unknown"] if rule is False else violations(inner, rule, f"{where}.{key}")
    return found


def test_scores_follow_the_schema(judged: World) -> None:
    found = scores(judged)
    assert violations(found, SCHEMA) == []
    assert violations({**found, "task": 3, "extra": 1}, SCHEMA) == ["$.task: 3 is no string", "$.extra: unknown"]
    assert [entry["s"] for entry in found["strength"]] == [1, 0.5, 0]
    assert found["strength"][0]["metrics"] == found["cells"]["adapter+reference"]
    assert all(row["psnr"]["n"] == 4 for row in found["cells"].values())
    assert found["timings"]["sampling_seconds"].keys() == {condition.name for condition in all_conditions([1, 0.5, 0])}
    frames = found["frames"]["adapter+reference"]["psnr"]
    assert [len(series) for series in frames] == [5] * 4


def test_cells_differ_as_they_should(judged: World) -> None:
    found = scores(judged)
    psnr = {name: row["psnr"]["mean"] for name, row in found["cells"].items()}
    models = ("adapter+reference", "base+reference", "base", "adapter", "swapped", "empty prompt")
    assert len({round(psnr[name], 6) for name in models}) == 6
    assert psnr["input"] == pytest.approx(np.mean(found["windows"]["input"]["psnr"]), abs=1e-5)
    assert found["cells"]["floor"]["edge_gap"]["mean"] < 0
    assert found["control"]["null"]["mean"] < 0.01  # strength 0 is as if there were no reference
    assert found["strength"][-1]["metrics"]["psnr"]["mean"] == pytest.approx(psnr["adapter"], abs=0.01)
    assert found["mask"]["half"]["inside"]["mean"] > 0
    assert [block["weight"] for block in found["mask"]["fade"]["blocks"]] == [0, 1]
    assert found["control"]["drift"]["mean"] > 1
    assert found["diversity"]["adapter+reference"]["n"] == 4


def test_a_killed_evaluation_goes_on_and_ends_the_same(judged: World, world: World) -> None:
    """Killed with -9 as soon as a few batches are on disk; the second run keeps them and gives the same scores."""
    cached = world.root / "runs" / "deblur-nano" / "eval-cells"
    process = start(world.root, "eval", *world.arguments)
    while len(list(cached.glob("*.safetensors"))) < 6 and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    before = {path: path.stat().st_mtime_ns for path in cached.glob("*.safetensors")}
    assert not list(world.root.rglob("scores.json"))
    assert 6 <= len(before) < len(list((judged.root / "runs").rglob("*.safetensors")))
    assert run(world.root, "eval", *world.arguments).code == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert without_run(scores(world)) == without_run(scores(judged))


def test_ctrl_c_ends_it_at_once_and_loses_nothing(world: World) -> None:
    cached = world.root / "runs" / "deblur-nano" / "eval-cells"
    process = start(world.root, "eval", *world.arguments)
    while len(list(cached.glob("*.safetensors"))) < 6 and process.is_alive():
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode not in (None, 0)
    assert len(list(cached.glob("*.safetensors"))) >= 6
    assert not list(cached.glob("*.tmp"))


def test_the_base_is_not_sampled_again_for_another_adapter(judged: World) -> None:
    cached = judged.root / "runs" / "deblur-nano" / "eval-cells"
    before = len(list(cached.iterdir()))
    other = judged.root / "other.safetensors"
    write_adapter(other, BaseModel.open(str(judged.root / "base")), task="another")
    source = open_source(judged.config(f"adapter={other}"))
    made = sample_all(source)
    assert len(list(cached.iterdir())) - before == sum(condition.adapter for condition, _ in made)
    assert len(made) == 10 * 3  # batches of a cell: 8 items, 3 at a time


def test_half_precision_and_guidance_make_other_clips(world: World) -> None:
    cached, counts = world.root / "runs" / "deblur-nano" / "eval-cells", []
    for more in ("model.precision=bf16", "sample.guidance=2.0"):
        made = sample_all(open_source(world.config(more, "eval.seeds=[0]")))
        counts.append(len(list(cached.iterdir())))
    assert counts == [len(made), 2 * len(made)]


def sample_all(source: ClipSource) -> list[tuple[Condition, tuple[Item, ...]]]:
    """Every batch of every cell, sampled."""
    config = source.config.eval
    parts = [
        (condition, batch)
        for condition in source.conditions
        for batch in batches(source.held_out.windows, config.seeds, 3)
    ]
    for condition, batch in parts:
        source.clips(condition, batch)
    return parts


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    cache = ClipCache(tmp_path)
    cache.write({"a": 1}, torch.arange(3, dtype=torch.uint8).reshape(3, 1, 1, 1, 1).expand(3, 5, 8, 8, 3), 1.5)
    clips, seconds = cache.read({"a": 1})
    assert (clips.shape, seconds) == ((3, 5, 8, 8, 3), 1.5)
    one, _ = cache.read({"a": 1}, slice(1, 2))
    assert one.shape == (1, 5, 8, 8, 3)
    assert (one == 1).all()
    cache.path({"a": 1}).write_bytes(b"half a file")
    with pytest.raises(ConfigError, match="is damaged"):
        cache.read({"a": 1})


def test_leakage_is_refused(tmp_path: Path) -> None:
    leaky = build(tmp_path, {"train": ["sea", "cat"], "heldout": ["cat", "dog"]})
    refused(leaky.config(), r"leakage: cat of split heldout \(1 clips in all\)")


def test_cuts_of_one_recording_are_one_source(tmp_path: Path) -> None:
    """Four clips of two recordings: partners are of the other recording, and claims count two units."""
    sources = {"train": ["sea"], "heldout": ["cat", "cat close", "dog", "dog close"]}
    world = build(tmp_path, sources, recording=lambda clip: f"{clip.split()[0]}.mov")
    held_out = HeldOut.open(world.config("eval.windows=8"), BaseModel.open(str(tmp_path / "base")))
    assert [window.source for window in held_out.windows] == ["cat.mov"] * 4 + ["dog.mov"] * 4
    assert [window.partner for window in held_out.windows] == [4, 5, 6, 7, 0, 1, 2, 3]


def test_what_is_missing_is_named(judged: World, tmp_path: Path) -> None:
    refused(judged.config(f"adapter={tmp_path / 'none.safetensors'}"), r"none.safetensors does not exist")
    refused(judged.config("eval.windows=5"), "holds 4 windows of split heldout")
    refused(judged.config("eval.split=val"), "holds 0 windows of split val")
    refused(judged.config(f"data.root={tmp_path}"), "run data_prep")
    other = write_tiny_base(tmp_path / "base", seed=1)
    refused(judged.config(f"model.checkpoint={other}"), "was made by another base")


def test_pairs_without_references_are_refused(tmp_path: Path) -> None:
    refused(build(tmp_path, references=0).config(), "its pairs have no reference")


def test_quick_is_one_word(judged: World) -> None:
    config = judged.config("eval=quick")
    assert (config.eval.windows, config.eval.seeds, config.eval.strengths) == (4, [0, 1], [1.0, 0.5, 0.0])  # as given
    alone = compose_config(["conf=deblur", "eval=quick"])
    assert (alone.eval.windows, alone.eval.seeds, alone.eval.strengths) == (12, [0], [1.0, 0.25, 0.0])


def test_the_report_shows_what_changed_since(judged: World, tmp_path: Path) -> None:
    refused(judged.config(f"eval.against={tmp_path}"), "contains no scores.json")
    before = tmp_path / "scores.json"
    shutil.copy(judged.results / "scores.json", before)
    report = evaluate(judged.config(f"eval.against={before}", "adapter=none"))
    assert "paired" in report.read_text()
    assert scores(judged) == json.loads(before.read_text())  # adapter=none has a folder of its own

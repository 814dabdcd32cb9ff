"""Each protocol has a folder of results of its own, and no results are damaged or mixed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from eval.clips.sampled import SampledClips
from eval.planning import _earlier_width
from eval.run import evaluate, results_folder
from iclora_train.config import Config, ConfigError
from iclora_train.core.files_together import write_together
from iclora_train.core.results_folder import KNOWN, PROTOCOL_KEYS, requested
from tests.command import run
from tests.eval_world import World, build, compose_config


def settings(tmp_path: Path, *more: str) -> Config:
    return compose_config(["conf=deblur", f"runs_dir={tmp_path}", *more])


def write_scores(folder: Path, config: Config, **more: Any) -> None:
    """The part of scores.json that names its protocol."""
    sections = {"eval": asdict(config.eval), "sample": asdict(config.sample)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps({"provenance": {"settings": sections}, **more}))


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ((), "eval"),
        (("eval=quick",), "eval-quick"),
        (("eval.budget=30m",), "eval-30m"),
        (("eval=quick", "eval.budget=90s"), "eval-quick-90s"),
        (("adapter=none", "eval=quick"), "eval-none-quick"),
        (("eval.label=my name",), "eval-my-name"),
        (("eval.workers=4", "eval.thresholds.swap_drop=3"), "eval"),  # these do not change which clips are measured
    ],
)
def test_the_folder_is_named_after_the_protocol(more: tuple[str, ...], name: str, tmp_path: Path) -> None:
    assert results_folder(settings(tmp_path, *more)) == tmp_path / "deblur-nano" / name


def test_known_protocols_are_those_of_the_settings_files() -> None:
    for name, choice in (("full", "default"), ("quick", "quick")):
        request = requested(compose_config(["conf=deblur", f"eval={choice}"]))
        assert {key: request[key] for key in PROTOCOL_KEYS} == KNOWN[name]


def test_other_settings_get_a_folder_of_their_own_and_keep_it(tmp_path: Path) -> None:
    folders = set()
    for more in ((), ("eval=quick",), ("eval.windows=6",), ("eval.windows=6", "eval.seeds=[3]"), ("sample.steps=4",)):
        config = settings(tmp_path, *more)
        folder = results_folder(config)
        write_scores(folder, config)
        folders.add(folder)
        assert results_folder(config) == folder
    assert len(folders) == 5
    assert results_folder(settings(tmp_path)).name == "eval"


def test_results_of_an_earlier_version_are_used_again_and_not_overwritten(tmp_path: Path) -> None:
    """Every protocol wrote to eval/, and files did not name eval.budget and other newer settings."""
    quick = settings(tmp_path, "eval=quick")
    folder = tmp_path / "deblur-nano" / "eval"
    write_scores(folder, quick)
    scores = json.loads((folder / "scores.json").read_text())
    for key in ("budget", "label"):
        del scores["provenance"]["settings"]["eval"][key]
    del scores["provenance"]["settings"]["sample"]["rescale"]
    (folder / "scores.json").write_text(json.dumps(scores))
    assert results_folder(quick) == folder
    assert results_folder(settings(tmp_path)).name == "eval-full"
    (folder / "scores.json").write_text("half a fi")
    assert results_folder(settings(tmp_path)) == folder  # damaged results are replaced


@pytest.mark.parametrize(
    "content",
    [
        {"provenance": None},
        {"provenance": {"settings": [1]}},
        {"provenance": {"settings": {"eval": 3, "sample": "x"}}},
        {"provenance": {"settings": {"eval": {}, "sample": {}}}, "plan": [2]},
        {"plan": {"requested": {"sample": None}}},
        {"adapter": None},
        {"cells": {"adapter+reference": {"psnr": {"low": 1, "high": "x"}}}, "clips": [], "strength": 3},
        {"cells": [4]},
    ],
)
def test_a_damaged_file_of_results_stops_nothing(content: dict[str, Any], tmp_path: Path) -> None:
    """Neither the choice of the folder nor the width that a budget expects from earlier results."""
    folder = results_folder(settings(tmp_path))
    videos = results_folder(settings(tmp_path, f"videos={tmp_path}"))
    for place in (folder, videos):
        place.mkdir(parents=True)
        (place / "scores.json").write_text(json.dumps(content))
    assert results_folder(settings(tmp_path)).name.startswith("eval")
    assert results_folder(settings(tmp_path, f"videos={tmp_path}")).name.startswith(videos.name)
    assert _earlier_width(folder, "psnr") is None


def test_folders_of_videos_with_the_same_name_have_results_of_their_own(tmp_path: Path) -> None:
    """ours/outputs and theirs/outputs are two programs; the same folder is found again from anywhere."""
    ours, theirs = (settings(tmp_path, f"videos={tmp_path / name / 'outputs'}") for name in ("ours", "theirs"))
    folder = results_folder(ours)
    assert folder.name == results_folder(theirs).name == "eval-videos-outputs"
    write_scores(folder, ours, adapter={"path": str(tmp_path / "ours" / "outputs")})
    assert results_folder(ours) == folder
    assert results_folder(settings(tmp_path, f"videos={tmp_path}/ours/../ours/outputs")) == folder
    other = results_folder(theirs)
    assert other.name.startswith("eval-videos-outputs-")
    write_scores(other, theirs, adapter={"path": str(tmp_path / "theirs" / "outputs")})
    assert results_folder(theirs) == other


def test_a_folder_as_junit_file_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.junit=.* is a folder: name a file"):
        settings(tmp_path, f"eval.junit={tmp_path}")


def test_the_full_protocol_does_not_overwrite_the_results_of_a_budget(tmp_path: Path) -> None:
    automatic, full = settings(tmp_path), settings(tmp_path, "eval.budget=null")
    folder = results_folder(automatic)
    write_scores(folder, automatic, plan={"budget": 600.0, "requested": requested(automatic)})
    assert results_folder(automatic) == folder
    assert results_folder(full).name == "eval-full"
    assert results_folder(settings(tmp_path, "eval.budget=10m")) == folder  # the same protocol


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("folders"))


def test_an_earlier_evaluation_of_other_windows_is_refused_before_anything_is_sampled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = evaluate(world.config())
    before = {path.name: path.read_bytes() for path in report.parent.iterdir() if path.is_file()}
    monkeypatch.setattr(SampledClips, "_make", lambda *_: pytest.fail("a clip was sampled"))
    for more, differing in (("eval.windows=2", "clips"), ("eval.seeds=[7]", "seeds")):
        with pytest.raises(ConfigError, match=f"cannot be compared: their {differing} differ"):
            evaluate(world.config(f"eval.against={report.parent}", more, "eval.label=another"))
    assert {path.name: path.read_bytes() for path in report.parent.iterdir() if path.is_file()} == before


def test_the_evaluations_of_a_sweep_do_not_overwrite_each_other(world: World) -> None:
    result = run(world.root, "eval", "-m", *world.arguments, "sample.steps=1,3", "eval.windows=2", "eval.seeds=[0]")
    assert result.code == 0, result.err
    folders = sorted(world.root.glob("runs/deblur-nano/eval-adapter-*-steps=*"))
    assert [folder.name.rpartition("-")[2] for folder in folders] == ["steps=1", "steps=3"]
    for folder, steps in zip(folders, (1, 3), strict=True):
        assert json.loads((folder / "scores.json").read_text())["provenance"]["settings"]["sample"]["steps"] == steps


def test_files_that_belong_together_are_replaced_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "scores.json", tmp_path / "report.html"
    write_together([(first, b"1"), (second, b"1")])
    with pytest.raises(TypeError):
        write_together([(first, b"2"), (second, "text")])  # type: ignore[list-item]
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"1")
    replaced: list[Path] = []
    real = Path.replace

    def killed_after_the_first(path: Path, target: Path) -> Path:
        if replaced:
            raise KeyboardInterrupt
        replaced.append(target)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        write_together([(first, b"2"), (second, b"2")])
    assert replaced == [first]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json"]  # not beside an old report
    assert first.read_bytes() == b"2"

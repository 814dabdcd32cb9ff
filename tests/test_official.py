"""Published adapters: conf/official says what their files lack; eval, check and convert use the files as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.clips.judged_adapter import open_adapter
from iclora_train.adapters.__main__ import main
from iclora_train.adapters.convert import import_adapter
from iclora_train.adapters.official import recognise, usage_notes
from iclora_train.config import ConfigError, Sampling
from iclora_train.config import official as registry_module
from iclora_train.config.hydra_app import conf_dir, task_names
from iclora_train.config.official import Official, match_file, registry, with_task
from iclora_train.ltx2.base_model import BaseModel
from tests.adapter_files import AUDIO, PUBLISHED, VIDEO, adapter_for, tensors_of
from tests.command import run
from tests.eval_world import World, build, compose_config
from tests.test_eval import SCHEMA, violations

NAMES = sorted(registry())
DEBLUR = "ltx-2.3-22b-ic-lora-deblur-0.9.safetensors"
WORDS = {  # field -> its word in the comment `Not published`
    "trigger": "trigger",
    "reference_downscale": "reference factor",
    "rank": "rank",
    "sizes": "size",
    "fps": "frame rate",
    "sample": "sampling",
    "strength": "strength",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world without an evaluation."""
    return build(tmp_path_factory.mktemp("official"))


def official_copy(world: World, path: Path, audio: int = 0, **metadata: str) -> Path:
    """The world's adapter as Lightricks would publish it: no metadata of ours, and some audio modules."""
    tensors = {key: value.bfloat16() for key, value in load_file(world.adapter).items()}
    for name in AUDIO[:audio]:
        tensors |= {f"diffusion_model.{name}.lora_A.weight": torch.ones(2, 8).bfloat16()}
        tensors |= {f"diffusion_model.{name}.lora_B.weight": torch.ones(8, 2).bfloat16()}
    save_file(tensors, path, metadata or None)
    return path


# ---- the registry


@pytest.mark.parametrize("name", NAMES)
def test_the_comment_names_exactly_what_is_not_published(name: str) -> None:
    official = registry()[name]
    text = " ".join((conf_dir() / "official" / f"{name}.yaml").read_text().replace("\n# ", " ").split())
    comment = re.search(r"Not published: ([^.]*)\.", text)
    unknown = {word for field, word in WORDS.items() if getattr(official, field) in (None, [], {})}
    if official.task is None and official.reference is None:
        unknown.add("how references are made")
    assert (set() if comment is None else set(comment[1].split(", "))) == unknown
    assert set(official.unconfirmed) <= vars(official).keys()
    assert all(getattr(official, field) not in (None, [], {}) for field in official.unconfirmed)


@pytest.mark.parametrize("name", NAMES)
def test_each_adapter_is_recognised_by_its_names_alone(name: str, tmp_path: Path) -> None:
    for start in registry()[name].files:
        for ending in ("", "-0.9", "_bf16"):
            match = match_file(tmp_path / f"{start}{ending}.safetensors")
            assert match is not None
            assert (match.name, match.by) == (name, "its name")
        assert match_file(tmp_path / f"{start}red.safetensors") is None
        assert match_file(tmp_path / f"my-{start}.safetensors") is None


@pytest.mark.parametrize("name", [name for name in NAMES if registry()[name].supported and registry()[name].task])
def test_the_task_of_an_adapter_has_its_trigger_and_factor(name: str) -> None:
    official = registry()[name]
    assert official.task in task_names()
    config = compose_config([f"conf={official.task}", *official.settings])
    assert official.trigger in (None, config.task.trigger)
    assert official.reference_downscale in (None, config.task.reference_downscale)
    for size in official.sizes:
        width, height, frames = map(int, size.split("x"))
        assert (frames - 1) % 8 == 0
        assert width % 32 == height % 32 == 0
    Sampling(**{key: value for key, value in official.sample.items() if not isinstance(value, list)})


def test_a_renamed_file_is_recognised_by_its_published_size_or_its_metadata(
    tmp_path: Path,
) -> None:
    path = tmp_path / "renamed.safetensors"
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(327_322_640)  # a sparse file
    assert recognise(path, {}) == registry_module.match_file(path)
    match = recognise(path, {})
    assert match is not None
    assert (match.name, match.by) == ("ltx2_5-upscale_x2", "its size of 327322640 bytes")
    path.write_bytes(b"0")
    assert recognise(path, {}) is None
    hdr = recognise(path, {"hdr_transform": "logc3"})
    assert hdr is not None
    assert (hdr.name, hdr.by) == ("ltx2_3-hdr", "its metadata hdr_transform")
    assert recognise(path, {"hdr_transform": "logc3", "base_model_family": "ltx"}) is None  # a file of this project


def test_a_wrong_registry_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("title: A\nbase: '2.3'\nfiles: [a]\nrnak: 3\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: .*rnak"):
        registry_module._read(path)


# ---- check and convert


def test_check_says_which_adapter_a_file_is(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = official_copy(world, tmp_path / DEBLUR, audio=2)
    with pytest.raises(SystemExit, match="0"):
        main(["check", str(path), "--base", str(world.root / "base")])
    out = capsys.readouterr().out
    assert "10 linears, 2 of them audio modules and cross-attention to audio" in out
    assert f"note: {path}: is Deblur 0.9 for LTX-2.3 (by its name); taken from conf/official/ltx2_3-deblur.yaml" in out
    assert "reference factor 1, trigger DEBLUR" in out
    assert "lower the strength to 0.8 on halos" in out
    assert "was made for" not in out
    other = official_copy(world, tmp_path / "ltx-2.5-22b-ic-lora-deblur.safetensors")
    with pytest.raises(SystemExit, match="0"):
        main(["check", str(other), "--base", str(world.root / "base")])
    assert "was made for LTX-2.5; the base is tiny 2.3" in capsys.readouterr().out
    union = official_copy(world, tmp_path / "ltx-2.3-22b-ic-lora-union.safetensors", reference_downscale_factor="3")
    with pytest.raises(SystemExit, match="0"):
        main(["check", str(union), "--base", str(world.root / "base")])
    assert "declares reference factor 3; Union-Control ref0.5 has 2" in capsys.readouterr().out


def test_an_adapter_of_ltx_video_is_refused_by_its_name(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = official_copy(world, tmp_path / "ltxv-097-ic-lora-pose-control-comfyui.safetensors")
    with pytest.raises(SystemExit, match="2"):
        main(["check", str(path), "--base", str(world.root / "base")])
    assert "is Pose 0.9.7 for LTX-Video 13B (by its name): this project trains" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="LTX-Video 13B"):
        import_adapter(path)


def test_convert_writes_what_the_file_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "ltx-2.3-22b-ic-lora-pixel-spatial-upscaler-x4-0.9.safetensors", tmp_path / "o.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in tensors_of(adapter_for(PUBLISHED, VIDEO)).items()}, source)
    with pytest.raises(SystemExit, match="0"):
        main(["convert", str(source), str(out)])
    assert "reference factor 4 (not confirmed by Lightricks)" in capsys.readouterr().out
    assert import_adapter(out).downscale == 4
    assert import_adapter(tmp_path / source.name).downscale == 4


# ---- eval


def test_an_official_file_is_evaluated_as_it_comes(world: World, tmp_path: Path) -> None:
    """The whole command, without conf=: task, factor and trigger come from the registry, and scores.json says so."""
    path = official_copy(world, tmp_path / DEBLUR, audio=3)
    without_task = [setting for setting in world.overrides if not setting.startswith("conf=")]
    result = run(tmp_path, "eval", *without_task, f"adapter={path}")
    assert result.code == 0, result.err
    out = " ".join(result.out.split())
    assert "is Deblur 0.9 for LTX-2.3 (by its name): evaluated with conf=deblur" in out
    assert "taken from conf/official/ltx2_3-deblur.yaml: reference factor 1, trigger DEBLUR" in out
    assert "3 of its 11 modules are not used" in out
    assert "is published with sample.schedule=distilled (here shifted), sample.steps=8 (here 2), 960x544x121" in out
    found = next((world.root / "runs" / "deblur-nano").glob("eval-ltx*"))
    facts = json.loads((found / "scores.json").read_text())
    assert violations(facts, SCHEMA) == []
    assert facts["adapter"]["unused_modules"] == 3
    assert facts["adapter"]["foreign"]
    assert facts["adapter"]["official"] == {
        "name": "ltx2_3-deblur",
        "title": "Deblur 0.9",
        "base": "2.3",
        "recognised_by": "its name",
    }
    assert facts["adapter"]["metadata"]["trigger"] == "DEBLUR"


def test_a_factor_of_the_registry_that_the_task_lacks_is_refused(world: World, tmp_path: Path) -> None:
    path = official_copy(world, tmp_path / "ltx-2.3-22b-ic-lora-union-control-ref0.5.safetensors")
    base = BaseModel.open(str(world.root / "base"))
    with pytest.raises(ConfigError, match="needs references at downscale 2"):
        open_adapter(world.config(f"adapter={path}"), base)


def test_a_trigger_that_the_captions_lack_is_a_note(world: World, tmp_path: Path) -> None:
    path = official_copy(world, tmp_path / "ltx-2.3-22b-ic-lora-colorization-0.9.safetensors")
    note = open_adapter(world.config(f"adapter={path}"), BaseModel.open(str(world.root / "base"))).note
    assert note is not None
    assert "have the trigger 'DEBLUR', Colorization 0.9 has 'COLORIZE': set task.trigger" in note
    assert "prompts have the form 'Reference shows" in note


def test_the_task_comes_from_the_adapter_unless_it_is_given(tmp_path: Path) -> None:
    x4 = "adapter=a/ltx-2.3-22b-ic-lora-pixel-spatial-upscaler-x4-0.9.safetensors"
    arguments, line = with_task([x4, "seed=1"])
    assert arguments == ["conf=upscale_x2", "task.reference_downscale=4", x4, "seed=1"]
    assert line is not None
    assert with_task([x4, "--cfg", "job"])[0][:2] == arguments[:2]
    for given in ([x4, "conf=canny"], ["seed=1"], ["adapter=none"], [x4, "--help"], [x4, "-m"]):
        assert with_task(given) == (given, None)
    result = run(tmp_path, "eval", "adapter=ltx-2.3-22b-ic-lora-hdr-0.9.safetensors")
    assert result.code == 2
    assert (
        "is HDR 0.9 for LTX-2.3 (by its name), and no task of this project makes its references: set conf" in result.err
    )


def test_a_use_that_differs_from_the_published_one_is_named() -> None:
    official = Official(
        title="A", base="2.3", files=["a"], sizes=["64x32x9"], fps=24, strength=[1.2], sample={"guidance": [3, 4]}
    )
    (line,) = usage_notes(official, Sampling(guidance=1), 1.0, 32, 32, 25)
    assert line == (
        "A is published with sample.guidance=3 to 4 (here 1), a strength of 1.2 (here 1), 64x32x9 (here 32x32), "
        "24 frames per second (here 25)"
    )
    assert usage_notes(official, Sampling(guidance=3.5), 1.2, 64, 32, 23.976) == []

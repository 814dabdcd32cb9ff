"""generate signal=auto: the signal is made on the way, and the video is the same as with a signal made before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from iclora_train.adapters.card import write_card
from iclora_train.adapters.reference_makers import makers_metadata
from iclora_train.adapters.references import references_metadata
from iclora_train.config import ConfigError, Task
from iclora_train.config.references import MoreReference
from iclora_train.generate.run import generate
from iclora_train.generate.signals import _in_grammar
from iclora_train.media.clip import read_clip
from tests.clips import moving
from tests.test_generate import assets, settings_for, write_adapter

__all__ = ["assets"]
EDGES = Task(name="canny", family="structure", maker="control.canny", maker_args={"low": 20.0, "high": 60.0})
STILL = MoreReference("still", "edit.frame", {"frame": -1}, frame=0)


def adapter_for(assets: Path, folder: Path, task: Task) -> str:
    """A random adapter for the tiny base with the makers of a task."""
    metadata = {**makers_metadata(task), **references_metadata(task.more_references)}
    path = folder / f"{task.name}.safetensors"
    return str(write_adapter(path, assets / "base", reference_downscale_factor=task.reference_downscale, **metadata))


def pixels(folder: Path) -> np.ndarray:
    return np.stack([cv2.imread(str(path)) for path in sorted((folder / "frames").glob("*.png"))])


def made(assets: Path, folder: Path, **changes: Any) -> np.ndarray:
    folder.mkdir()
    generate(settings_for(assets, folder, **changes))
    return pixels(folder)


def test_the_video_is_that_of_a_signal_made_before(assets: Path, tmp_path: Path) -> None:
    adapter = adapter_for(assets, tmp_path, EDGES)
    on_the_way = made(assets, tmp_path / "a", adapter=adapter, signal="auto", width=None, height=None, frames=None)
    signal = tmp_path / "a" / "video.signal.mp4"
    edges = np.stack(list(read_clip(signal)))
    assert edges.shape[1:3] == on_the_way.shape[1:3]
    record = json.loads((tmp_path / "a" / "video.json").read_text())
    assert record["settings"]["reference"] == [str(signal)]
    before = made(assets, tmp_path / "b", adapter=adapter, reference=str(signal), width=None, height=None, frames=None)
    assert (before == on_the_way).all()
    without = made(assets, tmp_path / "c", adapter=adapter, width=None, height=None, frames=None)
    assert (without != on_the_way).any()


def test_one_clip_stands_for_all_references(assets: Path, tmp_path: Path) -> None:
    task = Task(name="two", family="structure", maker=EDGES.maker, maker_args=EDGES.maker_args, more_references=[STILL])
    adapter = adapter_for(assets, tmp_path, task)
    on_the_way = made(assets, tmp_path / "a", adapter=adapter, signal="auto")
    files = [str(tmp_path / "a" / name) for name in ("video.signal-first.mp4", "video.signal-still.png")]
    before = made(assets, tmp_path / "b", adapter=adapter, reference=files)
    assert (before == on_the_way).all()
    cv2.imwrite(str(tmp_path / "other.png"), moving(1, 40, 48, seed=3)[0])
    clip = str(assets / "clip.mp4")
    mixed = [clip, str(tmp_path / "other.png")]
    other = made(assets, tmp_path / "c", adapter=adapter, reference=mixed, signal=["auto", None])
    assert (other != on_the_way).any()


@pytest.mark.parametrize("maker", ["degrade.defocus", "given"])
def test_a_clip_with_the_fault_is_its_own_reference(
    maker: str, assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {"radius": [1.0, 2.0]} if maker != "given" else {}
    adapter = adapter_for(assets, tmp_path, Task(name="deblur", maker=maker, maker_args=args))
    video = made(assets, tmp_path / "a", adapter=adapter, signal="auto")
    assert "clip.mp4 is the reference first itself" in capsys.readouterr().out
    assert (made(assets, tmp_path / "b", adapter=adapter) == video).all()
    assert not list((tmp_path / "a").glob("*signal*"))


def test_a_union_and_settings_of_the_signal(assets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    controls = {"control.canny": {"args": {"low": 20.0, "high": 60.0}}, "control.soft_edges": {}}
    task = Task(
        name="union", family="structure", maker="union", maker_args={"controls": controls}, reference_downscale=2
    )
    adapter = adapter_for(assets, tmp_path, task)
    changes: dict[str, Any] = {"maker_args": {"thickness": 2, "soft": 0.5}, "start": 2}
    made(assets, tmp_path / "a", adapter=adapter, signal="canny", signal_settings=changes)
    record = json.loads((tmp_path / "a" / "video.signal.json").read_text())
    reference = record["references"][0]
    assert reference["maker"] == "control.canny"
    assert reference["args"] == {"low": 20.0, "high": 60.0, "thickness": 2, "soft": 0.5}
    assert record["window"]["indices"][0] == 2
    assert next(read_clip(Path(reference["file"]))).shape == (16, 16, 3)
    with pytest.raises(SystemExit) as stop:
        made(assets, tmp_path / "b", adapter=adapter, signal="auto")
    assert stop.value.code == 2
    assert "say which, control=..., one of canny, soft_edges" in capfd.readouterr().err
    assert not list((tmp_path / "b").iterdir())


def test_a_signal_of_a_failed_run_is_made_again_but_no_other_file_is_lost(assets: Path, tmp_path: Path) -> None:
    adapter = adapter_for(assets, tmp_path, EDGES)
    settings: dict[str, Any] = {"adapter": adapter, "signal": "auto"}
    made(assets, tmp_path / "a", **settings)
    (tmp_path / "a" / "video.mp4").unlink()
    (tmp_path / "a" / "video.json").unlink()
    for picture in (tmp_path / "a" / "frames").iterdir():
        picture.unlink()
    generate(settings_for(assets, tmp_path / "a", **settings))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "video.signal.mp4").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        generate(settings_for(assets, tmp_path / "b", **settings))
    assert (tmp_path / "b" / "video.signal.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal_settings": {"start": 2}}, "signal_settings=.* set signal=auto too"),
        ({"signal": ["auto", "auto"]}, "signal=.* a list with one for each reference"),
        ({"signal": "auto", "reference": None}, "signal=auto is made of a clip: set reference=CLIP too"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str, assets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_for(assets, tmp_path, **changes)


def test_an_adapter_without_makers_is_named(assets: Path, tmp_path: Path) -> None:
    adapter = str(write_adapter(tmp_path / "foreign.safetensors", assets / "base", task="mine"))
    with pytest.raises(ConfigError, match=r"foreign\.safetensors does not say how its references were made"):
        generate(settings_for(assets, tmp_path, adapter=adapter, signal="auto"))


def test_plain_loras_beside_the_adapter_have_no_part_in_the_signal(assets: Path, tmp_path: Path) -> None:
    adapter = adapter_for(assets, tmp_path, EDGES)
    plain = str(write_adapter(tmp_path / "plain.safetensors", assets / "base", seed=1, adapter_kind="lora"))
    both = made(assets, tmp_path / "a", adapter=[plain, adapter], signal="auto")
    before = made(assets, tmp_path / "b", adapter=[plain, adapter], reference=str(tmp_path / "a" / "video.signal.mp4"))
    assert (both == before).all()
    with pytest.raises(ConfigError, match="2 of the adapters take a reference"):
        generate(settings_for(assets, tmp_path, adapter=[adapter, adapter], signal="auto"))


def test_values_reach_the_other_command_in_its_grammar() -> None:
    value = {"low": 2, "name": "it's, [a] {b}", "list": [1.5, None, True]}
    assert _in_grammar(value) == "{low: 2, name: 'it\\'s, [a] {b}', list: [1.5,null,true]}"


def test_without_a_reference_the_signal_is_made_of_the_source(assets: Path, tmp_path: Path) -> None:
    adapter = adapter_for(assets, tmp_path, EDGES)
    kept: dict[str, Any] = {"adapter": adapter, "source": str(assets / "clip.mp4"), "regenerate_frames": [1, 5]}
    made(assets, tmp_path / "a", reference=None, signal="auto", **kept)
    edges = np.stack(list(read_clip(tmp_path / "a" / "video.signal.mp4")))
    assert edges.shape == (5, 32, 32, 3)
    assert set(np.unique(edges)) == {0, 255}


def test_the_card_says_how_references_were_made(assets: Path, tmp_path: Path) -> None:
    card = write_card(Path(adapter_for(assets, tmp_path, EDGES)))[0].read_text()
    assert "| reference in training was made by | `control.canny low=20.0 high=60.0` |" in card
    assert "| reference of a new clip | `python -m iclora_train.signal clip=CLIP adapter=FILE out=FILE` |" in card
    blurred = Task(name="deblur", maker="degrade.defocus", maker_args={"radius": [1.0, 2.0]})
    assert "iclora_train.signal" not in write_card(Path(adapter_for(assets, tmp_path, blurred)))[0].read_text()

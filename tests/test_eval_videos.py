"""Clips of other programs: the handout contains the inputs, and the outputs are scored like an adapter's clips."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from eval.clips.conditions import batches
from eval.clips.external import read_external_clip
from eval.handout import write_handout
from eval.run import evaluate, open_source
from iclora_train.config import ConfigError
from iclora_train.media.shard_clip import encode_clip
from tests.eval_world import World, build, refused

FPS = 25.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose handout is in <root>/clips."""
    world = build(tmp_path_factory.mktemp("videos"))
    assert write_handout(world.bare(f"videos={world.root / 'clips'}")) == world.root / "clips" / "manifest.json"
    return world


def manifest(world: World) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((world.root / "clips" / "manifest.json").read_text())
    return result


def write_outputs(world: World, folder: Path, with_seeds: bool = True) -> dict[str, np.ndarray]:
    """Outputs of another program, named as in the manifest: the targets, slightly brighter."""
    folder.mkdir()
    clips = {}
    for window in manifest(world)["windows"]:
        target = read_external_clip(world.root / "clips" / window["files"]["target"]["file"])
        for name in window["outputs"] if with_seeds else [f"{window['key']}.mp4"]:
            clips[name] = (target.astype(int) + 4).clip(0, 255).astype(np.uint8)
            (folder / name).write_bytes(encode_clip(clips[name], FPS))
    return clips


def test_the_manifest_lists_inputs_and_expected_outputs(world: World) -> None:
    result = manifest(world)
    assert len(result["windows"]) == 4
    for window in result["windows"]:
        assert (window["caption"], window["fps"]) == ("moving blocks", FPS)
        assert window["outputs"] == [f"{window['key']}.{seed}.mp4" for seed in (0, 1)]
        assert window["files"].keys() == {"reference0", "target"}
        for entry in window["files"].values():
            data = (world.root / "clips" / entry["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry["sha256"]
            clip = read_external_clip(world.root / "clips" / entry["file"])
            assert clip.shape == (entry["frames"], entry["height"], entry["width"], 3) == (5, 32, 32, 3)


def test_the_handout_of_an_edit_has_masks(tmp_path: Path) -> None:
    """The mask is white where the reference has the mask colour."""
    world = build(tmp_path, task="inpaint", colour=(102, 255, 0))
    write_handout(world.bare(f"videos={tmp_path / 'clips'}"))
    mask = read_external_clip(tmp_path / "clips" / manifest(world)["windows"][0]["files"]["mask"]["file"])
    assert (mask[:, :16] == 255).all()
    assert (mask[:, 16:] == 0).all()


def test_clips_of_a_folder_are_scored(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_outputs(world, tmp_path / "outputs")
    config = world.bare(f"videos={tmp_path / 'outputs'}", "eval.devices=2")
    folder = evaluate(config).parent
    assert "Nothing is sampled, so one of 2 processes does the work" in capsys.readouterr().out
    assert folder.name.startswith("eval-videos-outputs")
    result = json.loads((folder / "scores.json").read_text())
    assert result["cells"].keys() == {"adapter+reference", "input", "classic filter", "ceiling", "floor"}
    assert result["seeds"] == [0, 1]
    assert (result["control"], result["mask"], result["simple"]) == (None, None, None)
    assert [verdict["name"] for verdict in result["verdicts"]] == ["gain_over_input", "gain_over_classic"]
    assert result["adapter"]["foreign"]
    assert result["adapter"]["sha256"] is None
    four_levels = 20 * np.log10(255 / 4)  # values above 251 clip, so their error is smaller
    assert result["cells"]["adapter+reference"]["psnr"]["mean"] == pytest.approx(four_levels, abs=0.3)


def test_png_folders_give_the_same_clips_as_videos(world: World, tmp_path: Path) -> None:
    clips = write_outputs(world, tmp_path / "video", with_seeds=False)
    for name, clip in clips.items():
        folder = tmp_path / "png" / name.removesuffix(".mp4")
        folder.mkdir(parents=True)
        for i, frame in enumerate(clip):
            cv2.imwrite(str(folder / f"{i:04d}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    sources = [open_source(world.bare(f"videos={tmp_path / kind}")) for kind in ("video", "png")]
    assert [source.seeds for source in sources] == [[0], [0]]
    batch = batches(sources[0].held_out.windows, [0], 4)[0]
    clips = [source.clips(source.conditions[0], batch)[0] for source in sources]
    assert (clips[0] == clips[1]).all()


def test_lossy_files_are_noted(world: World, tmp_path: Path) -> None:
    clips = write_outputs(world, tmp_path / "lossy", with_seeds=False)
    assert open_source(world.bare(f"videos={tmp_path / 'lossy'}")).judged.note is None
    name, clip = next(iter(clips.items()))
    (tmp_path / "lossy" / name).write_bytes(encode_clip(clip, FPS, lossless=False))
    note = open_source(world.bare(f"videos={tmp_path / 'lossy'}")).judged.note
    assert note is not None
    assert f"1 of 4 clips are stored with losses, e.g. {name} (h264, yuv420p)" in note


def test_clips_of_the_wrong_length_or_missing_clips_are_named(world: World, tmp_path: Path) -> None:
    clips = write_outputs(world, tmp_path / "outputs", with_seeds=False)
    config = world.bare(f"videos={tmp_path / 'outputs'}")
    name, clip = next(iter(clips.items()))
    (tmp_path / "outputs" / name).write_bytes(encode_clip(clip[:4], FPS))
    refused(config, f"{name} has 4 frames of 32x32, its target .* 5 frames of 32x32")
    (tmp_path / "outputs" / name).write_bytes(b"no video")
    refused(config, f"{name}")
    (tmp_path / "outputs" / name).unlink()
    refused(config, rf"1 of 4 clips are missing, e.g. {name}.*eval.handout")
    refused(world.bare(f"videos={tmp_path / 'nowhere'}"), "nowhere is not a folder")


@pytest.mark.parametrize("shift", [1, -1])
def test_a_shift_of_one_frame_is_an_error(world: World, tmp_path: Path, shift: int) -> None:
    clips = write_outputs(world, tmp_path / "outputs", with_seeds=False)
    name, clip = next(iter(clips.items()))
    (tmp_path / "outputs" / name).write_bytes(encode_clip(np.roll(clip, -shift, axis=0), FPS))
    side = "early" if shift > 0 else "late"
    refused(world.bare(f"videos={tmp_path / 'outputs'}"), rf"1 of 4 clips are shifted .*{name} by 1 \({side}\)")


def test_structure_tasks_allow_some_shifted_clips_by_chance(world: World, tmp_path: Path) -> None:
    """Outputs need not look like their targets, so a single shifted clip proves nothing."""
    clips = write_outputs(world, tmp_path / "outputs", with_seeds=False)
    config = world.bare(f"videos={tmp_path / 'outputs'}", "task.family=structure")
    for count, (name, clip) in enumerate(clips.items(), start=1):
        (tmp_path / "outputs" / name).write_bytes(encode_clip(np.roll(clip, 1, axis=0), FPS))
        if count == 2:
            open_source(config)
    refused(config, "4 of 4 clips are shifted in time")


def test_videos_and_an_adapter_exclude_each_other(world: World) -> None:
    refused(world.bare(f"videos={world.root / 'clips'}", "adapter=x.safetensors"), "give one of them")
    with pytest.raises(ConfigError, match="videos=FOLDER must be set"):
        write_handout(world.bare())


def test_other_files_in_the_folder_are_ignored(world: World, tmp_path: Path) -> None:
    write_outputs(world, tmp_path / "outputs", with_seeds=False)
    (tmp_path / "outputs" / "notes.txt").write_text("not a clip")
    shutil.copytree(world.root / "clips" / "inputs", tmp_path / "outputs" / "inputs")
    assert len(open_source(world.bare(f"videos={tmp_path / 'outputs'}")).held_out.windows) == 4

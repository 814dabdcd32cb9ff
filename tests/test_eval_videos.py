"""Clips of other programs: what they need is handed out, and what they made is judged like an adapter's."""

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
from iclora_train.data.video import encode_clip
from tests.eval_world import World, build, refused

FPS = 25.0


@pytest.fixture(scope="module")
def handed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose inputs were handed out to <root>/clips."""
    world = build(tmp_path_factory.mktemp("videos"))
    assert write_handout(world.bare(f"videos={world.root / 'clips'}")) == world.root / "clips" / "manifest.json"
    return world


def manifest(world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((world.root / "clips" / "manifest.json").read_text())
    return found


def outputs(world: World, folder: Path, seeded: bool = True) -> dict[str, np.ndarray]:
    """What another program might make, named as the manifest asks: the targets, slightly brighter."""
    folder.mkdir()
    made = {}
    for window in manifest(world)["windows"]:
        target = read_external_clip(world.root / "clips" / window["files"]["target"]["file"])
        for name in window["outputs"] if seeded else [f"{window['key']}.mp4"]:
            made[name] = (target.astype(int) + 4).clip(0, 255).astype(np.uint8)
            (folder / name).write_bytes(encode_clip(made[name], FPS))
    return made


def test_the_manifest_tells_all_that_a_program_needs(handed: World) -> None:
    found = manifest(handed)
    assert len(found["windows"]) == 4
    for window in found["windows"]:
        assert (window["caption"], window["fps"]) == ("moving blocks", FPS)
        assert window["outputs"] == [f"{window['key']}.{seed}.mp4" for seed in (0, 1)]
        assert window["files"].keys() == {"reference0", "target"}
        for entry in window["files"].values():
            data = (handed.root / "clips" / entry["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry["sha256"]
            clip = read_external_clip(handed.root / "clips" / entry["file"])
            assert clip.shape == (entry["frames"], entry["height"], entry["width"], 3) == (5, 32, 32, 3)


def test_an_edit_hands_out_its_masks(tmp_path: Path) -> None:
    """The mask is where the reference has the maker's colour."""
    world = build(tmp_path, task="inpaint", colour=(102, 255, 0))
    write_handout(world.bare(f"videos={tmp_path / 'clips'}"))
    mask = read_external_clip(tmp_path / "clips" / manifest(world)["windows"][0]["files"]["mask"]["file"])
    assert (mask[:, :16] == 255).all()
    assert (mask[:, 16:] == 0).all()


def test_clips_of_a_folder_are_scored(handed: World, tmp_path: Path) -> None:
    outputs(handed, tmp_path / "theirs")
    config = handed.bare(f"videos={tmp_path / 'theirs'}")
    evaluate(config)
    found = json.loads((handed.root / "runs/deblur-nano/eval-videos-theirs/scores.json").read_text())
    assert found["cells"].keys() == {"adapter+reference", "input", "ceiling", "floor"}
    assert found["seeds"] == [0, 1]
    assert (found["control"], found["mask"], found["simple"]) == (None, None, None)
    assert [verdict["name"] for verdict in found["verdicts"]] == ["gain_over_input"]
    assert found["adapter"]["foreign"]
    assert found["adapter"]["sha256"] is None
    four_levels = 20 * np.log10(255 / 4)  # what is above 251 in the target is nearer
    assert found["cells"]["adapter+reference"]["psnr"]["mean"] == pytest.approx(four_levels, abs=0.3)


def test_frames_in_png_folders_and_one_seed_are_the_same(handed: World, tmp_path: Path) -> None:
    made = outputs(handed, tmp_path / "video", seeded=False)
    for name, clip in made.items():
        folder = tmp_path / "png" / name.removesuffix(".mp4")
        folder.mkdir(parents=True)
        for i, frame in enumerate(clip):
            cv2.imwrite(str(folder / f"{i:04d}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    sources = [open_source(handed.bare(f"videos={tmp_path / kind}")) for kind in ("video", "png")]
    assert [source.seeds for source in sources] == [[0], [0]]
    batch = batches(sources[0].held_out.windows, [0], 4)[0]
    clips = [source.clips(source.conditions[0], batch)[0] for source in sources]
    assert (clips[0] == clips[1]).all()


def test_a_lossy_codec_is_pointed_out(handed: World, tmp_path: Path) -> None:
    made = outputs(handed, tmp_path / "lossy", seeded=False)
    assert open_source(handed.bare(f"videos={tmp_path / 'lossy'}")).judged.note is None
    name, clip = next(iter(made.items()))
    (tmp_path / "lossy" / name).write_bytes(encode_clip(clip, FPS, lossless=False))
    note = open_source(handed.bare(f"videos={tmp_path / 'lossy'}")).judged.note
    assert note is not None
    assert f"1 of 4 clips are stored with losses, e.g. {name} (h264, yuv420p)" in note


def test_clips_that_do_not_fit_are_named(handed: World, tmp_path: Path) -> None:
    made = outputs(handed, tmp_path / "theirs", seeded=False)
    config = handed.bare(f"videos={tmp_path / 'theirs'}")
    name, clip = next(iter(made.items()))
    (tmp_path / "theirs" / name).write_bytes(encode_clip(clip[:4], FPS))
    refused(config, f"{name} has 4 frames of 32x32, its target .* 5 frames of 32x32")
    (tmp_path / "theirs" / name).write_bytes(b"no video")
    refused(config, f"{name}")
    (tmp_path / "theirs" / name).unlink()
    refused(config, rf"1 of 4 clips are missing, e.g. {name}.*eval.handout")
    refused(handed.bare(f"videos={tmp_path / 'nowhere'}"), "nowhere is not a folder")


@pytest.mark.parametrize("shift", [1, -1])
def test_an_offset_of_one_frame_fails_the_run(handed: World, tmp_path: Path, shift: int) -> None:
    made = outputs(handed, tmp_path / "theirs", seeded=False)
    name, clip = next(iter(made.items()))
    (tmp_path / "theirs" / name).write_bytes(encode_clip(np.roll(clip, -shift, axis=0), FPS))
    side = "early" if shift > 0 else "late"
    refused(handed.bare(f"videos={tmp_path / 'theirs'}"), rf"1 of 4 clips are shifted .*{name} by 1 \({side}\)")


def test_a_structure_task_forgives_a_chance_but_not_an_offset(handed: World, tmp_path: Path) -> None:
    """Its outputs need not look like their targets, so that one clip alone proves nothing."""
    made = outputs(handed, tmp_path / "theirs", seeded=False)
    config = handed.bare(f"videos={tmp_path / 'theirs'}", "task.family=structure")
    for count, (name, clip) in enumerate(made.items(), start=1):
        (tmp_path / "theirs" / name).write_bytes(encode_clip(np.roll(clip, 1, axis=0), FPS))
        if count == 2:
            open_source(config)
    refused(config, "4 of 4 clips are shifted in time")


def test_videos_and_an_adapter_are_one_too_many(handed: World) -> None:
    refused(handed.bare(f"videos={handed.root / 'clips'}", "adapter=x.safetensors"), "give one of them")
    with pytest.raises(ConfigError, match="videos=FOLDER must be set"):
        write_handout(handed.bare())


def test_hidden_and_other_files_do_not_disturb(handed: World, tmp_path: Path) -> None:
    outputs(handed, tmp_path / "theirs", seeded=False)
    (tmp_path / "theirs" / "notes.txt").write_text("made by hand")
    shutil.copytree(handed.root / "clips" / "inputs", tmp_path / "theirs" / "inputs")
    assert len(open_source(handed.bare(f"videos={tmp_path / 'theirs'}")).held_out.windows) == 4

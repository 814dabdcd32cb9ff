"""`iclora_train.signal`: the signal of a clip is the reference that training would have; errors say what to do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_prep.clips.clip_list import Clip
from data_prep.clips.probed_clip import ProbedClip
from data_prep.clips.windows import heldout_windows, train_windows
from data_prep.makers.edit.masks import mask_from_colour
from data_prep.pairs import make_pairs
from data_prep.signal.findings import MEANINGS, REMEDIES, findings_about, in_words
from data_prep.signal.make import Signal, SignalMaker, make_signals
from data_prep.signal.output import write_frames
from data_prep.signal.recipes import Recipe, recipes_of
from data_prep.signal.run import make
from data_prep.signal.settings import SignalSettings
from data_prep.signal.source import open_clip
from iclora_train.adapters.metadata import frame_text
from iclora_train.adapters.reference_makers import MAKERS, makers_metadata, makers_of
from iclora_train.adapters.references import ReferenceLayout, references_metadata
from iclora_train.config import Config, ConfigError, Task
from iclora_train.config.named_task import task_named
from iclora_train.config.references import MoreReference, family_of
from iclora_train.core.types import Pair
from iclora_train.media.clip import probe, read_clip
from iclora_train.media.shard_clip import encode_clip
from iclora_train.signals.track_drawing import draw_tracks
from tests.clips import moving, write_clip
from tests.prep import config_of
from tests.test_depth import write_network

SAMPLES = Path(__file__).parent.parent / "data_prep" / "samples" / "clips"
CELL = [8, 4]
EDGES = "control.canny"
LOW = {"low": 20.0, "high": 60.0}
Run = Callable[..., list[np.ndarray]]


def adapter_file(path: Path, of: Task | None = None, **metadata: str) -> Path:
    """An adapter file with the metadata of a task, without weights."""
    factors = {"reference_downscale_factor": str(of.reference_downscale if of else 1), "base_model_family": "nano"}
    if of is not None:
        factors |= references_metadata(of.more_references) | makers_metadata(of)
        factors |= {} if of.reference_frame is None else {"reference_frame": frame_text(of.reference_frame)}
        factors |= {"reference_temporal_scale_factor": str(of.reference_temporal_scale)}
    save_file({"x": torch.zeros(1)}, path, {**factors, **metadata})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Make signals in the test's folder and read them back from their files."""

    def start(**settings: Any) -> list[np.ndarray]:
        defaults = {"out": str(tmp_path / "signal.mp4"), "cell": CELL, "overwrite": True}
        *paths, record = make(SignalSettings(**(defaults | settings)))
        assert json.loads(record.read_text())["references"][0]["file"] == str(paths[0])
        return [np.stack(list(read_clip(path))) for path in paths]

    return start


def clip_of(folder: Path) -> Path:
    """A clip with sharp shapes that move, 72x56 pixels, 24 frames."""
    frames = moving(24, 56, 72)
    frames[..., 0] = np.where(frames[..., 0] > 128, 230, 30)
    path = folder / "shapes.mp4"
    path.write_bytes(encode_clip(frames, 25.0))
    return path


def prepared(config: Config, path: Path, number: int = 0, **files: Path) -> Pair:
    """The pair of a held-out window of a clip, as a preparation makes it."""
    clip = Clip(path.stem, path, "heldout", "words", files=files)
    windows = heldout_windows([ProbedClip(clip, probe(path))], config.data)
    return list(make_pairs(clip, windows, config))[number]


def settings_of(pair: Pair, config: Config, folder: Path) -> dict[str, Any]:
    """The settings that make the references of a pair from its clip."""
    frames, height, width = pair.target.shape[:3]
    window = pair.record["window"]
    assert isinstance(window, dict)
    return {
        "adapter": str(adapter_file(folder / "adapter.safetensors", config.task)),
        "width": width,
        "height": height,
        "frames": frames,
        "start": window["indices"][0],
        "short_side": min(window["scaled"]),
        "seed": list(pair.record["seed"]),  # type: ignore[call-overload]
    }


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("canny", ["task.maker_args={low: 20, high: 60}"]),
        ("canny", ["task.maker=control.soft_edges", "task.maker_args=null"]),
        ("deblur", []),
        ("restore", []),
        ("decompress", []),
        ("inpaint", []),
        ("outpaint", []),
        ("colorize", []),
        ("motion_tracks", ["task.maker_args.larger=8", "++task.maker_args.shortest=0.2"]),
        ("upscale_x2", []),
        ("in_between", []),
        ("canny_still", ["task.maker_args={low: 20, high: 60}"]),
        ("in_between", ["task.reference_frame=any"]),
        ("deblur", ["task.reference_temporal_scale=2"]),
    ],
)
def test_the_signal_of_a_training_clip_is_the_reference_of_its_window(
    name: str, more: list[str], run: Run, tmp_path: Path
) -> None:
    clip = clip_of(tmp_path)
    more = [setting for setting in more if not setting.endswith("=null")]
    changes = [f"conf={name}", "data.heldout_windows=1", "data.frames=9", *more]
    config = config_of(tmp_path / "set", clip, tmp_path / "base", *changes)
    if "task.maker=control.soft_edges" in more:
        config = replace(config, task=replace(config.task, maker_args={}))
    pair = prepared(config, clip)
    wanted = settings_of(pair, config, tmp_path)
    made = run(clip=str(clip), strict=False, **wanted)
    assert len(made) == len(pair.references)
    for signal, reference in zip(made, pair.references, strict=True):
        assert signal.shape == reference.shape
        assert (signal == reference).all()


def test_the_chosen_control_of_a_union_is_that_of_training(run: Run, tmp_path: Path) -> None:
    clip = SAMPLES / "garden_walk.mp4"
    sizes = ("data.heldout_windows=2", "data.frames=9", "data.width=96", "data.height=128")
    config = config_of(tmp_path / "set", clip, tmp_path / "base", "conf=union", *sizes)
    names = set()
    for number in (0, 1):
        pair = prepared(config, clip, number)
        window, drawn = pair.record["window"], pair.record["drawn"]
        assert isinstance(window, dict)
        assert isinstance(drawn, dict)
        recipes, _, _ = recipes_of(
            SignalSettings(
                clip=str(clip),
                out="x.mp4",
                adapter=str(adapter_file(tmp_path / "adapter.safetensors", config.task)),
                control=drawn["control"],
            ),
            print,
        )
        settings = SignalSettings(clip=str(clip), out="x.mp4", maker="union", width=96, height=128, frames=9)
        source = open_clip(settings, [], (8, 4), None)
        source = replace(source, window=type(source.window).from_record(window))
        maker = SignalMaker.of(recipes[0], {}, source)
        padded = source.padded([maker.maker.margin])
        signal = make_signals([maker], source, padded, list(pair.record["seed"]), None, print)[0]  # type: ignore[call-overload]
        assert (signal.frames == pair.references[0]).all()
        names.add(drawn["control"])
    assert names == {"control.canny", "control.pose"}


def test_zoomed_and_mirrored_training_windows_are_made_again(tmp_path: Path) -> None:
    """The window of a training clip, with its scale, corner and mirroring, in place of the one in the middle."""
    path = clip_of(tmp_path)
    task = ("conf=canny", "task.maker_args={low: 20, high: 60}", "data.train_windows=6")
    config = config_of(tmp_path / "set", path, tmp_path / "base", *task)
    clip = Clip(path.stem, path, "train", "words")
    windows = train_windows([ProbedClip(clip, probe(path))], config.data)
    sizes: dict[str, Any] = {"width": 32, "height": 32, "frames": 5}
    settings = SignalSettings(clip=str(path), out="x.mp4", maker=EDGES, maker_args=config.task.maker_args, **sizes)
    recipe = recipes_of(settings, print)[0][0]
    for pair, window in zip(make_pairs(clip, windows, config), windows, strict=True):
        source = replace(open_clip(settings, [], (8, 4), None), window=window)
        maker = SignalMaker.of(recipe, {}, source)
        made = make_signals([maker], source, source.padded([maker.maker.margin]), 0, None, print)[0]
        assert (made.frames == pair.references[0]).all()
    assert {window.flip for window in windows} == {True, False}


def test_a_depth_network_is_named_by_the_user_and_gives_the_reference(run: Run, tmp_path: Path) -> None:
    clip, network = clip_of(tmp_path), write_network(tmp_path / "network", "relative")
    task = ("conf=depth", f"task.maker_args.model={network}", "data.heldout_windows=1")
    config = config_of(tmp_path / "set", clip, tmp_path / "base", *task)
    pair = prepared(config, clip)
    wanted = settings_of(pair, config, tmp_path)
    stored = makers_of(makers_metadata(config.task))
    assert stored is not None
    assert stored[0].args["model"] == "network"  # no path of the training machine
    with pytest.raises(ConfigError, match=r"made with the network network: set maker_args\.model=PATH"):
        run(clip=str(clip), strict=False, **wanted)
    made = run(clip=str(clip), strict=False, maker_args={"model": str(network)}, **wanted)
    assert (made[0] == pair.references[0]).all()


def test_files_of_the_clip_replace_what_training_drew(run: Run, tmp_path: Path) -> None:
    clip = clip_of(tmp_path)
    mask = np.zeros((56, 72, 3), np.uint8)
    mask[20:40, 30:50] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    config = config_of(
        tmp_path / "set",
        clip,
        tmp_path / "base",
        "conf=inpaint",
        "data.heldout_windows=1",
    )
    config = replace(config, task=replace(config.task, maker_args={"mask": "column"}))
    pair = prepared(config, clip, mask=tmp_path / "mask.png")
    drawn_by_training = task_named("inpaint", [])
    assert drawn_by_training is not None
    wanted = settings_of(pair, replace(config, task=drawn_by_training), tmp_path)
    made = run(clip=str(clip), mask=str(tmp_path / "mask.png"), **wanted)[0]
    assert (made == pair.references[0]).all()
    assert mask_from_colour(made).any()
    cv2.imwrite(str(tmp_path / "black.png"), mask * 0)
    with pytest.raises(ConfigError, match="the mask is black inside the video"):
        run(clip=str(clip), mask=str(tmp_path / "black.png"), **wanted)
    with pytest.raises(ConfigError, match=r"mask=.*missing\.png does not exist"):
        run(clip=str(clip), mask=str(tmp_path / "missing.png"), **wanted)


def test_drawn_tracks_span_the_video_whatever_their_form(run: Run, tmp_path: Path) -> None:
    """Bends of a curve (points_store of the editor), and a point for each frame (what it hands to the drawing node)."""
    clip = clip_of(tmp_path)
    bends = [{"x": 10, "y": 10}, {"x": 60, "y": 50}]
    along = [{"x": round(10 + 50 * i / 16), "y": round(10 + 40 * i / 16)} for i in range(17)]
    wanted = {"clip": str(clip), "maker": "control.tracks", "width": 72, "height": 56, "frames": 17}
    drawings = []
    for name, points in (("bends", bends), ("along", along), ("nested", json.dumps([points_of(bends, 1)]))):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps([points] if name != "nested" else points))
        drawings.append(run(tracks=str(file), maker_args={"larger": 4}, **wanted)[0])
    places = np.array([[[point["x"], point["y"]] for point in along]], float)
    expected = draw_tracks(places, np.ones((1, 17), bool), (56, 72), 4)
    for drawing in drawings:
        assert (drawing == expected).all()


def points_of(points: list[dict[str, int]], scale: int) -> list[dict[str, int]]:
    return [{key: scale * value for key, value in point.items()} for point in points]


def test_tracks_on_a_picture_of_another_size_are_scaled(run: Run, tmp_path: Path) -> None:
    clip = clip_of(tmp_path)
    bends = [{"x": 100, "y": 100}, {"x": 600, "y": 500}]
    (tmp_path / "large.json").write_text(json.dumps([bends]))
    wanted = {"clip": str(clip), "maker": "control.tracks", "frames": 17, "tracks": str(tmp_path / "large.json")}
    with pytest.raises(ConfigError, match=r"every point lies outside .* 72x56 pixels: set tracks_size"):
        run(**wanted)
    with pytest.raises(ConfigError, match="has another shape than the clip"):
        run(tracks_size=[720, 720], **wanted)
    drawing = run(tracks_size=[720, 560], maker_args={"larger": 4}, **wanted)[0]
    y, x = (int(values.mean()) for values in np.nonzero(drawing[0].any(-1)))
    assert abs(x - 10) <= 1
    assert abs(y - 10) <= 1


def test_a_picture_with_drawn_tracks_is_a_clip(run: Run, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "still.png"), moving(1, 56, 72)[0])
    (tmp_path / "t.json").write_text('[{"x": 5, "y": 5}, {"x": 60, "y": 40}]')
    wanted = {"clip": str(tmp_path / "still.png"), "maker": "control.tracks", "frames": 17}
    drawing = run(tracks=str(tmp_path / "t.json"), maker_args={"larger": 4}, **wanted)[0]
    assert drawing.shape == (17, 56, 72, 3)
    assert (drawing[0] != drawing[16]).any()


def test_borders_extend_the_picture(run: Run, tmp_path: Path) -> None:
    clip = clip_of(tmp_path)
    frames = np.stack(list(read_clip(clip)))
    extended = run(clip=str(clip), maker="edit.outpaint", border=[16, 0, 8, 8], frames=5)[0]
    assert extended.shape == (5, 64, 96, 3)
    painted = mask_from_colour(extended)
    assert not painted[:, :56, 16:88].any()
    assert painted.mean() == pytest.approx(1 - 56 * 72 / (64 * 96))
    inside = np.abs(extended[:, :56, 16:88].astype(int) - frames[:5])
    assert inside.max() <= 1  # a pixel of the colour is moved by one level
    with pytest.raises(ConfigError, match=r"border is for edit\.outpaint"):
        run(clip=str(clip), maker=EDGES, border=[16, 0, 8, 8], frames=5)


def test_sizes_follow_the_rules_of_generate(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = clip_of(tmp_path)
    task = task_named("union", [])  # factor 2
    assert task is not None
    adapter = str(adapter_file(tmp_path / "adapter.safetensors", task))
    made = run(
        clip=str(clip), adapter=adapter, control="canny", maker_args={"low": 20, "high": 60, "size": None}, cell=None
    )
    assert made[0].shape == (21, 24, 32, 3)  # of a video of 64x48x21: multiples of 16, 4k+1
    assert (
        "rounded to sizes that fit the VAE: width 72 -> 64, height 56 -> 48, frames 24 -> 21" in capsys.readouterr().out
    )
    with pytest.raises(ConfigError, match=r"width=40 is not a multiple of 16 \(use 32 or 48\)"):
        run(clip=str(clip), adapter=adapter, control="canny", width=40, height=32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 33}, r"has 24 frames at 25 fps, the video has 33: set frames=21 or less, or give a longer clip"),
        ({"start": 20, "frames": 9}, r"has 4 frames after frame 20 at 25 fps"),
        ({"start": 99}, r"start=99: .* has 24 frames at 25 fps"),
        ({"width": 640, "height": 480}, r"has 72x56 pixels, which do not hold 640x480"),
        ({"cell": [128, 4]}, r"has 72x56 pixels, which do not hold 128x128, multiples of 128: give a larger clip"),
        ({"clip": "missing.mp4"}, r"clip=missing\.mp4 does not exist"),
        ({"maker_args": {"low": 300}}, r"maker_args\.low=300 must not be above high"),
        ({"maker_args": {"radius": 3}}, r"maker_args\.radius is not an argument of control\.canny"),
        ({"maker": "control.cany"}, r"maker='control\.cany' is not one of"),
        ({"maker": "given"}, "is a video that you supply"),
        ({"maker": "edit.hole", "maker_args": {"mask": "column"}}, r"mask is not set: .* needs the clip's mask"),
        ({"maker": "none"}, "the maker none makes no reference"),
        ({"maker": "union"}, r"maker_args\.controls is empty: name makers"),
        ({"maker_args": {"size": 10**9}}, r"control\.canny cannot make a reference of 72x56x21 .*change them with"),
        ({"maker": "edit.loop", "sheet": __file__}, r"first \(edit\.loop\): .*cannot be read as a video"),
        ({"maker": "control.tracks", "tracks": __file__}, r"tracks: .*cannot be read as JSON"),
        ({"control": "pose"}, "control=pose chooses a control of a union"),
        ({"only": "still"}, "only=still is not a reference; they are first"),
        ({"reference_frame": 4}, "the frame of reference first is not drawn in training"),
        ({"seed": [1, 2]}, "seed=.* must be a whole number, or the four numbers"),
        ({"out": "signal.avi"}, r"out=signal\.avi must end in \.mp4 or \.png"),
        ({"maker": None}, "adapter is not set: give the adapter's file, or conf=<task>, or maker="),
    ],
)
def test_what_cannot_be_made_is_refused_with_a_remedy(
    settings: dict[str, Any], message: str, run: Run, tmp_path: Path
) -> None:
    defaults = {"clip": str(clip_of(tmp_path)), "maker": EDGES}
    with pytest.raises(ConfigError, match=message):
        run(**(defaults | settings))
    assert not list(tmp_path.glob("signal*"))


def test_a_video_needs_more_than_one_picture_as_its_file(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is one picture, and the signal has 21 frames: name an mp4, or a folder"):
        run(clip=str(clip_of(tmp_path)), maker=EDGES, out=str(tmp_path / "signal.png"))


def test_files_are_not_overwritten_unasked(run: Run, tmp_path: Path) -> None:
    (tmp_path / "signal.mp4").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"signal\.mp4 exists: name another file"):
        run(clip=str(clip_of(tmp_path)), maker=EDGES, maker_args=LOW, overwrite=False)
    assert (tmp_path / "signal.mp4").read_bytes() == b"mine"


def test_old_adapters_use_their_task_and_say_so(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = clip_of(tmp_path)
    old = adapter_file(tmp_path / "old.safetensors", task="motion_tracks", base_model="nano", reference_frame="0")
    run(
        clip=str(clip),
        adapter=str(old),
        maker_args={"shortest": 0.1},
        strict=False,
    )
    printed = capsys.readouterr().out
    assert "old.safetensors does not say how its references were made: they are made as conf=motion_tracks" in printed
    assert '"larger": 8.0' in printed  # of conf/tuned/motion_tracks-nano.yaml
    foreign = adapter_file(tmp_path / "foreign.safetensors", task="somebody's")
    with pytest.raises(ConfigError, match=r"names no task of this project: set maker=\.\.\."):
        run(clip=str(clip), adapter=str(foreign))
    assert run(clip=str(clip), adapter=str(foreign), maker=EDGES, maker_args=LOW)[0].shape == (21, 56, 72, 3)


@pytest.mark.parametrize(
    "text", ["[]", "{", '["canny"]', '[{"maker": 3, "args": {}}]', '[{"maker": "x", "args": []}]', "[" * 9999]
)
def test_makers_of_another_form_count_as_none(text: str) -> None:
    assert makers_of({MAKERS: text}) is None


def test_unreadable_adapters_are_named(run: Run, tmp_path: Path) -> None:
    clip = str(clip_of(tmp_path))
    with pytest.raises(ConfigError, match=r"adapter=missing\.safetensors is not a file"):
        run(clip=clip, adapter="missing.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x05\x00")
    with pytest.raises(ConfigError, match=r"damaged\.safetensors"):
        run(clip=clip, adapter=str(tmp_path / "damaged.safetensors"))
    plain = adapter_file(tmp_path / "plain.safetensors", adapter_kind="lora")
    with pytest.raises(ConfigError, match=r"plain LoRA, which takes no reference"):
        run(clip=clip, adapter=str(plain))
    union = task_named("union", [])
    assert union is not None
    with pytest.raises(
        ConfigError, match=r"trained with several controls: say which, control=\.\.\., one of canny, pose"
    ):
        run(clip=clip, adapter=str(adapter_file(tmp_path / "union.safetensors", union)))


def flat_clip(folder: Path, frames: int = 9) -> str:
    path = folder / "flat.mp4"
    path.write_bytes(encode_clip(np.full((frames, 64, 64, 3), 90, np.uint8), 25.0))
    return str(path)


def test_useless_signals_are_refused_in_words(run: Run, tmp_path: Path) -> None:
    clip = flat_clip(tmp_path)
    with pytest.raises(
        ConfigError, match=r"almost nothing in the pictures \(blank 0 .*lower the thresholds, e\.g\. maker_args"
    ):
        run(clip=clip, maker=EDGES)
    with pytest.raises(ConfigError, match="no person was found in the clip: give a clip in which people are larger"):
        run(clip=clip, maker="control.pose")
    assert not list(tmp_path.glob("signal*"))


@pytest.mark.parametrize(
    ("maker", "frames", "words"),
    [
        (EDGES, "flickering", r"^edges: the signal flickers more than the clip \(flicker .*maker_args\.blur=1\.5$"),
        ("control.depth", "flickering", r"flickers more than the clip .*maker_args\.steady=0\.7$"),
        ("control.soft_edges", "faint", r"the drawing is faint .*\(contrast 13 \(at least 64\).*maker_args\.white=98$"),
        ("control.pose", "still", r"stands still while the clip moves \(static 1"),
        ("degrade.grey", "white", r"much of the picture became black or white"),
    ],
)
def test_each_problem_of_a_signal_is_a_sentence_with_a_remedy(maker: str, frames: str, words: str) -> None:
    target = moving(9, 64, 64)
    noise = np.random.default_rng(0).integers(0, 2, target.shape, dtype=np.uint8) * 255
    faint = target // 13
    signals = {
        "flickering": noise,
        "faint": faint,
        "still": np.repeat(noise[:1], 9, 0),
        "white": noise | 255,
    }
    recipe = Recipe(0, ReferenceLayout("edges"), maker, {}, family_of(maker), "maker")
    signal = Signal(recipe, signals[frames], {}, [0, 0, 0, 1], None)
    lines = [in_words(finding, signal) for finding in findings_about(signal, target, 25.0)]
    assert any(re.search(words, line) for line in lines), lines


def test_a_warning_is_printed_and_the_signal_is_written(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(clip=flat_clip(tmp_path), maker=EDGES, strict=False)
    assert made[0].shape == (9, 64, 64, 3)
    assert made[0].max() == 0
    assert "warning: first: there is almost nothing in the pictures" in capsys.readouterr().out


def test_a_rate_above_that_of_the_clip_is_told(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "slow.mp4", 24, 64, 64, fps=10.0)
    run(clip=str(clip), maker="control.soft_edges", fps=25, strict=False)
    assert "10 fps, the signal 25" in (printed := capsys.readouterr().out)
    assert "set fps=10" in printed


def test_every_check_has_a_meaning_and_a_remedy_for_every_maker() -> None:
    for check in MEANINGS:
        assert (check, "") in REMEDIES or {"control.pose", "control.tracks"} <= {m for c, m in REMEDIES if c == check}


@pytest.mark.parametrize("name", ["clip.mp4", "frames"])
def test_files_hold_the_pixels_exactly(name: str, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 24, 3), dtype=np.uint8)
    write_frames(tmp_path / name, frames, 25.0)
    files = [tmp_path / name] if name.endswith("4") else sorted((tmp_path / name).glob("*.png"))
    assert (np.concatenate([np.stack(list(read_clip(file))) for file in files]) == frames).all()


def test_the_command_makes_a_signal_and_names_the_use(tmp_path: Path) -> None:
    task = Task(name="canny", family="structure", maker=EDGES, maker_args=LOW)
    adapter_file(tmp_path / "adapter.safetensors", task)
    clip_of(tmp_path)
    words = ["clip=shapes.mp4", "adapter=adapter.safetensors", "out=edges.mp4", "maker_args.thickness=2"]
    command = [sys.executable, "-m", "iclora_train.signal", *words]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "reference=edges.mp4 width=72 height=56 frames=21 fps=25" in result.stdout
    assert json.loads((tmp_path / "edges.json").read_text())["references"][0]["args"] == {**LOW, "thickness": 2}
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr == ("error: edges.mp4 exists: name another file with out=..., or set overwrite=true\n")


def test_depth_needs_a_picture_for_every_frame(run: Run, tmp_path: Path) -> None:
    clip, folder = clip_of(tmp_path), tmp_path / "depth"
    folder.mkdir()
    for number in range(24):
        ramp = np.tile(np.arange(1, 73, dtype=np.uint16) * 500 + number, (56, 1))
        cv2.imwrite(str(folder / f"{number:03}.png"), ramp)
    depth = task_named("depth", [])
    assert depth is not None
    adapter = str(adapter_file(tmp_path / "adapter.safetensors", depth))
    made = run(clip=str(clip), adapter=adapter, depth=str(folder))[0]
    assert made.shape == (21, 56, 72, 3)
    assert made[0, 10, 0, 0] > made[0, 10, 30, 0] > made[0, 10, 71, 0]  # near is white
    (folder / "020.png").unlink()
    (folder / "021.png").unlink()
    (folder / "022.png").unlink()
    (folder / "023.png").unlink()
    with pytest.raises(ConfigError, match=r"20 depth pictures .* for a clip of at least 21 frames; render one"):
        run(clip=str(clip), adapter=adapter, depth=str(folder))


def test_a_folder_of_frames_is_a_clip(run: Run, tmp_path: Path) -> None:
    clip, folder = clip_of(tmp_path), tmp_path / "frames"
    for number, frame in enumerate(read_clip(clip)):
        write_frames(folder / f"f{number}.png", frame[None], 25.0)
    wanted = {"maker": EDGES, "maker_args": LOW, "frames": 9, "start": 3}
    assert (run(clip=str(folder), **wanted)[0] == run(clip=str(clip), **wanted)[0]).all()


def test_the_time_of_slow_makers_is_estimated(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.signal.make.WORTH_TELLING", 0.0)
    clip = write_clip(tmp_path / "clip.mp4", 33, 64, 64)
    run(clip=str(clip), maker="control.soft_edges", strict=False)
    printed = capsys.readouterr()
    assert re.search(r"first \(control\.soft_edges\): about \d+ s", printed.out)
    assert "reading the clip 33/33" in printed.err


def test_several_controls_of_a_union_give_a_file_each(run: Run, tmp_path: Path) -> None:
    task = Task(
        name="both",
        family="structure",
        maker="union",
        maker_args={"controls": {EDGES: {"args": LOW}, "control.soft_edges": {}}},
        more_references=[MoreReference("still", "edit.frame", {"frame": 0}, frame=0)],
    )
    wanted = {"clip": str(clip_of(tmp_path)), "adapter": str(adapter_file(tmp_path / "adapter.safetensors", task))}
    edges, contours, still = run(control=["canny", "soft_edges"], **wanted)
    assert {path.name for path in tmp_path.glob("signal-*")} == {
        "signal-canny.mp4",
        "signal-soft_edges.mp4",
        "signal-still.png",
    }
    assert (edges == run(control="canny", only="first", **wanted)[0]).all()
    assert (contours == run(clip=wanted["clip"], maker="control.soft_edges")[0]).all()
    assert (still[0] == next(read_clip(Path(wanted["clip"])))).mean() > 0.9  # 72x56 pixels are not cut
    with pytest.raises(ConfigError, match="control=depth is not one of the controls"):
        run(control=["canny", "depth"], **wanted)


@pytest.mark.parametrize(
    ("makers", "message"),
    [
        ([{"maker": "union", "args": {"controls": ["canny"]}}], r"controls=\['canny'\] must be"),
        ([{"maker": "union", "args": {"controls": {EDGES: {"args": 3}}}}], r"control\.canny\.args=3 must be arguments"),
        ([{"maker": "union", "args": {"controls": {"union": {"args": {}}}}}], r"controls=None must be"),
        ([{"maker": "control.pose", "args": {"model": 3}}], "made with the network 3: set maker_args.model=PATH"),
        ([{"maker": "degrade.chain", "args": {"steps": [{"maker": "degrade.grey", "args": 3}]}}], "must be arguments"),
        ([{"maker": "os.system", "args": {}}], r"maker='os\.system' is not one of"),
        ([{"maker": EDGES, "args": {"low": []}}], r"maker_args\.low=\[\] must be a number"),
        ([{"maker": EDGES, "args": {}}, {"maker": EDGES, "args": {}}], "names 2 makers for 1 references"),
    ],
)
def test_an_adapter_file_may_name_anything(makers: list[Any], message: str, run: Run, tmp_path: Path) -> None:
    adapter = adapter_file(tmp_path / "adapter.safetensors", reference_makers=json.dumps(makers))
    with pytest.raises(ConfigError, match=message):
        run(
            clip=str(clip_of(tmp_path)),
            adapter=str(adapter),
            control="canny" if makers[0]["maker"] == "union" else None,
        )


def test_a_clip_that_memory_cannot_hold_is_refused_before_it_is_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = str(clip_of(tmp_path))
    monkeypatch.setattr("data_prep.signal.source.free_host_memory", lambda: 2.0**20)
    with pytest.raises(ConfigError, match=r"72x56x21 needs about 0\.0 GiB .*make it in parts"):
        run(clip=clip, maker="control.pose")
    assert run(clip=clip, maker=EDGES, maker_args=LOW, frames=5, start=16)[0].shape == (5, 56, 72, 3)

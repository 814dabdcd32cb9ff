"""`eval.diagnose`: a finished clip against its reference. Each finding is provoked, and a sound clip has none."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from eval.diagnose import main
from eval.diagnosis.agreement import agreement, disc_steps, drawing_gap, layout, reference_kind
from eval.diagnosis.findings import FLICKER, UNSTEADY
from eval.diagnosis.stills import still_agreements
from eval.metrics.base import CachedClip
from eval.metrics.motion import flicker_alone
from iclora_train.config import Model, Sampling, Task
from iclora_train.config.hydra_app import conf_dir
from iclora_train.config.named_task import task_named
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.run import generate
from iclora_train.generate.settings import GenerateSettings
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.clip import read_clip
from iclora_train.media.shard_clip import encode_clip
from iclora_train.signals.edges import CannyEdges
from iclora_train.signals.pose import PoseReader
from iclora_train.signals.track_drawing import draw_tracks
from tests.clips import moving
from tests.eval_world import World, build, write_adapter
from tests.test_depth import write_network

CANNY = CannyEdges(low=100.0, high=200.0, thickness=2, soft=0.6)  # as conf/conf/canny.yaml
HEIGHT, WIDTH, FRAMES = 96, 128, 9
SAMPLES = Path(__file__).parent.parent / "data_prep" / "samples" / "clips"


def picture(seed: int = 0, frames: int = FRAMES) -> np.ndarray:
    """Coloured shapes on a gradient that slide by two pixels per frame, uint8 (F,H,W,3)."""
    rng = np.random.default_rng(seed)
    canvas = np.tile(np.linspace(40, 90, HEIGHT)[:, None, None], (1, WIDTH + 2 * frames, 3)).astype(np.uint8)
    for _ in range(14):
        centre = (int(rng.integers(0, canvas.shape[1])), int(rng.integers(0, HEIGHT)))
        colour = tuple(int(value) for value in rng.integers(90, 256, 3))
        cv2.circle(canvas, centre, int(rng.integers(5, 16)), colour, -1)
    return np.stack([canvas[:, 2 * t : 2 * t + WIDTH] for t in range(frames)])


def blurred(clip: np.ndarray, sigma: float = 3.0) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip])


def grey_of(clip: np.ndarray) -> np.ndarray:
    return np.repeat(clip.mean(-1, keepdims=True).astype(np.uint8), 3, -1)


def write(path: Path, clip: np.ndarray, fps: float = 25.0) -> Path:
    path.write_bytes(encode_clip(clip, fps, lossless=False))
    return path


def diagnosed(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    clip: np.ndarray,
    reference: np.ndarray,
    *settings: str,
    **more: float,
) -> tuple[int, str]:
    """Exit code and output of the command in this process."""
    files = (
        f"clip={write(folder / 'out.mp4', clip, more.get('clip_fps', 25.0))}",
        f"reference={write(folder / 'ref.mp4', reference, more.get('reference_fps', 25.0))}",
    )
    return command(capsys, *files, *settings)


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    before, sys.argv = sys.argv, ["eval.diagnose", *arguments]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    words = [sys.executable, "-m", "eval.diagnose", *arguments]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def names(out: str) -> list[str]:
    return [line.split(": ")[1] for line in out.splitlines() if line.startswith("finding: ")]


# ---- sound clips


@pytest.mark.parametrize(
    ("task", "reference"),
    [
        ("deblur", blurred(picture())),
        ("canny", CANNY.draw(picture(), (HEIGHT, WIDTH))),
        ("colorize", grey_of(picture())),
        ("day_to_night", picture()[..., ::-1] // 2 + 60),
        ("upscale_x2", np.stack([cv2.resize(frame, (WIDTH // 2, HEIGHT // 2)) for frame in blurred(picture(), 1.5)])),
    ],
)
def test_a_sound_clip_has_no_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, reference: np.ndarray
) -> None:
    code, out = diagnosed(tmp_path, capsys, picture(), reference, f"conf={task}")
    assert names(out) == []
    assert code == 0
    assert f"task {task} (from conf)" in out
    assert out.endswith("nothing was found\n")


def test_the_exit_code_and_the_lines_in_a_process_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "out.mp4", picture())
    write(tmp_path / "ref.mp4", picture(1))
    result = run(tmp_path, "clip=out.mp4", "reference=ref.mp4", "conf=deblur", "json=found.json")
    assert result.returncode == 3
    assert "finding: reference not followed: layout is" in result.stdout
    assert result.stdout.endswith("1 findings\n")
    assert result.stderr == ""
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["task"] == "deblur"
    assert [entry["name"] for entry in content["findings"]] == ["reference not followed"]


def test_a_wrong_setting_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, missing = f"clip={write(tmp_path / 'out.mp4', picture())}", f"clip={tmp_path / 'none.mp4'}"
    for arguments, message in (
        ((missing, "reference=ref.mp4"), "none.mp4 does not exist"),
        ((clip,), "reference must be set"),
        (("reference=ref.mp4",), "clip must be set"),
        ((clip, "reference=ref.mp4", "fit=pad"), "fit='pad' is not one of"),
        ((clip, "reference=ref.mp4", "attention_strength=2"), "attention_strength=2 must be a number in [0, 1]"),
        ((clip, "reference=ref.mp4", "adapter=none.safetensors"), "adapter=none.safetensors does not exist"),
    ):
        code, out = command(capsys, *arguments)
        assert code == 2
        assert message in out


# ---- is the reference followed?


@pytest.mark.parametrize("task", ["deblur", "canny", "colorize", "day_to_night"])
def test_the_reference_of_another_clip_is_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    other = picture(3)
    reference = CANNY.draw(other, (HEIGHT, WIDTH)) if task == "canny" else blurred(other)
    code, out = diagnosed(tmp_path, capsys, picture(), reference, f"conf={task}", "attention_strength=0.4")
    assert names(out) == ["reference not followed"]
    assert code == 3
    assert "raise attention_strength from 0.4 to 1" in out


def test_a_hole_is_followed_outside_and_filled_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = picture().copy()
    reference[:, 20:70, 30:90] = (102, 255, 0)
    assert diagnosed(tmp_path, capsys, picture(), reference, "conf=inpaint")[0] == 0
    left = blurred(reference, 0.8)
    left[:, :10] = 0  # not an exact copy
    out = diagnosed(tmp_path, capsys, left, reference, "conf=inpaint")[1]
    assert names(out) == ["copied reference"]
    assert "of the masked region keep the mask's colour" in out


def test_tracks_are_compared_with_the_flow_of_the_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    height, width, frames = 272, 480, 9
    texture = moving(frames, height, width)  # content moves to the left by two pixels per frame
    start = np.array([[100.0, 80.0], [300.0, 150.0], [400.0, 60.0]])
    steps = np.arange(frames)[None, :, None] * np.array([-2.0, 0.0])
    drawing = draw_tracks(start[:, None] + steps, np.ones((3, frames), bool), (height, width))
    assert {round(float(step[0])) for _, step in disc_steps(drawing[7], drawing[8])} == {-2}
    code, out = diagnosed(tmp_path, capsys, texture, drawing, "conf=motion_tracks")
    assert names(out) == []
    single = draw_tracks((start[:, None] + steps)[:1], np.ones((1, frames), bool), (height, width))
    assert diagnosed(tmp_path, capsys, texture, single, "conf=motion_tracks")[0] == 0
    still = np.repeat(texture[:1], frames, 0)
    code, out = diagnosed(tmp_path, capsys, still, drawing, "conf=motion_tracks")
    assert (code, names(out)) == (3, ["reference not followed"])
    assert "share of the requested motion is 0.0" in out


def test_poses_are_compared_with_those_in_the_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, clips = PoseReader(), {}
    for name in ("garden_jump", "pair_front"):
        media = InputMedia.open("clip", str(SAMPLES / f"{name}.mp4"))
        clips[name] = media.read(media.frame_numbers(24)[:5], (256, 256), "crop")
    drawing = reader.draw(reader.read(clips["garden_jump"])[0], (256, 256), 256)
    assert diagnosed(tmp_path, capsys, clips["garden_jump"], drawing, "conf=pose")[0] == 0
    out = diagnosed(tmp_path, capsys, clips["pair_front"], drawing, "conf=pose")[1]
    assert names(out) == ["reference not followed"]


def test_a_control_that_cannot_be_measured_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = diagnosed(tmp_path, capsys, picture(), blurred(picture(2), 9), "conf=depth")
    assert "not measured: whether the reference (depth) is followed: no weights" in out
    assert code == 0


def test_without_a_task_the_look_of_the_reference_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = diagnosed(tmp_path, capsys, picture(), CANNY.draw(picture(), (HEIGHT, WIDTH)))
    assert "task unknown (from the look of the reference), reference: edges" in out
    assert code == 0
    assert reference_kind(None, picture()) == "degraded"
    union = Task(name="union", family="structure", maker="union")
    assert (
        reference_kind(union, np.repeat(blurred(picture(), 8).mean(-1, keepdims=True).astype(np.uint8), 3, -1))
        == "depth"
    )
    skeleton = np.zeros_like(picture())
    skeleton[:, 20:60, 40:44] = (255, 85, 0)
    assert reference_kind(union, skeleton) == "pose"


def test_the_control_of_a_union_is_read_with_its_own_settings(tmp_path: Path) -> None:
    reference = CANNY.draw(picture(), (HEIGHT, WIDTH))
    controls = {"control.pose": {}, "control.canny": {"args": {"low": 100, "high": 200, "thickness": 2, "soft": 0.6}}}
    union = Task(name="union", family="structure", maker="union", maker_args={"controls": controls})
    single = Task(name="canny", family="structure", maker="control.canny", maker_args=controls["control.canny"]["args"])
    bare = Task(name="union", family="structure", maker="union", maker_args={"controls": {"control.canny": {}}})
    values = [agreement("edges", task, picture(), reference)[0] for task in (union, single, bare)]
    assert values[0] == values[1] != values[2]
    model = str(write_network(tmp_path / "net", "relative"))
    depth = Task(
        "union", "structure", maker="union", maker_args={"controls": {"control.depth": {"args": {"model": model}}}}
    )
    assert agreement("depth", depth, picture(), grey_of(picture()))[1] is None


def test_the_measures_are_perfect_for_identity_and_fall_with_distance() -> None:
    drawn = CANNY.draw(picture(), (HEIGHT, WIDTH))
    gaps = [drawing_gap(drawn, np.roll(drawn, shift, 2)) for shift in (0, 3, 8)]
    assert gaps[0] > 0.4
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.15
    layouts = [layout(picture(), np.roll(picture(), shift, 2)) for shift in (0, 8, 30)]
    assert layouts[0] == pytest.approx(1)
    assert layouts[0] > layouts[1] > layouts[2]
    measured, reason = agreement("tracks", None, picture(), np.zeros_like(picture()))
    assert measured is None
    assert reason is not None
    assert "no moving discs" in reason


# ---- copies and weak signals


@pytest.mark.parametrize("task", ["deblur", "canny", "colorize", "depth"])
def test_a_clip_that_equals_its_reference_is_a_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    grey = grey_of(blurred(picture()))
    reference = CANNY.draw(picture(), (HEIGHT, WIDTH)) if task == "canny" else grey
    code, out = diagnosed(tmp_path, capsys, reference, reference, f"conf={task}")
    assert names(out) == ["copied reference"]
    assert code == 3


def test_a_clip_that_stays_blurred_or_grey_is_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = blurred(picture())
    noisy = np.clip(blurred(reference, 1.0).astype(int) + 4, 0, 255).astype(np.uint8)
    out = diagnosed(tmp_path, capsys, noisy, reference, "conf=deblur")[1]
    assert "the clip is no sharper than its reference" in out
    grey = grey_of(picture())
    out = diagnosed(tmp_path, capsys, grey // 2 + 40, grey, "conf=colorize")[1]
    assert "the clip stays grey" in out


def test_weak_and_flickering_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = CANNY.draw(picture(), (HEIGHT, WIDTH))
    cases: list[tuple[str, np.ndarray, str]] = [
        ("canny", np.zeros_like(drawing), "weak reference: 100% of its frames have no strokes"),
        ("deblur", blurred(picture()) // 16 + 100, "weak reference: its luma varies by"),
    ]
    flashing = blurred(picture()).astype(int) + 40 * (np.arange(FRAMES) % 2)[:, None, None, None]
    cases.append(("deblur", np.clip(flashing, 0, 255).astype(np.uint8), "flickering reference: its luma flickers by"))
    half = drawing.copy()
    half[::2, :, : WIDTH // 2] = 0
    cases.append(("canny", half, "flickering reference: the amount of its strokes changes by"))
    for task, reference, message in cases:
        out = diagnosed(tmp_path, capsys, picture(), reference, f"conf={task}")[1]
        assert message in out, out
    bright = np.clip(picture().astype(int) + 30 * (np.arange(FRAMES) % 2)[:, None, None, None], 0, 255)
    out = diagnosed(tmp_path, capsys, bright.astype(np.uint8), blurred(picture()), "conf=deblur")[1]
    assert names(out) == ["flickering clip"]


def halves_that_flicker(clip: np.ndarray, levels: float) -> np.ndarray:
    """One half brighter and the other darker by half of `levels`, in turns, so that the mean luma stays."""
    turn = np.where(np.arange(len(clip)) % 2, 1, -1)[:, None, None, None]
    side = np.where(np.arange(clip.shape[2]) < clip.shape[2] // 2, 1, -1)[:, None]
    return np.clip(clip + turn * side * levels / 2, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("task", "levels"), [("deblur", 8), ("canny", 16)])
def test_halves_that_flicker_against_each_other_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, levels: int
) -> None:
    reference = CANNY.draw(picture(), (HEIGHT, WIDTH)) if task == "canny" else blurred(picture())
    out = diagnosed(tmp_path, capsys, halves_that_flicker(picture(), levels), reference, f"conf={task}")[1]
    assert names(out) == ["flickering clip"]
    assert diagnosed(tmp_path, capsys, picture(), reference, f"conf={task}")[0] == 0


@pytest.mark.parametrize("name", ["street_van", "garden_jump", "tree_hand"])
def test_fast_motion_in_a_sample_clip_is_no_flicker(name: str) -> None:
    """The clips with the largest differences: cars that drive past, a person who jumps, a hand before the lens."""
    frames = np.stack(list(islice(read_clip(SAMPLES / f"{name}.mp4"), 49)))
    alone = flicker_alone(CachedClip(frames))
    assert 4 < alone < UNSTEADY
    flashing = frames // 2 + 60 + 4 * (np.arange(len(frames)) % 2)[:, None, None, None].astype(np.uint8)
    assert flicker_alone(CachedClip(flashing)) > flicker_alone(CachedClip(frames // 2 + 60)) + FLICKER


# ---- sizes, rates, strengths, masks


@pytest.mark.parametrize(
    ("reference", "settings", "finding"),
    [
        (blurred(picture())[:, :, 8:-8], (), "aspect ratio: the clip is 128x96, the reference 112x96: it loses 12%"),
        (blurred(picture())[:5], (), "short reference: it has 5 frames at the clip's rate, the clip needs 9"),
        (blurred(picture())[:, ::2, ::2], (), "small reference: the reference is 64x48, at factor 1 this clip needs"),
        (blurred(picture()), ("width=160", "frames=9"), "size of the clip: the clip has width 128 instead of 160;"),
        (blurred(picture()), ("fps=30",), "size of the clip: the clip has 25 frames per second instead of 30"),
        (blurred(picture()), ("attention_strength=0.05",), "strength: attention_strength=0.05 is in the dead zone"),
        (blurred(picture()), ("adapter_strength=0",), "strength: adapter_strength=0 leaves the adapter out"),
    ],
)
def test_a_mismatch_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reference: np.ndarray, settings: tuple[str, ...], finding: str
) -> None:
    code, out = diagnosed(tmp_path, capsys, picture(), reference, "conf=deblur", *settings)
    assert f"finding: {finding}" in out, out
    assert (code, len(names(out))) == (3, 1)


def test_equal_frames_at_another_rate_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = diagnosed(tmp_path, capsys, picture(), blurred(picture()), "conf=deblur", reference_fps=30.0)[1]
    assert "frame rate: clip 25 and reference 30 frames per second, with as many frames" in out


@pytest.mark.parametrize(("level", "text"), [(0, "hides the reference"), (255, "changes nothing"), (128, "")])
def test_the_coverage_of_a_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str], level: int, text: str) -> None:
    cv2.imwrite(str(tmp_path / "mask.png"), np.full((32, 32, 3), level, np.uint8))
    settings = ("conf=deblur", f"attention_mask={tmp_path / 'mask.png'}")
    out = diagnosed(tmp_path, capsys, picture(), blurred(picture()), *settings)[1]
    assert ("mask coverage" in out) == bool(text)
    assert text in out


# ---- adapter and record


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("diagnose"))


def test_the_adapter_says_task_base_trigger_and_strength(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ltx-2.3-22b-ic-lora-deblur-0.9.safetensors"
    save_file(load_file(world.adapter), path)
    settings = (f"adapter={path}", "base='2.5'", "prompt=a dog", "adapter_strength=0.5")
    code, out = diagnosed(tmp_path, capsys, picture(), blurred(picture()), *settings)
    assert "task deblur (from the published adapter)" in out
    assert names(out) == ["wrong base", "trigger missing", "strength"]
    assert "was made for 2.3, the clip for 2.5" in out
    assert "begin it with the trigger: 'DEBLUR ...'" in out
    assert "Deblur 0.9 is published with 1;" in out
    assert code == 3
    fine = (f"adapter={path}", "base='2.3'", "prompt=DEBLUR a dog")
    assert diagnosed(tmp_path, capsys, picture(), blurred(picture()), *fine)[0] == 0
    union = tmp_path / "ltx-2.3-22b-ic-lora-union-control-ref0.5.safetensors"
    save_file(load_file(world.adapter), union)
    drawing = CANNY.draw(picture(), (HEIGHT, WIDTH))[:, ::2, ::2]
    out = diagnosed(tmp_path, capsys, picture(), drawing, f"adapter={union}", "base='2.5'")[1]
    assert "factor 2" in out
    assert "wrong base" not in out  # Lightricks uses it on 2.5
    assert "small reference" not in out
    save_file(load_file(world.adapter), path, {"reference_downscale_factor": "half"})
    code, out = diagnosed(tmp_path, capsys, picture(), blurred(picture()), f"adapter={path}")
    assert (code, names(out)) == (3, ["adapter"])
    assert "reference_downscale_factor='half' must be a whole number" in out
    save_file({key: value * 0 if "lora_B" in key else value for key, value in load_file(world.adapter).items()}, path)
    out = diagnosed(tmp_path, capsys, picture(), blurred(picture()), f"adapter={path}")[1]
    assert "finding: adapter: " in out
    assert "was never trained" in out


def test_the_record_of_generate_is_read(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = write(tmp_path / "ref.mp4", blurred(picture()))
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((32, 32, 3), np.uint8))
    settings = GenerateSettings(
        adapter=str(world.adapter),
        reference=str(reference),
        prompt="a dog",
        out=str(tmp_path / "made.mp4"),
        cache=str(tmp_path / "cache"),
        attention_strength=0.05,
        attention_mask=str(tmp_path / "mask.png"),
        model=Model(name="tiny", checkpoint=str(world.root / "base"), precision="fp32"),
        sample=Sampling(steps=1),
    )
    generate(settings)
    capsys.readouterr()
    code, out = command(capsys, f"clip={tmp_path / 'made.mp4'}", "conf=deblur")
    assert code == 3
    assert f"note: settings are read from {tmp_path / 'made.json'}" in out
    assert {"strength", "mask coverage", "reference not followed"} <= set(names(out))
    (tmp_path / "made.json").write_text("{}")
    code, out = command(capsys, f"clip={tmp_path / 'made.mp4'}", f"reference={reference}", "conf=deblur")
    assert "is not a record of `iclora_train.generate` and is not read" in out


def write_record(clip: Path, base: dict[str, str], **settings: list[object] | None) -> None:
    """A record as `generate` writes it, with the entries that are read."""
    keys = ("adapter", "adapter_strength", "reference", "attention_strength", "attention_mask")
    entries = {**{key: [] for key in keys}, "reference_frame": None, **settings}
    clip.with_suffix(".json").write_text(json.dumps({"settings": entries, "prompt": "a dog", "base": base}))


def test_strengths_of_a_record_are_those_of_the_examined_files(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two recorded adapters and references each keeps its own strength; that of a file outside is not known.

    A third reference was left out.
    """
    clip, other = write(tmp_path / "out.mp4", picture()), tmp_path / "other.safetensors"
    first, second = (write(tmp_path / f"{i}.mp4", blurred(picture())) for i in range(2))
    save_file(load_file(world.adapter), other)
    lists = {"adapter": [str(other), str(world.adapter)], "adapter_strength": [0.0, 1.0]}
    references = {"reference": [str(first), None, str(second)], "attention_strength": [1.0, 1.0, 0.05]}
    write_record(clip, {"version": "2.3"}, **lists, **references, attention_mask=[None, None, None])
    fixed = (f"clip={clip}", "conf=deblur", "prompt=DEBLUR a dog")
    out = command(capsys, *fixed)[1]
    assert "the record has 2 adapters: set adapter=" in out
    assert [line for line in out.splitlines() if line.startswith(("reference", "finding"))] == [
        f"reference 1 ({first}): degraded, factor 1: followed",
        f"reference 3 ({second}): degraded, factor 1: followed",
        "finding: strength: 3: attention_strength=0.05 is in the dead zone below 0.1; "
        "most of the curve lies between 0.1 and 1: begin at 1 and lower it",
    ]
    alone = (*fixed, f"reference={first}")
    assert names(command(capsys, *alone)[1]) == []
    assert names(command(capsys, *alone, f"adapter={other}")[1]) == ["strength"]
    assert names(command(capsys, *alone, f"adapter={world.adapter}")[1]) == []
    assert "attention_strength=0.05" in command(capsys, *fixed, f"reference={second}")[1]
    unknown = write(tmp_path / "2.mp4", blurred(picture()))
    assert names(command(capsys, *fixed, f"reference={unknown}")[1]) == []


# ---- several references


STILL_ADAPTER = '[{"name": "still", "downscale": 2, "frame": 0}]'


def edges_and_still(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Edges of a clip at its size, and its last frame at half the size."""
    edges = write(folder / f"edges{seed}.mp4", CANNY.draw(picture(seed), (HEIGHT, WIDTH)))
    still = folder / f"still{seed}.png"
    cv2.imwrite(str(still), cv2.resize(picture(seed)[-1], (WIDTH // 2, HEIGHT // 2))[..., ::-1])
    return edges, still


@pytest.mark.parametrize(
    ("seeds", "followed", "found"),
    [
        ((0, 0), [True, True], []),
        ((3, 0), [False, True], [("reference not followed", "first")]),
        ((0, 3), [True, False], [("reference not followed", "still")]),
        ((3, 3), [False, False], [("reference not followed", "first"), ("reference not followed", "still")]),
    ],
)
def test_each_of_several_references_is_checked_alone(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    seeds: tuple[int, int],
    followed: list[bool],
    found: list[tuple[str, str]],
) -> None:
    clip = write(tmp_path / "out.mp4", picture())
    edges, still = edges_and_still(tmp_path, seeds[0])[0], edges_and_still(tmp_path, seeds[1])[1]
    several = ("conf=canny_still", "++task.more_references.0.downscale=2", f"json={tmp_path / 'found.json'}")
    code, out = command(capsys, f"clip={clip}", f"reference=[{edges},{still}]", *several)
    content = json.loads((tmp_path / "found.json").read_text())
    assert [(f["name"], f["reference"]) for f in content["findings"]] == found, out
    assert [entry["followed"] for entry in content["references"]] == followed
    assert [(e["name"], e["kind"], e["downscale"], e["frame"]) for e in content["references"]] == [
        ("first", "edges", 1, None),
        ("still", "still", 2, 0),
    ]
    assert {"first: edges above chance", "still: colours of the nearest frame"} <= content["measured"].keys()
    assert code == (3 if found else 0)
    word = "followed" if followed[1] else "not followed"
    assert f"reference still ({still}): still, factor 2, at frame 0: {word}\n" in out


def test_one_of_several_references_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, (edges, still) = write(tmp_path / "out.mp4", picture()), edges_and_still(tmp_path)
    for given, left, kind in (
        (f"[{edges},null]", "still", "edges"),
        (f"{edges}", "still", "edges"),
        (f"[null,{still}]", "first", "still"),
    ):
        code, out = command(capsys, f"clip={clip}", f"reference={given}", "conf=canny_still")
        assert f"reference {left}: left out" in out
        assert f"): {kind}, " in out
        # canny_still's stills have the clip's size
        assert (code, names(out)) == ((0, []) if kind == "edges" else (3, ["small reference"]))
    for given, message in (
        ("[null,null]", "names no file: give one of the references"),
        (f"[{edges},{still},{still}]", "has 3 items, and there are 2 references: first, still"),
    ):
        code, out = command(capsys, f"clip={clip}", f"reference={given}", "conf=canny_still")
        assert code == 2
        assert message in out
    two = (f"reference=[{edges},{still}]", "conf=canny_still", "attention_strength=[1,1,1]")
    assert "attention_strength=[1, 1, 1] has 3 items, and reference has 2" in command(capsys, f"clip={clip}", *two)[1]


def test_the_adapter_and_the_record_say_how_each_reference_is_used(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter's factors and frames come before the task's, frames of the record before both."""
    clip, (edges, still) = write(tmp_path / "out.mp4", picture()), edges_and_still(tmp_path)
    adapter = tmp_path / "two.safetensors"
    write_adapter(adapter, BaseModel.open(str(world.root / "base")), more_references=STILL_ADAPTER, task="canny_still")
    lists = {"adapter": [str(adapter)], "adapter_strength": [1.0], "reference": [str(edges), str(still)]}
    write_record(clip, {}, **lists, attention_strength=[1.0, 0.05], attention_mask=[None, None])
    out = command(capsys, f"clip={clip}")[1]
    assert "task canny_still (from the adapter's metadata), 2 references" in out
    assert f"reference still ({still}): still, factor 2, at frame 0: followed" in out
    assert [line for line in out.splitlines() if line.startswith("finding")] == [
        "finding: strength: still: attention_strength=0.05 is in the dead zone below 0.1; "
        "most of the curve lies between 0.1 and 1: begin at 1 and lower it"
    ]
    assert names(command(capsys, f"clip={clip}", "attention_strength=[null,1]")[1]) == []
    frames = {"attention_strength": [1.0, 1.0], "attention_mask": [None, None], "reference_frame": [None, -1]}
    write_record(clip, {}, **lists, **frames)
    assert "still, factor 2, at frame -1: followed" in command(capsys, f"clip={clip}")[1]
    assert "still, factor 2, at frame 4: followed" in command(capsys, f"clip={clip}", "reference_frame=[null,4]")[1]
    code, out = command(capsys, f"clip={clip}", "reference_frame=[null,9]")
    assert code == 2
    assert "still: reference_frame=9 does not exist in a clip of 9 frames" in out


def test_a_keyframe_is_compared_with_the_frame_at_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """conf=in_between places its reference at the last frame."""
    clip = write(tmp_path / "out.mp4", np.concatenate([picture(1)[:5], picture()[5:]]))
    for seed, found in ((0, []), (1, ["reference not followed"])):
        cv2.imwrite(str(tmp_path / "key.png"), picture(seed)[-1, ..., ::-1])
        out = command(capsys, f"clip={clip}", f"reference={tmp_path / 'key.png'}", "conf=in_between")[1]
        assert [name for name in names(out) if "clip" not in name] == found, out
        assert "reference: still, factor 1, at frame -1" in out


def test_other_colours_than_those_of_the_still_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, (edges, still) = write(tmp_path / "out.mp4", picture()[..., [2, 0, 1]]), edges_and_still(tmp_path)
    settings = ("conf=canny_still", "++task.more_references.0.downscale=2")
    out = command(capsys, f"clip={clip}", f"reference=[{edges},{still}]", *settings)[1]
    assert names(out) == ["reference not followed"]
    assert "still: colours of the nearest frame is" in out


def test_stills_of_the_sample_clips_fit_their_own_clip() -> None:
    """A late frame is compared with the first half. Of 8 clips none fits another one's still."""
    task = Task("t", "edit", maker="edit.frame", maker_args={"frame": "any"})
    chosen = ("cup_turn", "garden_jump", "plaza_lawn", "rabbit_wakes", "skyline_rise", "smile_door", "talk_books")
    clips = {
        name: np.stack([cv2.resize(frame, (96, 96)) for frame in islice(read_clip(SAMPLES / f"{name}.mp4"), 48)])
        for name in (*chosen, "towers_sky")
    }

    def follows(clip: str, still: str) -> bool:
        frames = clips[clip][:24]
        measured = still_agreements(task, frames, frames[:1], clips[still][-1:])
        return all(one.is_followed for one in measured)

    assert {(clip, still) for clip in clips for still in clips if follows(clip, still)} == {(n, n) for n in clips}


def test_the_base_is_a_version_or_unknown(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a version in the record no wrong base is reported. A setting that does not name a version is refused."""
    clip, reference = write(tmp_path / "out.mp4", picture()), write(tmp_path / "ref.mp4", blurred(picture()))
    write_record(clip, {})
    fixed = (f"clip={clip}", f"reference={reference}", f"adapter={world.adapter}", "prompt=DEBLUR a dog")
    assert "wrong base" not in command(capsys, *fixed)[1]
    assert "wrong base" in command(capsys, *fixed, "base=2")[1]
    code, out = command(capsys, *fixed, "base=ltx2_3")
    assert code == 2
    assert "base=ltx2_3 is not one of 2.0, 2.3, 2.5" in out


def test_the_working_folder_is_a_clip_like_any_other_folder(tmp_path: Path) -> None:
    for t, frame in enumerate(picture()):
        cv2.imwrite(str(tmp_path / f"{t:03}.png"), frame[..., ::-1])
    result = run(tmp_path, "clip=.", "reference=.", "conf=deblur", "fps=25")
    assert (result.returncode, result.stderr) == (3, "")
    assert names(result.stdout) == ["copied reference"]


def test_flicker_of_two_frames_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = diagnosed(tmp_path, capsys, picture(frames=2), blurred(picture(frames=2)), "conf=deblur")
    assert code == 0
    assert "not measured: flicker: it needs 3 frames" in out
    assert "flicker of" not in out


def test_every_task_composes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write(tmp_path / "out.mp4", picture(frames=1))
    for path in (conf_dir() / "conf").glob("*.yaml"):
        code, out = command(capsys, f"clip={clip}", f"reference={clip}", f"conf={path.stem}")
        assert code in (0, 3), (path, out)
        assert f"task {path.stem} (from conf)" in out


def test_every_task_is_known_by_the_name_in_an_adapter_file() -> None:
    names = [path.stem for path in (conf_dir() / "conf").glob("*.yaml")]
    assert "canny_still" in names
    assert [task.name for name in names if (task := task_named(name, [])) is not None] == names
    still = task_named("canny_still", [])
    assert still is not None
    assert (still.maker, still.reference_names) == ("control.canny", ["first", "still"])
    assert task_named("no_task", []) is None


def test_help_names_the_exit_codes(tmp_path: Path) -> None:
    result = run(tmp_path, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Exit code 0: nothing was found; 3: there are findings" in result.stdout

"""Clips of odd rates and lengths in a preparation: used whole, or listed with the reason; frames of references."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import pipeline
from data_prep.clips.clip_list import list_clips
from data_prep.clips.windows import Window, heldout_windows, train_windows
from data_prep.makers import build_maker
from data_prep.pairs import ReferenceScale, SourceVideo, crop_window, make_reference
from data_prep.select_clips import select_clips
from iclora_train.core.fingerprint import content_settings, digest
from iclora_train.core.types import Geometry
from iclora_train.data.shard_index import ShardError, index_digest
from iclora_train.data.shards import ShardSet
from iclora_train.diffusion.reference import append_reference, target_tokens
from iclora_train.generate.input_media import InputMedia
from iclora_train.media.frame_times import simultaneous_frames, temporal_subsample
from tests.clips import moving
from tests.prep import config_of, write_clips
from tests.test_frame_times import FILM, PAUSE, write


def test_clips_of_odd_rates_are_used_or_dropped_with_the_reason(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = {
        "exact": write(tmp_path / "exact.mp4", 9, FILM),
        "webm": write(tmp_path / "webm.webm", 9, FILM),
        "short": write(tmp_path / "short.mp4", 8, FILM),
        "slow": write(tmp_path / "slow.mp4", 60, FILM / 2),
        "pause": write(tmp_path / "pause.mkv", len(PAUSE), ticks=PAUSE),
        "slides": write(tmp_path / "slides.mkv", 12, ticks=[4_000_000 * i for i in range(12)]),
    }
    rows = [{"id": name, "video": path.name, "split": "train"} for name, path in clips.items()]
    rows += [{"id": f"row{int(fps)}", "video": "pause.mkv", "split": "train", "fps": fps} for fps in (30, 22.5, 25)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    size = ("data.frames=9", "data.height=16", "data.width=16", "data.zoom=1", "data.train_windows=24")
    checks = ("checks.blank.action=warn", "checks.duplicate.action=warn")
    config = config_of(tmp_path / "out", tmp_path / "list.jsonl", base, *size, "data.fps=23.976", *checks)
    root = pipeline.prepare(config)
    report = json.loads((root / "report.json").read_text())
    assert {drop["clip"]: drop["reason"] for drop in report["dropped"]} == {
        "short": "8 frames are fewer than data.frames=9",
        "slow": "1 frames without a repeated one are fewer than data.frames=9: "
        "11.988 frames a second are too few for data.fps=23.976; set data.fps=11.988, or null",
        "slides": "1 frames without a repeated one are fewer than data.frames=9: "
        "0.00025 frames a second are too few for data.fps=23.976; set data.fps=0.00025, or null",
        "row25": "its row says fps=25, but the video has 30: correct the list or the video",
    }
    assert list(report["timing"]) == ["pause", "row22", "row30"]
    assert report["timing"]["pause"].startswith("variable rate of 30 fps, read at 23.976 fps; no window crosses")
    assert "3 clips have a variable frame rate or repeated frames" in capsys.readouterr().out
    pairs = ShardSet.open(root / "pairs")
    for number in range(len(pairs)):
        window = pairs.read_pair(number).record["window"]
        assert window["fps"] == 23.976
        assert (np.diff(window["indices"]) > 0).all()


def test_shards_with_other_reference_frames_are_refused(tmp_path: Path, base: Path) -> None:
    """Earlier versions took frames 0, S, 2 S, ... and said nothing about it in the fingerprint."""
    clips = write_clips(tmp_path / "clips")
    config = config_of(tmp_path / "out", clips, base, "task.reference_temporal_scale=2", "data.frames=9")
    root = pipeline.prepare(config)
    assert ShardSet.open(root / "pairs").read_pair(0).record["reference_frames"] == [0, 1, 3, 5, 7]
    for kind in ("pairs", "latents"):
        for path in (root / kind / "fingerprint.json", root / kind / "index.json"):
            text = path.read_text()
            assert '"reference_frames": "0, 1, 1 + S, 1 + 2 S, ..."' in text
            record = json.loads(text.replace('"reference_frames":', '"other":'))
            if path.name == "index.json":
                record["fingerprint"]["sha256"] = digest(record["fingerprint"]["of"])
                record["sha256"] = index_digest(record)
            path.write_text(json.dumps(record))
    with pytest.raises(ShardError, match=r"task\.reference_frames: None -> 0, 1, 1 \+ S"):
        pipeline.prepare(config)
    with pytest.raises(ShardError, match=r"task\.reference_frames: None -> 0, 1, 1 \+ S"):
        ShardSet.open(root / "latents").require_settings(config)
    assert "reference_frames" not in content_settings(config_of(tmp_path, clips, base))["task"]


def test_windows_of_constant_clips_are_those_of_version_0_1() -> None:
    """Old and new shards of one data set have the same windows; only rounding at NTSC rates and ties has changed."""
    old = Path(__file__).parent / "version_0_1"
    shards = ShardSet.open(old / "shards/pairs")
    recorded = [shards.read_pair(number).record["window"] for number in range(len(shards))]
    settings = ("data.train_windows=12", "data.heldout_windows=3")
    config = config_of(old / "shards", old / "clips/list.csv", old / "base", *settings)
    usable, dropped = select_clips(list_clips(config.data.clips, config.data.heldout_fraction), config)
    by_split = {split: [clip for clip in usable if clip.clip.split == split] for split in ("train", "val", "heldout")}
    windows = train_windows(by_split["train"], config.data)
    windows += [window for split in ("val", "heldout") for window in heldout_windows(by_split[split], config.data)]
    assert not dropped
    assert {window.key: window for window in map(Window.from_record, recorded)} == {w.key: w for w in windows}


def test_a_temporal_factor_takes_the_frames_of_ltx() -> None:
    """Lightricks' trainer and ltx-pipelines: frame 0, then every S-th frame from frame 1."""
    assert temporal_subsample(np.arange(33), 4).tolist() == [0, 1, 5, 9, 13, 17, 21, 25, 29]
    assert temporal_subsample(np.arange(17), 1).tolist() == list(range(17))


def test_a_reference_has_the_target_frames_of_its_positions() -> None:
    window = Window("a", 0, tuple(range(9)), (48, 64), (8, 16), (32, 32), False, 25.0)
    frames = list(moving(9, 48, 64))
    reference, _ = make_reference(
        frames, window, build_maker("given", {}), SourceVideo(Path()), [0], ReferenceScale(temporal_scale=4)
    )
    assert (reference == crop_window(frames, window)[[0, 1, 5]]).all()
    assert simultaneous_frames(9, 3).tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_positions_of_a_reference_begin_with_its_frames(factor: int) -> None:
    """Latent frame k holds pixel frames 8 k - 7 to 8 k; its position begins at the target time of the first of them."""
    geometry = Geometry(channels=4, spatial=32, temporal=8)
    target = target_tokens(torch.zeros(1, 4, 2 * factor + 1, 1, 1), torch.ones(1), geometry, 24.0)
    tokens = append_reference(target, torch.zeros(1, 4, 3, 1, 1), temporal_scale=factor)
    starts = tokens.position[0, 0, -3:, 0] * 24
    numbers = temporal_subsample(np.arange(16 * factor + 1), factor)
    assert starts.round().tolist() == numbers[[0, 1, 9]].tolist()


def test_a_variable_reference_is_shown_at_its_times(tmp_path: Path) -> None:
    reference = InputMedia.open("reference", str(write(tmp_path / "a.mkv", len(PAUSE), ticks=PAUSE)))
    assert reference.fps == 30
    numbers = reference.frame_numbers(30)
    assert len(numbers) == 3.5 * 30 + 75
    assert numbers[:60].tolist() == list(range(60))
    assert numbers[-75:].tolist() == list(range(60, 135))

"""Splits are settled among the usable clips: none is empty, clips that belong together stay together, and a data set
whose drawn splits have clips keeps them."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from data_prep import pipeline
from data_prep.clips.clip_list import Clip, list_clips
from data_prep.clips.parts import hold_out_end
from data_prep.clips.probed_clip import ProbedClip
from data_prep.clips.splits import Splits, settle_splits
from data_prep.clips.windows import Window, heldout_windows, train_windows
from data_prep.pipeline import prepare
from data_prep.verify import verify
from iclora_train.config import ConfigError, Data
from iclora_train.data.heldout import EvaluationPlan, TooFewWindowsError
from iclora_train.data.shards import ShardSet
from iclora_train.media.clip import ClipInfo
from iclora_train.media.frame_times import FrameTimes, exact_rate
from tests.clips import write_clip
from tests.prep import config_of, contents


def data(**changes: object) -> Data:
    settings: dict[str, object] = {"clips": "", "root": "", "frames": 9, "height": 32, "width": 32}
    return Data(**{**settings, **changes})


def probed(clip: Clip, frames: int = 40, cuts: tuple[int, ...] = ()) -> ProbedClip:
    return ProbedClip(clip, ClipInfo(48, 64, FrameTimes.constant(frames, exact_rate(25.0))), cuts)


def listed(folder: Path, names: list[str], **columns: dict[str, str]) -> list[ProbedClip]:
    """The clips of a list, with the splits that listing gives them. columns: name of a column -> clip -> cell."""
    rows = [",".join(("id", "video", *columns))]
    rows += [",".join((n, f"{n}.mp4", *(cells.get(n, "") for cells in columns.values()))) for n in names]
    (folder / "list.csv").write_text("\n".join(rows))
    return [probed(clip) for clip in list_clips(str(folder / "list.csv"), 0.1)]


def splits_of(clips: list[ProbedClip]) -> dict[str, str]:
    return {probed.clip.id: probed.clip.split for probed in clips}


def windows_of(splits: Splits, settings: Data) -> dict[str, list[Window]]:
    of = {name: [p for p in splits.clips if p.clip.split == name] for name in ("train", "val", "heldout")}
    held_out = {name: heldout_windows(of[name], settings) for name in ("val", "heldout")}
    return {"train": train_windows(of["train"], settings), **held_out}


@pytest.mark.parametrize("count", [3, 4, 10, 40])
def test_drawn_splits_with_clips_are_kept_and_empty_ones_get_one(count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(count)
    for _ in range(10):
        clips = listed(tmp_path, [f"clip{n}" for n in rng.choice(10_000, count, replace=False)])
        usable = [clip for clip in clips if rng.random() < 0.7] or clips
        usable = usable if len(usable) > 2 else clips
        settled = settle_splits(usable, (), data())
        assert set(settled.split_of.values()) == {"train", "val", "heldout"}
        assert len(settled.clips) == len(usable)
        if set(splits_of(usable).values()) == {"train", "val", "heldout"}:
            assert (settled.split_of, settled.changes) == (splits_of(usable), {})
        else:  # as few clips as possible are moved
            assert len(settled.moved) <= 2


def test_adding_a_clip_moves_no_other_one(tmp_path: Path) -> None:
    names = [f"clip{n}" for n in range(40)]
    before = settle_splits(listed(tmp_path, names), (), data()).split_of
    after = settle_splits(listed(tmp_path, [*names, "another"]), (), data()).split_of
    assert {name: after[name] for name in names} == before


def test_two_clips_are_train_and_heldout_and_val_gets_half_of_the_heldout_one(tmp_path: Path) -> None:
    settled = settle_splits(listed(tmp_path, ["sea", "road"]), (), data())
    assert Counter(settled.split_of.values()) == {"train": 1, "heldout": 1, "val": 1}
    windows = windows_of(settled, data())
    (held_out,) = {window.clip for window in windows["heldout"]}
    assert {window.clip for window in windows["val"]} == {f"{held_out}-val"}
    last_of_val = max(window.indices[-1] for window in windows["val"])
    assert last_of_val < min(window.indices[0] for window in windows["heldout"])
    assert "too few clips for all splits" in settled.notes[0]
    short = [probed(clip.clip, frames=9) for clip in listed(tmp_path, ["sea", "road"])]
    alone = settle_splits(short, (), data())
    assert Counter(alone.split_of.values()) == {"train": 1, "heldout": 1}
    assert alone.notes == ["there are no val clips: training runs without validation losses and clips"]


@pytest.mark.parametrize(("frames", "cuts"), [(40, ()), (400, ()), (27, ()), (40, (20,)), (18, ()), (400, (390,))])
def test_no_frame_of_a_held_out_end_is_in_a_train_window(frames: int, cuts: tuple[int, ...]) -> None:
    settings = data(train_windows=200)
    settled = settle_splits([probed(Clip("film", Path("film.mp4"), "train"), frames, cuts)], (), settings)
    windows = windows_of(settled, settings)
    assert len(windows["train"]) == 200
    assert windows["heldout"]
    assert bool(windows["val"]) == (frames >= 27)
    used = {split: {i for window in group for i in window.indices} for split, group in windows.items()}
    assert not used["train"] & used["heldout"]
    assert not used["train"] & used["val"]
    assert not used["val"] & used["heldout"]
    ends = {split: max(numbers) for split, numbers in used.items() if numbers}
    assert ends["train"] < min(used["heldout"])
    keys = [window.key for group in windows.values() for window in group]
    assert len(set(keys)) == len(keys)
    assert settled.shared == ["film"]
    assert "film is the only usable clip" in settled.notes[0]


def test_a_clip_of_one_window_is_only_trained_on() -> None:
    clip = probed(Clip("film", Path("film.mp4"), "heldout"), 17)
    assert hold_out_end(clip, data()) == {"train": (0, 17)}
    settled = settle_splits([clip], (), data())
    assert settled.split_of == {"film": "train"}
    assert "too short to hold out a window" in settled.notes[0]
    assert "there are no heldout clips: training runs without evaluation" in settled.notes


def test_clips_of_one_recording_stay_together(tmp_path: Path) -> None:
    names = [f"clip{n}" for n in range(200)]
    recordings = {name: f"film{n // 4}" for n, name in enumerate(names)}
    clips = listed(tmp_path, names, source=recordings)
    settled = settle_splits(clips, (), data())
    of, drawn = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for name, recording in recordings.items():
        of[recording].add(settled.split_of[name])
        drawn[recording].add(splits_of(clips)[name])
    assert all(len(splits) == 1 for splits in of.values())
    assert all(of[recording] == splits for recording, splits in drawn.items() if len(splits) == 1)
    assert Counter(split for (split,) in of.values())["heldout"] >= 2
    assert settled.shared == []


def test_clips_of_a_single_recording_are_divided_by_clip_and_that_is_said(tmp_path: Path) -> None:
    names = [f"clip{n}" for n in range(10)]
    settled = settle_splits(listed(tmp_path, names, source=dict.fromkeys(names, "film")), (), data())
    assert set(settled.split_of.values()) == {"train", "val", "heldout"}
    assert settled.shared == ["film"]
    assert "all clips are of one recording, film" in settled.notes[0]


def test_clips_that_show_the_same_go_to_train_or_to_the_listed_split(tmp_path: Path) -> None:
    names = [f"clip{n}" for n in range(40)]
    clips = listed(tmp_path, names)
    of = defaultdict[str, list[str]](list)
    for name, split in splits_of(clips).items():
        of[split].append(name)
    copy, original = of["train"][0], of["heldout"][0]
    settled = settle_splits(clips, [(copy, original)], data())
    assert settled.split_of == {**splits_of(clips), original: "train"}
    assert settled.changes == {"moved": {original: "train"}}
    clips = listed(tmp_path, names, split={original: "heldout"})
    settled = settle_splits(clips, [(copy, original)], data())
    assert settled.split_of[copy] == settled.split_of[original] == "heldout"
    every = [(copy, name) for name in of["heldout"]]
    settled = settle_splits(listed(tmp_path, names), every, data())
    assert {settled.split_of[name] for name in of["heldout"]} == {"train"}
    assert "heldout" in settled.split_of.values()  # another clip is held out


def test_listed_splits_are_never_changed(tmp_path: Path) -> None:
    names = ["sea", "road", "lake"]
    for column in ({"sea": "train", "road": "train", "lake": "train"}, dict.fromkeys(names, "heldout")):
        settled = settle_splits(listed(tmp_path, names, split=column), [("sea", "road")], data())
        assert settled.split_of == column
    partly = settle_splits(listed(tmp_path, names, split={"sea": "train", "road": "train"}), (), data())
    assert {name: partly.split_of[name] for name in names} == {"sea": "train", "road": "train", "lake": "heldout"}
    assert partly.split_of["lake-val"] == "val"


def test_without_a_split_all_clips_but_the_listed_ones_are_for_training(tmp_path: Path) -> None:
    names = [f"clip{n}" for n in range(40)]
    settled = settle_splits(listed(tmp_path, names, split={"clip3": "heldout"}), (), data(split="none"))
    assert settled.split_of == {name: "heldout" if name == "clip3" else "train" for name in names}
    with pytest.raises(ConfigError, match=r"data\.split=thirds must be none or null"):
        data(split="thirds")


# --- from files to shards ---


def folder_of(folder: Path, count: int, frames: int = 24, same: bool = False) -> Path:
    for i in range(count):
        write_clip(folder / f"clip{i}.mp4", frames, 32, 48, seed=0 if same else i)
    return folder


MORE = ("data.train_windows=4", "data.heldout_windows=3", "checks.vae_pairs=0")


@pytest.mark.parametrize(
    ("count", "same", "splits"),
    [
        (1, False, {"train": 4, "val": 1, "heldout": 1}),
        (2, False, {"train": 4, "val": 2, "heldout": 2}),
        (3, False, {"train": 4, "val": 3, "heldout": 3}),
        (5, True, {"train": 4, "val": 1, "heldout": 1}),
    ],
)
def test_few_clips_become_shards_that_can_be_evaluated(
    count: int, same: bool, splits: dict[str, int], base: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path / "root", folder_of(tmp_path / "clips", count, same=same), base, *MORE)
    root = prepare(config)
    shards = ShardSet.open(root / "pairs")
    assert shards.splits == splits
    assert verify(str(root), 0, config) == []
    plan = EvaluationPlan.of(config)
    assert len(plan.samples) == splits["heldout"]
    assert plan.donors or len(plan.samples) > 1
    before = contents(root)
    prepare(config)  # finished: nothing is made again
    assert contents(root) == before


def test_the_evaluation_says_that_the_only_clip_is_also_in_training(base: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "root", folder_of(tmp_path / "clips", 1), base, *MORE)
    prepare(config)
    assert any("the evaluation says little about other footage" in note for note in EvaluationPlan.of(config).notes)


def test_without_a_split_there_is_nothing_to_evaluate(base: Path, tmp_path: Path) -> None:
    clips = folder_of(tmp_path / "clips", 3)
    config = config_of(tmp_path / "root", clips, base, *MORE, "data.split=none")
    assert ShardSet.open(prepare(config) / "latents").splits == {"train": 4}
    with pytest.raises(TooFewWindowsError, match=r"split heldout of .* has no windows"):
        EvaluationPlan.of(config)


def test_shards_that_an_earlier_version_finished_stay_valid(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = folder_of(tmp_path / "clips", 5, same=True)
    config = config_of(tmp_path / "root", clips, base, *MORE)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "settle_clips", lambda root, usable, *_: Splits(list(usable)))
        root = prepare(config)
    before = contents(root)
    prepare(config)
    assert contents(root) == before
    (root / "latents/index.json").unlink()  # but one that is not finished does not mix both rules
    with pytest.raises(ConfigError, match=r"holds shards of other settings \(splits"):
        prepare(config)


def test_a_list_that_holds_out_every_clip_is_refused_with_the_remedy(base: Path, tmp_path: Path) -> None:
    clips = folder_of(tmp_path / "clips", 2)
    (clips / "list.csv").write_text("video,split\nclip0.mp4,heldout\nclip1.mp4,heldout\n")
    config = config_of(tmp_path / "root", clips / "list.csv", base, *MORE)
    with pytest.raises(ConfigError, match="the list puts all usable clips into val or heldout: list one as train"):
        prepare(config)
    assert not (tmp_path / "root/pairs").exists()

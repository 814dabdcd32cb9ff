"""The windows of an evaluation are chosen, and an impossible evaluation is refused, before training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from eval.clips.windows import HeldOut
from iclora_train.config import ConfigError
from iclora_train.data.clip_hashes import KnownClip, joined_by_content, write_hashes
from iclora_train.data.heldout import EvaluationPlan, check_leakage, choose_size, select_windows
from iclora_train.data.shard_index import ShardSample
from tests.command import run
from tests.eval_world import World, build
from tests.test_eval_compare import scores as scores_to_compare


@pytest.mark.parametrize(
    ("evaluated_as", "leaks"),
    [({"dog", "dog's bytes"}, False), ({"copy", "cat's bytes"}, True), ({"cut", "cat.mov"}, True)],
)
def test_a_copy_and_a_cut_of_the_same_recording_leak(evaluated_as: set[str], leaks: bool) -> None:
    identities = {"cat": frozenset({"cat", "cat.mov", "cat's bytes"}), "evaluated": frozenset(evaluated_as)}
    if leaks:
        with pytest.raises(ConfigError, match="leakage: evaluated"):
            check_leakage({"evaluated"}, {"cat"}, identities, "heldout")
    else:
        check_leakage({"evaluated"}, {"cat"}, identities, "heldout")


def sample_of(key: str, source: str, size: str = "32x32x5") -> ShardSample:
    return ShardSample(key, "heldout", "heldout-0.tar", 0, 0, 0, size, source)


def test_windows_are_spread_evenly_over_sources() -> None:
    samples = [sample_of(f"a{i}", "a") for i in range(10)] + [sample_of(f"b{i}", "b") for i in range(3)]
    recording = {"a": "a", "b": "b"}
    assert [sample.key for sample in select_windows(samples, recording, 4)] == ["a2", "a7", "b0", "b2"]
    assert len(select_windows(samples, recording, 9)) == 9
    assert len({sample.key for sample in select_windows(samples, recording, 13)}) == 13


def old_choice(samples: list[ShardSample], recording: dict[str, str], count: int) -> list[ShardSample]:
    """The windows of a set with one control: recordings take turns in the order of their names."""
    samples_of = {name: [s for s in samples if recording[s.source] == name] for name in sorted(recording.values())}
    turns = [name for i in range(len(samples)) for name, own in samples_of.items() if i < len(own)]
    quota = Counter(turns[:count])
    return [
        own[(2 * j + 1) * len(own) // (2 * quota[name])] for name, own in samples_of.items() for j in range(quota[name])
    ]


@pytest.mark.parametrize("controls", [("",), ("canny",), ("canny", "pose")])
def test_a_set_with_one_control_keeps_its_windows(controls: tuple[str, ...]) -> None:
    rng = Random(0)
    for _ in range(50):
        sizes = {f"r{i}": rng.randint(1, 9) for i in range(rng.randint(1, 6))}
        samples = [sample_of(f"{name}-{i}", name) for name, size in sizes.items() for i in range(size)]
        recording, count = {name: name for name in sizes}, rng.randint(1, len(samples) + 2)
        chosen = select_windows(samples, recording, count, {sample.key: controls for sample in samples})
        assert chosen == old_choice(samples, recording, count) == select_windows(samples, recording, count)


def chosen_controls(count: int, **windows: str) -> tuple[Counter[str], Counter[str]]:
    """The controls and the recordings of `count` chosen windows. windows: by recording, a letter for the control of
    each; capital B is a window with the references a and b."""
    samples = [sample_of(f"{name}-{i}", name) for name, letters in windows.items() for i in range(len(letters))]
    names = {"a": ("a",), "b": ("b",), "c": ("c",), "B": ("a", "b")}
    controls = {f"{name}-{i}": names[letter] for name, letters in windows.items() for i, letter in enumerate(letters)}
    chosen = select_windows(samples, {name: name for name in windows}, count, controls)
    assert len(chosen) == len({sample.key for sample in chosen})
    assert [sample.source for sample in chosen] == sorted(sample.source for sample in chosen)
    of_control = Counter(control for sample in chosen for control in controls[sample.key])
    return of_control, Counter(sample.source for sample in chosen)


def test_windows_are_spread_over_controls_then_over_the_recordings_of_each() -> None:
    rare = "aaaaaaaab" * 3
    assert chosen_controls(24, x=rare, y=rare, z=rare)[0] == {"a": 15, "b": 9}  # all of the rare control
    assert chosen_controls(24, x="aab" * 9, y="aab" * 9)[0] == {"a": 12, "b": 12}
    assert chosen_controls(9, x="aaaa", y="aabbbbbb", z="cccc")[0] == {"a": 3, "b": 3, "c": 3}
    each = dict.fromkeys("uvwxyz", "ab" * 4)
    controls, recordings = chosen_controls(6, **each)
    assert controls == {"a": 3, "b": 3}
    assert recordings == dict.fromkeys("uvwxyz", 1)  # not the same three recordings for both
    assert chosen_controls(8, x="aaaaaaaa", y="BBBBBBBB")[0] == {"a": 8, "b": 7}  # B shows both


@pytest.mark.parametrize(
    ("windows", "size"),
    [
        (("a wide", "b wide", "a tall"), "wide"),
        (("a wide", "a tall", "b tall", "a wide", "a wide"), "tall"),  # three windows, but of one recording
        (("a wide", "b wide"), "wide"),
        (("a wide", "b tall"), "wide"),
    ],
)
def test_windows_of_one_size_are_evaluated_and_the_others_named(windows: tuple[str, ...], size: str) -> None:
    samples = [sample_of(str(i), *window.split()) for i, window in enumerate(windows)]
    chosen, notes = choose_size(samples, {"a": "a", "b": "b"})
    assert {sample.bucket for sample in chosen} == {size}
    sizes = {window.split()[1] for window in windows}
    text = f"held-out windows differ in size: those of {size} are evaluated, those of tall are not"
    assert notes == (
        [] if len(sizes) == 1 else [text.replace("of tall are not", f"of {(sizes - {size}).pop()} are not")]
    )


SPLITS = {"train": ["sea", "road"], "val": ["lake", "hill"]}
SHORT = [
    "trainer.accelerator=cpu",
    "trainer.max_steps=1",
    "optim=adamw",
    "model.lora.rank=2",
    "run=short",
    "logger=csv",
]


def world(folder: Path, *heldout: str) -> World:
    return build(folder, SPLITS | ({"heldout": list(heldout)} if heldout else {}), lambda clip: clip.split("-")[0])


def plan(world: World, *overrides: str) -> EvaluationPlan:
    return EvaluationPlan.of(world.config(*overrides))


def test_all_windows_are_evaluated_if_there_are_fewer_than_asked_for(tmp_path: Path) -> None:
    few = plan(world(tmp_path, "cat", "dog"), "eval.windows=24")
    assert few.recordings == ["cat", "cat", "dog", "dog"]
    number = f"eval.windows=24, but {tmp_path / 'shards'} holds 4 windows of split heldout"
    assert few.notes == [f"{number}: these are evaluated"]


def test_windows_of_one_recording_are_evaluated_with_references_of_another_split(tmp_path: Path) -> None:
    one = plan(world(tmp_path, "cat-1", "cat-2"))
    assert (one.recordings, len(one.samples)) == (["cat"] * 4, 4)
    assert {donor.source for donor in one.donors} == {"lake", "hill"}
    where = "all windows of split heldout are of one recording, cat"
    assert one.notes == [f"{where}: swapped references are those of split val"]


def test_training_without_heldout_windows_ends_with_the_adapter_and_says_why(tmp_path: Path) -> None:
    small = world(tmp_path)
    result = run(tmp_path, "iclora_train", *small.overrides, *SHORT, "data.batch_size=2")
    assert (result.code, result.err) == (0, "")
    assert f"no evaluation after training: split heldout of {tmp_path / 'shards'} has no windows" in result.out
    assert list(tmp_path.glob("runs/**/adapter.safetensors"))
    assert not list(tmp_path.glob("runs/**/eval/*"))
    again = run(tmp_path, "iclora_train", *small.overrides, *SHORT, "data.batch_size=2")
    assert (again.code, again.err) == (0, "")  # a finished run says so, and evaluates nothing


def test_a_batch_that_the_windows_cannot_fill_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    small = world(tmp_path, "cat", "dog")
    result = run(tmp_path, "iclora_train", *small.overrides, *SHORT, "data.batch_size=5")
    assert (result.code, result.out) == (2, "")
    assert "data.batch_size=5 needs 5 clips of 32x32x5, which has 4" in result.err
    assert result.err.count("\n") == 1
    assert not list(tmp_path.glob("runs/**/metrics.csv"))


def test_training_refuses_leakage_before_step_0(tmp_path: Path) -> None:
    small = world(tmp_path, "sea-again", "dog")
    result = run(tmp_path, "iclora_train", *small.overrides, *SHORT, "data.batch_size=2")
    assert (result.code, "metrics on them would prove nothing" in result.err) == (2, True)
    assert "To train without an evaluation set eval.after_training=false" in result.err


def test_training_refuses_an_evaluation_that_lacks_its_files_before_step_0(tmp_path: Path) -> None:
    small = world(tmp_path, "cat", "dog")
    arguments = [*small.overrides, *SHORT, "data.batch_size=2"]
    missing = tmp_path / "earlier.json"
    result = run(tmp_path, "iclora_train", *arguments, f"eval.against={missing}")
    assert (result.code, f"eval.against={missing} does not exist" in result.err) == (2, True)
    missing.write_text(json.dumps(scores_to_compare()))  # of other windows
    result = run(tmp_path, "iclora_train", *arguments, f"eval.against={missing}")
    assert (result.code, "cannot be compared with this run's evaluation: its windows" in result.err) == (2, True)
    assert not list(tmp_path.glob("runs/**/metrics.csv"))
    (tmp_path / "shards/pairs").rename(tmp_path / "moved")
    result = run(tmp_path, "iclora_train", *arguments)
    assert (result.code, "shards/pairs holds no finished shard set" in result.err) == (2, True)


def describe(world: World, **frames: int) -> None:
    """Write clip_hashes.json: three frames per clip, equal for clips of the same number."""
    hashes = {clip: np.random.default_rng(seed).integers(0, 2**63, (3, 4), np.uint64) for clip, seed in frames.items()}
    write_hashes(world.root / "shards", {clip: f"file of {clip}" for clip in frames}, hashes)


def test_a_video_under_two_names_is_one_recording(tmp_path: Path) -> None:
    """Two copies would count as two independent recordings, and the swapped reference would be the own one."""
    copies = world(tmp_path, "cat", "dog", "fox", "owl")
    describe(copies, cat=1, dog=2, fox=1, owl=3)
    joined = plan(copies, "eval.windows=8")
    assert joined.recordings == ["cat"] * 4 + ["dog"] * 2 + ["owl"] * 2
    assert "cat, fox show the same: they count as one recording" in joined.notes
    windows = HeldOut(joined.pairs, joined.latents, joined.samples, joined.recordings).windows
    assert all(windows[window.partner].source != window.source for window in windows)
    assert len(set(plan(copies, "eval.windows=8", "checks.duplicate.most=null").recordings)) == 4
    describe(copies, cat=1, dog=2, fox=4, owl=3)
    assert len(set(plan(copies, "eval.windows=8").recordings)) == 4


def test_joined_recordings_keep_their_names_for_leakage(tmp_path: Path) -> None:
    """`fox` is called `cat` in the statistics; a train clip of the recording `fox` still leaks."""
    sources = {"train": ["fox-1"], "heldout": ["cat", "fox-2"]}
    leaking = build(tmp_path, sources, lambda clip: clip.split("-")[0])
    describe(leaking, **{"cat": 1, "fox-2": 1})
    with pytest.raises(ConfigError, match="leakage: fox-2"):
        plan(leaking)


def test_recordings_are_joined_through_others_and_by_equal_files() -> None:
    def known(video: str, *frames: int) -> KnownClip:
        return KnownClip("", video, [f"{frame:064x}" for frame in frames])

    far = 2**64 - 1  # 64 bits from 0
    clips = {"a": known("1", 0), "b": known("2", 0, far), "c": known("3", far), "d": known("1"), "e": known("")}
    recording = {name: name for name in (*clips, "other")}
    joined = joined_by_content(clips, recording, 0.25, 32)
    assert joined == {"a": "a", "b": "a", "c": "a", "d": "a", "e": "e", "other": "other"}
    assert joined_by_content(clips, recording, None, 32) == {**recording, "d": "a"}

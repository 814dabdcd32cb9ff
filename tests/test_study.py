"""A study with people: blind pairs that do not say whose a clip is, and the preference that the answers give."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.study.__main__ import KEY, PAGE, RESULT
from eval.study.pairs import StudyPair, draw_pairs
from eval.study.preference import Answer, Answers, preference, sign_test
from iclora_train.core.scores import as_json
from iclora_train.media.shard_clip import decode_clip, encode_clip
from tests.clips import moving
from tests.command import Result, run
from tests.test_eval_compare import scores


def study(folder: Path, *arguments: str) -> Result:
    return run(folder, "eval.study", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of A, dark, and of B, bright; one more of A."""
    root = tmp_path_factory.mktemp("study")
    for name, shift in (("a", 0), ("b", 60)):
        (root / name).mkdir()
        for i in range(6):
            clip = moving(5, 32, 48, seed=i) // 2 + shift
            (root / name / f"clip{i}.mp4").write_bytes(encode_clip(clip.astype(np.uint8), 25.0, lossless=False))
    (root / "a" / "only.mp4").write_bytes((root / "a" / "clip0.mp4").read_bytes())
    return root


def page_clips(page: Path) -> dict[str, list[np.ndarray]]:
    """The clips of each pair on the page, left and right."""
    sections = re.findall(r'<section class="pair" id="(\w+)".*?</section>', page.read_text(), re.DOTALL)
    clips = {}
    for text in re.findall(r'<section class="pair".*?</section>', page.read_text(), re.DOTALL):
        identity = re.search(r'id="(\w+)"', text)
        assert identity is not None
        clips[identity[1]] = [decode_clip(base64.b64decode(data)) for data in re.findall(r"base64,([^\"]+)", text)]
    assert list(clips) == sections
    return clips


def test_the_page_holds_every_pair_on_the_side_that_only_the_key_tells(folder: Path) -> None:
    result = study(folder, "a", "b", "--out", "one", "--question", "Which <follows>?", "--seed", "3")
    assert result.code == 0, result.err
    assert "1 clips are in one folder only" in result.out
    page, key = folder / "one" / PAGE, json.loads((folder / "one" / KEY).read_text())
    text = page.read_text()
    assert "Which &lt;follows&gt;?" in text
    visible = re.sub(r"base64,[^\"]+|<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"clip\d|[^<]/[ab]\b|https?:", visible)
    clips = page_clips(page)
    assert [pair["id"] for pair in key["pairs"]] == list(clips)
    assert sorted(pair["name"] for pair in key["pairs"] if not pair["check"]) == [f"clip{i}" for i in range(6)]
    assert sum(pair["check"] for pair in key["pairs"]) == 2
    for pair in key["pairs"]:
        left, right = clips[pair["id"]]
        if pair["check"]:
            detail = [float(np.abs(np.diff(clip.astype(int), axis=2)).astype(bool).mean()) for clip in (left, right)]
            assert (detail[0] > detail[1]) == pair["b_is_left"]
        else:
            assert (left.mean() > right.mean() + 30) == pair["b_is_left"]


def answers(key: dict[str, Any], rater: str, prefers: str, attentive: bool = True) -> dict[str, Any]:
    """The file of a person who always prefers `a`, `b` or neither."""
    chosen = []
    for pair in key["pairs"]:
        is_left = pair["b_is_left"] == ((prefers == "b") if not pair["check"] else attentive)
        choice = "same" if prefers == "neither" and not pair["check"] else "left" if is_left else "right"
        chosen.append({"pair": pair["id"], "choice": choice, "seconds": 1.5})
    return {"study": key["study"], "rater": rater, "answers": chosen}


def test_answers_give_the_preference_without_people_who_fail_the_checks(folder: Path) -> None:
    assert study(folder, "a", "b", "--out", "two", "--checks", "4").code == 0
    key = json.loads((folder / "two" / KEY).read_text())
    people = {"ann": ("b", True), "bob": ("b", True), "cy": ("neither", True), "dan": ("a", False)}
    for name, (prefers, attentive) in people.items():
        (folder / f"{name}.json").write_text(json.dumps(answers(key, name, prefers, attentive)))
    result = study(folder, "--out", "two", "--answers", *(f"{name}.json" for name in people))
    assert result.code == 0, result.err
    assert "B is preferred in 83 %" in result.out.replace("83%", "83 %")
    assert "left out for failed attention checks, or without answers: dan" in result.out
    stored = json.loads((folder / "two" / RESULT).read_text())
    assert stored["mean"] == pytest.approx(5 / 6)
    assert stored["low"] < 5 / 6 < stored["high"]
    assert stored["p"] == pytest.approx(2 / 64)
    assert stored["metrics"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "give two folders"),
        (["a", "nowhere"], "does not exist"),
        (["a", "b", "--pairs", "0"], "--pairs=0 must be at least 1"),
        (["--out", "nowhere", "--answers", "x.json"], "study.key.json does not exist"),
    ],
)
def test_wrong_arguments_are_one_line(folder: Path, arguments: list[str], message: str) -> None:
    result = study(folder, *arguments)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err


def test_clips_of_other_sizes_and_answers_to_another_study_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "clip1.mp4").write_bytes(encode_clip(moving(5, 32, 64), 25.0, lossless=False))
    result = study(folder, "a", str(tmp_path / "c"), "--out", "three")
    assert result.code == 2
    assert "differ in width (48 and 64)" in result.err
    assert not (folder / "three" / PAGE).exists()
    assert study(folder, "a", "b", "--out", "four").code == 0
    assert "four/study.key.json exists" in study(folder, "a", "b", "--out", "four").err
    (folder / "other.json").write_text(json.dumps({"study": "x", "rater": "", "answers": []}))
    assert "another study" in study(folder, "--out", "four", "--answers", "other.json").err
    (folder / "other.json").write_text(json.dumps({"study": "x", "rater": "", "answers": [{"pair": "a"}]}))
    assert "other.json" in study(folder, "--out", "four", "--answers", "other.json").err


def test_the_interval_covers_the_preference_of_all_people_and_clips() -> None:
    """Random people and clips with effects of both: the 95 % interval covers the mean in at least 90 of 100 studies."""
    pairs = [StudyPair(str(i), f"clip{i}", False) for i in range(24)]
    covered = 0
    for number in range(100):
        rng = np.random.default_rng(number)
        of_people, of_clips = rng.normal(0, 0.1, 6), rng.normal(0, 0.15, len(pairs))
        people = [
            Answers(
                "s",
                str(person),
                [
                    Answer(pair.id, "right" if rng.random() < 0.6 + of_people[person] + of_clips[i] else "left")
                    for i, pair in enumerate(pairs)
                ],
            )
            for person in range(6)
        ]
        result = preference(pairs, people, number)
        assert result is not None
        assert result.low is not None
        assert result.high is not None
        covered += result.low <= 0.6 <= result.high
    assert covered >= 90


@pytest.mark.parametrize(("clips", "share"), [(5, 0.9), (8, 0.8), (8, 0.9), (12, 0.6)])
def test_the_interval_of_one_person_and_few_clips_covers_as_often_as_it_says(clips: int, share: float) -> None:
    """Percentiles of the bootstrap covered 44 % for five clips and a preference of 90 %."""
    pairs = [StudyPair(str(i), f"clip{i}", False) for i in range(clips)]
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        chosen = [Answer(pair.id, "right" if rng.random() < share else "left") for pair in pairs]
        result = preference(pairs, [Answers("s", "ann", chosen)])
        assert result is not None
        assert result.low is not None
        assert result.high is not None
        covered += result.low <= share <= result.high
    assert covered >= 90


def test_clips_of_one_recording_are_no_independent_answers() -> None:
    """Thirty clips of six recordings, of which people judge each as a whole: the interval and p are those of six."""
    pairs = [StudyPair(str(i), f"clip{i}", False) for i in range(30)]
    recordings = {f"clip{i}": f"recording{i // 5}" for i in range(30)}
    chosen = [Answer(pair.id, "left" if i // 5 == 0 else "right") for i, pair in enumerate(pairs)]
    alone, together = (preference(pairs, [Answers("s", "ann", chosen)], 0, of) for of in (None, recordings))
    assert alone is not None
    assert together is not None
    assert (alone.mean, alone.recordings) == (together.mean, 30) == (pytest.approx(5 / 6), 30)
    assert together.recordings == 6
    assert together.p == pytest.approx(14 / 64)
    assert alone.p < 0.001
    assert together.low is not None
    assert alone.low is not None
    assert together.low < 0.5 < alone.low
    few = preference(pairs[:20], [Answers("s", "ann", chosen[:20])], 0, recordings)
    assert few is not None
    assert (few.recordings, few.low) == (4, None)


def test_only_checks_answered_is_no_preference() -> None:
    pairs = [StudyPair("a", "clip0", True), StudyPair("b", "clip0", True, check=True)]
    assert preference(pairs, [Answers("s", "ann", [Answer("b", "left")])]) is None


def test_evaluations_say_which_clips_are_of_one_recording_and_what_the_metric_prefers(tmp_path: Path) -> None:
    """B has the higher PSNR in the windows of the last recordings, and people choose B there, but for the first."""
    for name, sign in (("a", 1.0), ("b", -1.0)):
        evaluation = scores()
        row = evaluation["windows"]["adapter+reference"]
        row["psnr"] = [value - sign * (0 if i == 9 else 1) for i, value in enumerate(row["psnr"])]
        outputs = tmp_path / name / "outputs"
        outputs.mkdir(parents=True)
        (tmp_path / name / "scores.json").write_bytes(as_json(evaluation))
        for i, clip in enumerate(evaluation["clips"]):
            data = encode_clip(moving(5, 32, 48, seed=i), 25.0, lossless=False)
            (outputs / f"{clip['key']}.0.mp4").write_bytes(data)
            (tmp_path / f"{clip['key']}.reference0.mp4").write_bytes(data)
    result = study(tmp_path, "a", "b", "--out", "s", "--references", ".")
    assert result.code == 0, result.err
    key = json.loads((tmp_path / "s" / KEY).read_text())
    assert key["recordings"]["w4.0"] == "s1"
    assert (tmp_path / "s" / PAGE).read_text().count('<figure class="reference">') == len(key["pairs"])
    (tmp_path / "ann.json").write_text(json.dumps(answers(key, "ann", "b")))
    result = study(tmp_path, "--out", "s", "--answers", "ann.json")
    assert result.code == 0, result.err
    assert "100% (too few recordings for an interval; p 0.12) of 10 clips of 4 recordings" in result.out
    assert "in 100% of 9 clips" in result.out  # one window has the same PSNR in both
    assert json.loads((tmp_path / "s" / RESULT).read_text())["metrics"]["p"] == pytest.approx(0.25)


def test_references_without_a_match_are_an_error(folder: Path) -> None:
    result = study(folder, "a", "b", "--out", "unmatched", "--references", "a", "--pairs", "2", "--seed", "1")
    assert result.code == 0, result.err
    (folder / "others").mkdir()
    (folder / "others" / "unrelated.mp4").write_bytes((folder / "a" / "clip0.mp4").read_bytes())
    result = study(folder, "a", "b", "--out", "unmatched2", "--references", "others")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "no file is named as a clip of the study (clip0)" in result.err
    (folder / "others" / "clip2.mp4").write_bytes((folder / "a" / "clip2.mp4").read_bytes())
    result = study(folder, "a", "b", "--out", "unmatched3", "--references", "others")
    assert "5 clips have no reference" in result.out


def test_answers_to_one_study_are_not_read_for_another_with_the_same_file_names(folder: Path) -> None:
    """The same names and seed give the same order and sides, so the clips are part of the study's id."""
    assert study(folder, "a", "b", "--out", "first").code == 0
    assert study(folder, "b", "a", "--out", "second").code == 0
    assert study(folder, "a", "b", "--out", "third", "--question", "Which is sharper?").code == 0
    keys = [json.loads((folder / name / KEY).read_text()) for name in ("first", "second", "third")]
    assert len({key["study"] for key in keys}) == 3
    (folder / "eve.json").write_text(json.dumps(answers(keys[0], "eve", "b")))
    assert "another study" in study(folder, "--out", "second", "--answers", "eve.json").err
    (folder / "copy.json").write_bytes((folder / "eve.json").read_bytes())
    twice = study(folder, "--out", "first", "--answers", "eve.json", "copy.json")
    assert (twice.code, twice.err.count("\n")) == (2, 1)
    assert "copy.json has the same answers as eve.json" in twice.err


def test_there_are_as_many_checks_as_the_chosen_clips_need(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(40):
            (tmp_path / name / f"{i}.mp4").write_bytes(encode_clip(moving(2, 32, 32, i), 25.0, lossless=False))
    result = study(tmp_path, "a", "b", "--pairs", "4")
    assert "6 pairs, 2 of them attention checks" in result.out


def test_sides_and_order_are_random_and_repeatable() -> None:
    names = [f"clip{i}" for i in range(200)]
    pairs = draw_pairs(names, None, 10, seed=1)
    assert draw_pairs(names, None, 10, seed=1) == pairs
    assert draw_pairs(names, None, 10, seed=2) != pairs
    assert 70 < sum(pair.b_is_left for pair in pairs if not pair.check) < 130
    assert [pair.name for pair in pairs if not pair.check] != names
    assert len({pair.id for pair in pairs}) == 210
    assert sum(pair.check for pair in pairs) == 10
    assert len([pair for pair in draw_pairs(names, 20, 2, seed=1) if not pair.check]) == 20


def test_the_sign_test_is_exact() -> None:
    assert sign_test(np.array([1, 1, 1, 1, 1, 0.5])) == pytest.approx(2 / 32)
    assert sign_test(np.array([1, 0])) == 1
    assert sign_test(np.array([0.5])) == 1

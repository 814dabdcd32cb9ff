"""Which answers of a captioner count as captions, by task family."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.captions.answers import Answer, AnswerCheck, clean
from data_prep.captions.instructions import INSTRUCTIONS, forbidden_phrases, instruction_for
from data_prep.captions.questions import read_question
from data_prep.checks.captions import find_phrases
from data_prep.clips.clip_list import Clip
from iclora_train.config import Captioner, Config, ConfigError, Data, Model, Task
from tests.clips import write_clip

GOOD = "A brown dog runs along a beach at dusk while the camera follows it."


def config(family: str = "restoration", **captioner: object) -> Config:
    task = Task(name="t", family=family, maker="none" if family == "style" else "given")
    data, model = Data(clips="x", root="y"), Model(name="m", checkpoint="c")
    return Config(task=task, data=data, model=model, captioner=Captioner(**captioner))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        ("Two women in red coats cross a wet street. Behind them, a tram stops, and people get off.", None),
        ("A very, very old man laughs. A boy watches him and laughs, too.", None),
        ("A picture hangs over the sofa. A cat sleeps under it.", None),
        ("The frame of the door is painted green, and a child leans on it.", None),
        ("", "empty"),
        ("A dog.", "2 words"),
        ("I'm sorry, but I can't help with describing people.", "refused"),
        ("I cannot see any frames in this message.", "refused"),
        ("As an AI language model, I describe what is visible here.", "refused"),
        ("Here is a caption: a dog runs along a beach.", "introduction"),
        ("Sure! A dog runs along a beach at dusk.", "introduction"),
        ("Caption: A dog runs along a beach at dusk.", "introduction"),
        ("**Description** A dog runs along a beach at dusk.", "introduction"),
        ("The video shows a dog that runs along a beach.", "introduction"),
        ("In this short clip, we see a dog on a beach.", "introduction"),
        ("A dog runs and runs and runs and runs and runs along a beach.", "repeats itself"),
        ("A dog runs along a beach. The sea is calm. A dog runs along a beach.", "repeats itself"),
        ("一只棕色的狗在黄昏时分沿着海滩奔跑 a dog in the sand at dusk", "Latin"),
        ("A blurred dog runs along a beach at dusk.", "mentions blurred"),
        ("A dog runs along a beach, with film grain and compression artifacts.", "mentions film grain"),
    ],
)
def test_a_wrong_answer_has_a_reason(text, reason):
    problem = AnswerCheck(config()).problem(Answer(text))
    assert problem == reason if reason is None else reason in str(problem)


@pytest.mark.parametrize(
    ("family", "text", "reason"),
    [
        ("structure", "A depth map of a dog that runs along a beach.", "mentions depth map"),
        ("structure", "White edges on a black background show a running dog.", "mentions white edges"),
        ("structure", "A blurred dog runs along a beach at dusk.", None),
        ("colorize", "A grayscale dog runs along a beach at dusk.", "mentions grayscale"),
        ("restoration", "A skeleton of a whale hangs in a museum.", None),
        ("edit", "The man, now without a beard, smiles in the blurred garden.", None),
    ],
)
def test_the_defect_or_the_signal_must_not_be_mentioned(family, text, reason):
    problem = AnswerCheck(config(family)).problem(Answer(text))
    assert problem == reason if reason is None else reason in str(problem)


def test_an_answer_cut_in_mid_sentence_is_wrong():
    check = AnswerCheck(config(max_tokens=12))
    assert "captioner.max_tokens=12" in str(check.problem(Answer("A brown dog runs along the", is_cut=True)))
    assert check.problem(Answer(GOOD, is_cut=True)) is None
    assert "max_tokens" in str(check.problem(Answer(clean("<think>The user asks for a dog"), is_cut=True)))


def test_the_same_caption_of_many_clips_is_wrong():
    check = AnswerCheck(config(most_equal=2))
    for _ in range(2):
        assert check.problem(Answer(GOOD)) is None
        check.count(GOOD)
    assert check.problem(Answer(GOOD.upper())) == "the same as of 2 other clips"


def test_the_form_of_pairs_is_required_where_it_is_asked_for():
    check = AnswerCheck(config("edit", form="edit"))
    assert check.problem(Answer("Reference shows a man with a beard. Edited shows the man without it.")) is None
    for text in (GOOD, "Reference shows a man with a beard.", "Reference shows . Edited shows ."):
        assert "Edited shows" in str(check.problem(Answer(text)))


def test_thoughts_and_quotes_are_not_part_of_a_caption():
    assert clean(f"<think>\nWhat is it?\n</think>\n\n{GOOD}\n") == GOOD
    assert clean(f'"{GOOD}"') == GOOD
    assert clean("“Go!” says a sign.\n A dog\n runs.") == "“Go!” says a sign. A dog runs."


@pytest.mark.parametrize("family", INSTRUCTIONS)
def test_every_family_has_an_instruction_that_asks_for_what_the_checks_accept(family):
    for form in ("plain", "edit"):
        for has_reference in (False, True):
            text = instruction_for(config(family, form=form), has_reference)
            assert "in English" in text
    assert instruction_for(config(family, instruction="Name the dog."), True) == "Name the dog."
    assert forbidden_phrases(config(family, phrases=["dog"])) == ("dog",)
    assert find_phrases(GOOD, forbidden_phrases(config(family))) == []


def test_a_question_has_frames_from_the_first_to_the_last_with_their_times(tmp_path):
    clip = Clip("a", write_clip(tmp_path / "a.mp4", 25, 96, 160, fps=10.0), "train")
    question = read_question(clip, config(frames=4, side=80), 0)
    times, frames = question.parts[:-1:2], question.parts[1:-1:2]
    assert times == ("<0.0 seconds>", "<0.8 seconds>", "<1.6 seconds>", "<2.4 seconds>")
    assert [frame.shape for frame in frames if isinstance(frame, np.ndarray)] == [(48, 80, 3)] * 4
    one = read_question(clip, config(frames=1), 0).parts
    assert len(one) == 2, "one frame has no time"


def test_a_reference_is_shown_before_the_clip_where_the_task_is_an_edit(tmp_path):
    before, after = (write_clip(tmp_path / f"{name}.mp4", 9, seed=i) for i, name in enumerate("ba"))
    clip = Clip("a", after, "train", reference=before)
    edit, restoration = (read_question(clip, config(family, frames=3), 0).parts for family in ("edit", "restoration"))
    assert len(edit) == 2 * len(restoration) + 1
    assert np.array_equal(edit[-2], restoration[-2])
    assert not np.array_equal(edit[2], restoration[1])
    assert "before an edit" in str(edit[0])


def test_a_key_in_the_address_is_refused_without_printing_it():
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as refused:
        Captioner(endpoint="http://user:secret@host/v1")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("frames", 0), ("side", 8), ("timeout", 0), ("form", "list"), ("temperature", 0), ("attempts", 0)),
        *(("endpoint", "host:8000/v1"), ("instruction", ""), ("script", "greek")),
    ],
)
def test_a_setting_out_of_bounds_is_named(key, value):
    with pytest.raises(ConfigError, match=rf"captioner\.{key}"):
        Captioner(**{key: value})

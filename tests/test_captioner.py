"""A local captioner describes clips over their whole length, in batches; finished captions are kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep.captions import stored
from data_prep.captions.local_model import LocalModel, first_identity
from data_prep.captions.questions import Question
from data_prep.captions.stored import add_missing_captions
from data_prep.clips.clip_list import list_clips
from iclora_train.config import Captioner, ConfigError
from scripts.synthetic.video_language import use_official_names, write_gemma3_for_pictures, write_qwen
from tests.clips import moving
from tests.command import run, start
from tests.damage import drop_tensors
from tests.prep import config_of
from tests.tiny_captioner import FRAMES, clip_frames, question, write_coloured, write_taught_captioner

ANSWERS = {
    ("red",): "A red ball rolls over the wet floor.",
    ("blue",): "A blue box slides over the dry grass.",
    ("red", "blue"): "A red ball rolls first and then a blue box.",
    ("blue", "red"): "A blue box slides first and then a red ball.",
    ("green",): "A blurred green ball rolls over the dry grass.",
    ("grey",): "Here is a caption. A ball rolls over the wet floor.",
}
PLAIN = [colours for colours in ANSWERS if colours not in (("green",), ("grey",))]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL that gives ANSWERS to clips of these colours."""
    return write_taught_captioner(tmp_path_factory.mktemp("qwen"), ANSWERS)


def write_all(folder: Path) -> dict[str, str]:
    """Write one clip of each kind. Returns the answers by the name of the clip."""
    for colours in ANSWERS:
        write_coloured(folder / f"{'-'.join(colours)}.mp4", *colours)
    return {"-".join(colours): answer for colours, answer in ANSWERS.items()}


def caption_command(folder: Path, model: Path, *more: str) -> tuple[str, ...]:
    settings = (f"captioner.model={model}", f"captioner.frames={FRAMES}", "captioner.batch_size=4", "data.root=root")
    return ("data_prep", "caption", "conf=deblur", f"data.clips={folder}", *settings, *more)


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text().strip() for path in folder.glob("*.txt")}


def test_frames_reach_the_model_in_their_order_and_a_batch_changes_nothing(taught):
    questions = [question(clip_frames(colours, seed=99)) for colours in ANSWERS]
    single = list(LocalModel.open(taught, Captioner(batch_size=1)).answers(questions))
    assert [answer.text for answer in single] == list(ANSWERS.values())
    short = [Question(q.parts[:2] + q.parts[-1:], 0, 0) for q in questions]  # of another length, so it is padded
    mixed = [q for pair in zip(questions, short, strict=True) for q in pair]
    assert list(LocalModel.open(taught, Captioner(batch_size=5)).answers(mixed))[::2] == single


def test_pictures_with_times_are_the_input_of_qwens_video_of_doubled_frames(taught):
    local = LocalModel.open(taught, Captioner())
    inputs = local.inputs([question(moving(8, 64, 64))])
    ids = inputs["input_ids"].clone()
    config = local.model.config
    ids[ids == config.image_token_id] = config.video_token_id
    kinds = inputs["mm_token_type_ids"] * 2  # 1 is a picture, 2 a video
    grid = inputs["image_grid_thw"]
    video = {
        "pixel_values_videos": inputs["pixel_values"],
        "video_grid_thw": grid[:1] * torch.tensor([len(grid), 1, 1]),
    }
    with torch.inference_mode():
        as_pictures = local.model(**inputs).logits
        mask = inputs["attention_mask"]
        as_video = local.model(input_ids=ids, attention_mask=mask, mm_token_type_ids=kinds, **video).logits
        early = local.model(input_ids=ids[:, 1:], attention_mask=mask[:, 1:], mm_token_type_ids=kinds[:, 1:], **video)
    torch.testing.assert_close(as_pictures, as_video)
    assert not torch.allclose(early.logits[:, -1], as_video[:, -1]), "the comparison notices a missing token"


def test_an_answer_that_does_not_end_is_cut(taught):
    (answer,) = LocalModel.open(taught, Captioner(max_tokens=3)).answers([question(clip_frames(("red",)))])
    assert (answer.text, answer.is_cut) == ("A red ball", True)


def test_a_batch_that_the_gpu_cannot_hold_is_halved(taught, monkeypatch):
    local = LocalModel.open(taught, Captioner(batch_size=6))
    whole, held, tried = local.model.generate, 2, []

    def generate(**inputs: Any) -> torch.Tensor:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > held:
            raise torch.OutOfMemoryError
        return whole(**inputs)

    monkeypatch.setattr(local.model, "generate", generate)
    questions = [question(clip_frames(colours, seed=99)) for colours in ANSWERS]
    assert [answer.text for answer in local.answers(questions)] == list(ANSWERS.values())
    assert tried == [6, 3, 1, 2, 3, 1, 2]
    held = 0
    with pytest.raises(ConfigError, match=r"12 frames of a clip: set captioner\.frames or captioner\.side lower"):
        list(local.answers(questions))


def test_a_later_attempt_draws_words_by_its_seed(taught):
    local = LocalModel.open(taught, Captioner(temperature=2.0, max_tokens=12))
    asked = question(np.zeros((8, 64, 64, 3), np.uint8))
    drawn = {seed: [a.text for a in local.answers([replace(asked, attempt=1, seed=seed)] * 2)] for seed in (1, 2, 3)}
    assert drawn[1] == [a.text for a in local.answers([replace(asked, attempt=1, seed=1)] * 2)]
    assert len({text for pair in drawn.values() for text in pair}) > 1


def test_the_command_writes_captions_and_reports_clips_without(taught, tmp_path):
    answers = write_all(tmp_path / "clips")
    (tmp_path / "clips/broken.mp4").write_text("no video")
    (tmp_path / "clips/blue.txt").write_text("a box that somebody described")
    result = run(tmp_path, *caption_command(tmp_path / "clips", taught))
    assert result.code == 1, result.err
    assert "6 of 7 clips will be captioned; the text files go next to the videos" in result.out
    good = {"-".join(colours): answers["-".join(colours)] for colours in PLAIN}
    assert texts(tmp_path / "clips") == good | {"blue": "a box that somebody described"}
    report = json.loads((tmp_path / "root/captions.json").read_text())
    assert (report["written"], report["kept"]) == (3, 1)
    reasons = {Path(row["path"]).stem: row["reason"] for row in report["without_caption"]}
    assert reasons.keys() == {"green", "grey", "broken"}
    assert "mentions blurred" in reasons["green"]
    assert "introduction" in reasons["grey"]
    assert "asking again (3 of 3)" in result.err
    assert "3 clips are left without a caption" in result.out
    # another task accepts the word; the same command asks only about clips without caption
    again = run(tmp_path, *caption_command(tmp_path / "clips", taught, "conf=canny"))
    assert "3 of 7 clips" in again.out
    assert texts(tmp_path / "clips").keys() == {*good, "blue", "green"}
    listed = {clip.path.stem: clip.caption for clip in list_clips(str(tmp_path / "clips"), 0.1)}
    assert listed["green"] == answers["green"]


def test_captions_in_a_folder_are_used_by_the_preparation(taught, tmp_path):
    answers = write_all(tmp_path / "clips")
    (tmp_path / "clips/red.txt").write_text("a ball that somebody described")
    out = f"captioner.out={tmp_path / 'texts'}"
    result = run(tmp_path, *caption_command(tmp_path / "clips", taught, out, "captioner.overwrite=true"))
    assert result.code == 1
    assert texts(tmp_path / "clips") == {"red": "a ball that somebody described"}
    clips = list_clips(str(tmp_path / "clips"), 0.1)
    settings = config_of(tmp_path / "root", tmp_path / "clips", Path("tiny"), out)
    captions = {clip.path.stem: clip.caption for clip in add_missing_captions(clips, settings)}
    assert captions == {name: "" if name in ("green", "grey") else text for name, text in answers.items()}


def test_sections_of_a_video_need_files_of_their_own(taught, tmp_path):
    write_coloured(tmp_path / "a.mp4", "red", "blue")
    rows = ["id,video,start_frame,end_frame", "first,a.mp4,0,4", "second,a.mp4,4,8"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    refused = run(tmp_path, *caption_command(tmp_path / "list.csv", taught))
    assert refused.code == 2
    assert "first, second would get one text file" in refused.err
    assert run(tmp_path, *caption_command(tmp_path / "list.csv", taught, "captioner.out=texts")).code == 0
    assert texts(tmp_path / "texts") == {"first": ANSWERS[("red",)], "second": ANSWERS[("blue",)]}


def test_a_killed_command_continues_where_it_was(taught, tmp_path):
    expected = {}
    for i in range(12):
        colours = PLAIN[i % len(PLAIN)]
        write_coloured(tmp_path / f"clips/{i:02}.mp4", *colours, seed=i)
        expected[f"{i:02}"] = ANSWERS[colours]
    command = caption_command(tmp_path / "clips", taught, "captioner.batch_size=1")
    process = start(tmp_path, *command)
    while not texts(tmp_path / "clips") and process.is_alive():
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").glob("*.txt")}
    assert 0 < len(written) < len(expected)
    result = run(tmp_path, *command)
    assert result.code == 0, result.err
    assert f"{len(expected) - len(written)} of 12 clips" in result.out
    assert texts(tmp_path / "clips") == expected
    assert all(path.stat().st_mtime_ns == changed for path, changed in written.items())


def test_the_preparation_describes_clips_without_a_caption_once(taught, tmp_path, monkeypatch):
    answers = write_all(tmp_path / "clips")
    (tmp_path / "clips/broken.mp4").write_text("no video")
    (tmp_path / "clips/red.txt").write_text("a ball that somebody described")
    clips = list_clips(str(tmp_path / "clips"), 0.1)
    more = (f"data.captioner={taught}", f"captioner.frames={FRAMES}")
    settings = config_of(tmp_path / "out", tmp_path / "clips", Path("tiny"), *more)
    captions = {clip.path.stem: clip.caption for clip in add_missing_captions(clips, settings)}
    none = dict.fromkeys(("green", "grey", "broken"), "")
    assert captions == answers | none | {"red": "a ball that somebody described"}
    (file,) = tmp_path.glob("out/captions-*/blue-????????-*.txt")
    file.write_text("a corrected caption\n")
    monkeypatch.setattr(
        stored, "open_captioning_model", None
    )  # calling it would fail: clips without a good answer stay without
    again = {clip.path.stem: clip.caption for clip in add_missing_captions(clips, settings)}
    assert again == captions | {"blue": "a corrected caption"}


def test_captions_of_version_0_1_stay_valid(taught, tmp_path, monkeypatch):
    write_coloured(tmp_path / "clips/red.mp4", "red")
    clips = list_clips(str(tmp_path / "clips"), 0.1)
    settings = config_of(tmp_path / "out", tmp_path / "clips", Path("tiny"), f"data.captioner={taught}")
    add_missing_captions(clips, settings)
    (file,) = tmp_path.glob("out/captions-*/red-*.txt")
    folder = tmp_path / f"out/captions-{first_identity(taught)[:8]}"
    folder.mkdir()
    file.rename(folder / file.name).write_text("one sentence about the middle frame")
    monkeypatch.setattr(stored, "open_captioning_model", None)  # calling it would fail
    assert [clip.caption for clip in add_missing_captions(clips, settings)] == ["one sentence about the middle frame"]


@pytest.mark.parametrize("nested", [False, True])
def test_folders_as_they_are_published_open_without_torchvision(taught, tmp_path, nested):
    folder = tmp_path / "model"
    shutil.copytree(taught, folder)
    use_official_names(folder, nested)
    (answer,) = LocalModel.open(folder, Captioner()).answers([question(clip_frames(("red",)))])
    assert answer.text == ANSWERS[("red",)]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_5", "gemma3", "llava"])
def test_other_models_read_the_frames_in_batches(tmp_path, kind):
    words = ["a", "dog", "cat", "runs"]
    if kind == "llava":
        write_llava(tmp_path, words)
    elif kind == "gemma3":
        write_gemma3_for_pictures(tmp_path)
    else:
        write_qwen(tmp_path, words, kind)
    local = LocalModel.open(tmp_path, Captioner(max_tokens=4, batch_size=2))
    clips = [moving(8, 48, 64, seed) for seed in range(3)]
    assert len(list(local.answers([question(frames) for frames in clips]))) == 3
    with torch.inference_mode():
        logits = [local.model(**local.inputs([question(frames)])).logits[0, -1] for frames in (*clips, clips[0][::-1])]
    assert all(not torch.equal(logits[0], other) for other in logits[1:]), "the frames and their order count"


def write_llava(folder: Path, words: list[str]) -> None:
    """A tiny LLaVA, a model for single pictures, with random weights."""
    known = ["<unk>", "<pad>", "<s>", "</s>", "<image>", *words]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, additional_special_tokens=["<image>"], **special
    )
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=16, **small)
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    text = transformers.LlamaConfig(vocab_size=len(known), num_key_value_heads=2, **small, **ids)
    layers = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default"}
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, **layers)
    ).save_pretrained(folder)
    chat = (
        "{% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }} {% endfor %}"
    )
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=chat + "{% endfor %}",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


@pytest.mark.parametrize("config_json", [None, '{"model_type": "llama"}', "{}"])
def test_a_folder_without_a_captioner_is_refused(config_json, tmp_path):
    if config_json is not None:
        (tmp_path / "config.json").write_text(config_json)
    with pytest.raises(ConfigError, match=r"captioner\.model=.*give a folder with config\.json, tokenizer"):
        LocalModel.open(tmp_path, Captioner())


def test_a_captioner_without_some_of_its_tensors_is_refused(taught, tmp_path):
    partial = drop_tensors(taught, tmp_path / "partial", "layers.0.self_attn.q_proj")
    with pytest.raises(ConfigError, match=r"captioner\.model=.*partial lacks tensors of a qwen3_vl .*q_proj"):
        LocalModel.open(partial, Captioner())
    os.truncate(partial / "model.safetensors", 2000)
    with pytest.raises(ConfigError, match=r"captioner\.model=.*partial is not a vision-language model"):
        LocalModel.open(partial, Captioner())


def test_the_command_without_a_captioner_says_how_to_give_one(tmp_path):
    write_coloured(tmp_path / "clips/red.mp4", "red")
    result = run(tmp_path, "data_prep", "caption", "conf=deblur", f"data.clips={tmp_path / 'clips'}")
    assert result.code == 2
    assert "captioner.model=<folder" in result.err
    assert "captioner.endpoint=" in result.err

"""The captioner describes clips without a caption once; a caption that the user corrects is kept."""

from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep.clips import captioner
from data_prep.clips.captions import add_missing_captions
from data_prep.clips.clip_list import list_clips
from iclora_train.config import ConfigError
from tests.clips import write_clip
from tests.prep import config_of


def write_captioner(folder: Path) -> Path:
    """A tiny LLaVA with random weights and ten words."""
    words = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "a", "dog", "cat", "runs", "sleeps"]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, additional_special_tokens=["<image>"], **special
    )
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=16, **small)
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    text = transformers.LlamaConfig(vocab_size=len(words), num_key_value_heads=2, **small, **ids)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=4,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        )
    )
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
    model.save_pretrained(folder)
    return folder


def test_clips_without_a_caption_are_described_once(tmp_path, monkeypatch):
    monkeypatch.setattr(captioner, "MAX_TOKENS", 4)
    folder = write_captioner(tmp_path / "model")
    for i in range(3):
        write_clip(tmp_path / f"clips/{i}.mp4", 5, seed=i)
    (tmp_path / "clips/0.txt").write_text("a dog that somebody described")
    (tmp_path / "clips/broken.mp4").write_text("no video")
    clips = list_clips(str(tmp_path / "clips"), 0.1)
    settings = config_of(tmp_path / "out", tmp_path / "clips", Path("tiny"), f"data.captioner={folder}")
    captions = {clip.path.stem: clip.caption for clip in add_missing_captions(clips, settings)}
    assert captions["0"] == "a dog that somebody described"
    assert all(set(captions[name].split()) <= {"a", "dog", "cat", "runs", "sleeps"} for name in "12")
    assert all(len(captions[name].split()) == 4 for name in "12")
    assert captions["broken"] == ""
    (file,) = tmp_path.glob("out/captions-*/1-*.txt")
    file.write_text("a corrected caption\n")
    monkeypatch.setattr(captioner.Captioner, "describe", None)  # calling it would fail
    again = {clip.path.stem: clip.caption for clip in add_missing_captions(clips, settings)}
    assert again == {**captions, "1": "a corrected caption"}


@pytest.mark.parametrize("config_json", [None, '{"model_type": "llama"}', "{}"])
def test_a_folder_without_a_captioner_is_refused(config_json, tmp_path):
    if config_json is not None:
        (tmp_path / "config.json").write_text(config_json)
    with pytest.raises(ConfigError, match=r"data\.captioner=.*give a folder with config\.json, tokenizer"):
        captioner.Captioner.open(tmp_path)

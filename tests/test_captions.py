"""Captions: position of the trigger, and text features that are computed once per text encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iclora_train.config import ConfigError
from iclora_train.data.prompts import with_trigger
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text.gemma import GemmaTextEncoder
from iclora_train.ltx2.text_features import TextFeatures
from scripts.synthetic.gemma import gemma_for
from scripts.synthetic_checkpoint import write_checkpoint
from tests.tiny import write_tiny_base


@pytest.mark.parametrize(
    ("trigger", "caption", "prompt"),
    [
        ("DEBLUR", "a dog", "DEBLUR a dog"),
        ("DEBLUR", "DEBLUR a dog", "DEBLUR a dog"),
        ("DEBLUR", "DEBLUR, a dog", "DEBLUR, a dog"),
        ("DEBLUR", "DEBLURRED dogs", "DEBLUR DEBLURRED dogs"),
        ("DEBLUR", "a dog DEBLUR", "DEBLUR a dog DEBLUR"),
        ("DEBLUR", "", "DEBLUR"),
        ("", "a dog", "a dog"),
        ("", "", ""),
        ("(v1)", "(v1) a dog", "(v1) a dog"),
    ],
)
def test_the_trigger_comes_first_and_once(trigger: str, caption: str, prompt: str) -> None:
    assert with_trigger(trigger, caption) == prompt


def test_features_of_the_audio_stream_are_cached_beside_those_of_the_video(tmp_path: Path) -> None:
    file, gemma = write_checkpoint(tmp_path / "base", "2.3"), gemma_for("2.3", tmp_path / "gemma")
    base = BaseModel.open(str(file), text_encoder=str(gemma))
    silent, both = TextFeatures(tmp_path / "cache", base), TextFeatures(tmp_path / "cache", base, audio=True)
    silent.encode_missing(["a dog"])
    assert len(list(tmp_path.glob("cache/*/*.safetensors"))) == 1
    both.encode_missing(["a dog"])
    assert len(list(tmp_path.glob("cache/*/*.safetensors"))) == 2
    text = base.text(device="cpu", audio=True)
    assert isinstance(text, GemmaTextEncoder)
    video, audio = text.encode_both(["a dog"])
    assert torch.equal(both.read("a dog"), video[0].half().float())
    assert torch.equal(both.read_audio("a dog"), audio[0].half().float())
    nano = TextFeatures(tmp_path / "cache", BaseModel.open("nano"), audio=True)
    with pytest.raises(ConfigError, match="nano holds the video stream alone"):
        nano.encode_missing(["a dog"])


def test_a_caption_is_encoded_once_per_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bases = [BaseModel.open(str(write_tiny_base(tmp_path / f"base{seed}", seed))) for seed in (0, 1)]
    first, second = (TextFeatures(tmp_path / "cache", base) for base in bases)
    first.encode_missing(["a dog", "a cat", "a dog"])
    second.encode_missing(["a dog"])
    expected = bases[0].text().encode(["a dog"])[0]
    assert torch.equal(first.read("a dog"), expected.half().float())
    assert not torch.equal(first.read("a dog"), second.read("a dog"))
    assert len(list(tmp_path.glob("cache/*/*.safetensors"))) == 3
    monkeypatch.setattr(BaseModel, "text", None)  # a call would fail
    reopened = TextFeatures(tmp_path / "cache", bases[0])
    reopened.encode_missing(["a dog", "a cat"])
    assert torch.equal(reopened.read("a dog"), first.read("a dog"))

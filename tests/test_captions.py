"""Captions: position of the trigger, and text features that are computed once per text encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iclora_train.data.prompts import with_trigger
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text_features import TextFeatures
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

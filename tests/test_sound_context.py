"""The audio reference and the given video in the metadata: findings, cards, combinations, official files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iclora_train.adapters import card
from iclora_train.adapters.algebra import combined_metadata
from iclora_train.adapters.file import Adapter, inspect, save
from iclora_train.adapters.official import completed, recognise
from iclora_train.adapters.sound_context import audio_placement, sound_limits, sound_not_given, video_given
from iclora_train.config import ConfigError

OWN = {"base_model_family": "ltx", "base_model_version": "2.3", "size": "960x544x121", "task": "dub"}
IN_CONTEXT = OWN | {"reference_downscale_factor": "1"}
WEIGHTS = {"transformer_blocks.0.audio_attn1.to_q": (torch.ones(2, 2048), torch.ones(2048, 2))}


def adapter(**metadata: str) -> Adapter:
    return Adapter(WEIGHTS, IN_CONTEXT | metadata)


@pytest.mark.parametrize(
    ("metadata", "finding"),
    [
        ({"audio_reference": "before"}, "metadata audio_reference='before' is not one of av2av, dubit"),
        ({"video_given": "yes"}, "metadata video_given='yes' is not one of true"),
    ],
)
def test_check_names_values_that_nothing_reads(metadata: dict[str, str], finding: str, tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", adapter(audio_reference="av2av"))
    assert inspect(tmp_path / "a.safetensors")[1] == []
    save_unchecked = Adapter(WEIGHTS, IN_CONTEXT | metadata)
    with pytest.raises(ConfigError, match=finding):
        save(tmp_path / "b.safetensors", save_unchecked)
    assert audio_placement(metadata) is None
    assert not video_given(metadata)


def test_the_card_says_what_the_adapter_takes_and_which_programs_can_give_it() -> None:
    dubit = card.card_text("dub.safetensors", adapter(audio_reference="dubit"))
    assert "| audio reference | a sound before the output's sound, at negative times (dubit) |" in dubit
    assert "python -m ltx_pipelines.dubit" in dubit
    assert "LTXVSetAudioRefTokens" in dubit
    aligned = card.card_text("a.safetensors", adapter(audio_reference="av2av"))
    assert "ltx-pipelines and ComfyUI cannot give the audio reference" in aligned
    assert "ltx_pipelines.dubit" not in aligned
    foley = Adapter(WEIGHTS, OWN | {"adapter_kind": "lora", "video_given": "true", "reference_downscale_factor": "1"})
    assert "| given video | all of it: the adapter makes its sound |" in card.card_text("f.safetensors", foley)
    plain = card.card_text("p.safetensors", adapter())
    assert "audio reference" not in plain
    assert "given video" not in plain
    assert list(sound_limits({})) == []


def test_generate_is_told_what_is_missing() -> None:
    assert "audio_reference=FILE" in sound_not_given({"audio_reference": "dubit"}, {"source"})[0]
    assert sound_not_given({"audio_reference": "dubit"}, {"audio_reference"}) == []
    assert "source=CLIP" in sound_not_given({"video_given": "true"}, set())[0]
    assert sound_not_given({"video_given": "true"}, {"source"}) == []


def test_adapters_that_are_combined_agree_on_the_audio_reference() -> None:
    """One without it takes what the other is given; two placements do not go together."""
    plain = Adapter(WEIGHTS, OWN | {"adapter_kind": "lora"})
    assert combined_metadata([(adapter(audio_reference="dubit"), 1.0), (plain, 1.0)])["audio_reference"] == "dubit"
    assert combined_metadata([(adapter(audio_reference="dubit"), 1.0), (adapter(), 1.0)])["audio_reference"] == "dubit"
    with pytest.raises(ConfigError, match="audio_reference"):
        combined_metadata([(adapter(audio_reference="dubit"), 1.0), (adapter(audio_reference="av2av"), 1.0)])


def test_the_official_dubbing_adapter_is_known_to_place_it_before_the_sound() -> None:
    match = recognise(Path("ltx-2.3-22b-ic-lora-dubit-0.9.safetensors"), {})
    assert match is not None
    assert audio_placement(completed({}, match)) == "dubit"
    assert audio_placement(completed({"audio_reference": "av2av"}, match)) == "av2av"

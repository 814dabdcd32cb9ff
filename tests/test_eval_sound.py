"""eval of a task with sound: the sounds that are sampled beside the clips are measured per window, with intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.clips.conditions import (
    ADAPTER_REFERENCE,
    BASE_REFERENCE,
    CEILING,
    FLOOR,
    INPUT,
    VIDEO_ALONE,
    at_strength,
    batches,
)
from eval.clips.sampled import SampledClips
from eval.metrics.sound import METRICS, sound_agreement
from eval.run import open_source
from eval.scoring.sound_scores import measures_sound
from iclora_train.adapters import lora
from iclora_train.ltx2.audio.codec import AudioCodec
from iclora_train.media.shard_clip import encode_clip
from scripts.synthetic.gemma import gemma_for
from scripts.synthetic_checkpoint import write_checkpoint
from tests.clips import moving
from tests.command import Result, run
from tests.eval_world import compose_config
from tests.test_data_sound import noise
from tests.test_eval import SCHEMA, violations
from tests.test_generate_audio import audio_adapter
from tests.test_real_bases import SMALL

KEYS = [metric.key for metric in METRICS]


class World:
    """A tiny 2.3 with its audio half, dubbed pairs of four held-out recordings, and an adapter of both streams."""

    def __init__(self, root: Path) -> None:
        self.root, self.checkpoint = root, write_checkpoint(root / "base", "2.3")
        lines = ["id,video,reference,caption,split"]
        for i in range(6):
            split = ("train", "val", "heldout", "heldout", "heldout", "heldout")[i]
            for kind, seed in (("dub", i), ("original", 10 + i)):
                sound = noise(1.4, seed)
                clip = encode_clip(moving(32, 64, 64, i), 25, lossless=False, sound=sound)
                (root / f"{kind}{i}.mp4").write_bytes(clip)
            lines.append(f"clip{i},dub{i}.mp4,original{i}.mp4,she says {i},{split}")
        (root / "clips.csv").write_text("\n".join(lines) + "\n")
        adapter = lora.read(audio_adapter(root / "both.safetensors", self.checkpoint))
        metadata = {**adapter.metadata, "audio_reference": "dubit", "task": "dub"}
        lora.save(root / "both.safetensors", replace(adapter, metadata=metadata))
        encoder = f"model.text_encoder={gemma_for('2.3', root / 'gemma')}"
        assert run(root, "data_prep", *self.arguments, encoder).code == 0

    @property
    def arguments(self) -> list[str]:
        clips = [f"data.clips={self.root / 'clips.csv'}", f"data.root={self.root / 'shards'}", "data.heldout_windows=4"]
        base = ["conf=dub", "model=ltx2_3", f"model.checkpoint={self.checkpoint}", "checks.vae.action=warn"]
        small = [s for s in SMALL if not s.startswith(("data.heldout", "task."))]
        few = ["eval.windows=4", "eval.seeds=[0]", "eval.strengths=[1.0,0.0]", "eval.batch_size=4", "eval.workers=1"]
        return [*base, *small, *clips, *few, f"runs_dir={self.root / 'runs'}"]

    def source(self, *more: str) -> SampledClips:
        source = open_source(compose_config([*self.arguments, f"adapter={self.root / 'both.safetensors'}", *more]))
        assert isinstance(source, SampledClips)
        return source


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def evaluated(world: World) -> tuple[Result, dict[str, Any]]:
    result = run(world.root, "eval", *world.arguments, f"adapter={world.root / 'both.safetensors'}")
    assert result.code == 0, result.err
    (path,) = (world.root / "runs").glob("*/eval*/scores.json")
    return result, json.loads(path.read_text())


def test_the_metrics_of_sound_are_in_the_scores_with_intervals(evaluated: tuple[Result, dict[str, Any]]) -> None:
    _, scores = evaluated
    assert violations(scores, SCHEMA) == []
    assert [key for key in scores["metrics"] if key in KEYS] == KEYS
    for name in (ADAPTER_REFERENCE, INPUT, CEILING, FLOOR):
        for key in ("mel_distance", "envelope_correlation", "onset_agreement"):
            assert all(value is not None for value in scores["windows"][name][key]), (name, key)
            assert scores["cells"][name][key]["low"] < scores["cells"][name][key]["high"]
    assert not set(KEYS) & scores["windows"][VIDEO_ALONE].keys()
    assert "mel_distance" in scores["paired"][BASE_REFERENCE]


def test_the_values_are_those_of_the_decoded_sounds(world: World, evaluated: tuple[Result, dict[str, Any]]) -> None:
    _, scores = evaluated
    source = world.source()
    codec = AudioCodec.open(source.base.checkpoint)
    (batch,) = batches(source.held_out.windows, source.seeds, 4)
    made = source._latents(at_strength(1), batch, source.sampler)
    for item, latent in zip(batch, made.sounds, strict=True):
        pair, number = source.held_out.pair(item.window), item.window.number
        assert pair.sound is not None
        assert pair.reference_sound is not None
        assert latent is not None
        expected = sound_agreement(codec.decode(latent[None]), pair.sound)
        reference = sound_agreement(pair.reference_sound, pair.sound)
        for key in ("mel_distance", "loudness_difference"):
            assert scores["windows"][ADAPTER_REFERENCE][key][number] == pytest.approx(expected[key], abs=1e-2)
            assert scores["windows"][INPUT][key][number] == pytest.approx(reference[key], abs=1e-4)


def test_finished_clips_give_their_sounds_again_and_other_sources_have_none(world: World) -> None:
    source = world.source()
    assert measures_sound(source)
    (batch,) = batches(source.held_out.windows, source.seeds, 4)
    source.clips(at_strength(1), batch)
    specification = source.specification(at_strength(1), batch)
    stored = source.cache.read_sounds(specification, len(batch))
    again = source._latents(at_strength(1), batch, source.sampler).sounds
    for one, other in zip(stored, again, strict=True):
        assert one is not None
        assert other is not None
        assert torch.allclose(one, other, atol=1e-4)
    assert not measures_sound(world.source("model.audio=off"))

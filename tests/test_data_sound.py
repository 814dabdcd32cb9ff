"""data.sound: the sound of the targets in pair shards and latent shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import pipeline
from data_prep.measure import text_bytes
from data_prep.sound import encode_sound
from iclora_train.config import Config, ConfigError
from iclora_train.core.types import Sound
from iclora_train.data.shards import EMPTY_AUDIO_TEXT_FILE, ShardSet
from iclora_train.ltx2.audio.codec import open_audio_vae
from iclora_train.ltx2.base_model import open_base
from iclora_train.media.shard_clip import encode_clip
from iclora_train.media.sound import decode_wav, encode_wav, read_sound
from scripts.synthetic.gemma import gemma_for
from scripts.synthetic_checkpoint import write_checkpoint
from tests.clips import moving
from tests.prep import config_of, contents

RATE, FPS, FRAMES = 24000, 25, 5


def noise(seconds: float, seed: int) -> Sound:
    levels = np.random.default_rng(seed).integers(-9000, 9000, (2, round(seconds * RATE)))
    return Sound((levels / 32768).astype(np.float32), RATE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), "2.3")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma_for("2.3", tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips with sound, and clip3 without."""
    folder = tmp_path_factory.mktemp("clips")
    rows = ["id,video,caption,split"]
    for i, split in enumerate(("train", "val", "heldout", "train")):
        sound = noise(1.0, i) if i < 3 else None
        (folder / f"clip{i}.mp4").write_bytes(encode_clip(moving(25, 48, 64, i), FPS, lossless=False, sound=sound))
        rows.append(f"clip{i},clip{i}.mp4,texture {i},{split}")
    (folder / "list.csv").write_text("\n".join(rows))
    return folder / "list.csv"


def settings(root: Path, clips: Path, checkpoint: Path, encoder: Path, *more: str) -> Config:
    few = ("data.train_windows=4", "data.heldout_windows=1", "data.frames=9", "data.width=32", "data.height=32")
    return config_of(root, clips, checkpoint, f"model.text_encoder={encoder}", *few, *more)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, clips: Path, checkpoint: Path, encoder: Path) -> Path:
    root = tmp_path_factory.mktemp("sound")
    return pipeline.prepare(settings(root, clips, checkpoint, encoder, "data.sound=silence"))


def clip_of(shards: ShardSet, i: int) -> str:
    return shards.samples[i].key.partition("-")[0]


def test_a_pair_has_the_sound_that_plays_while_its_frames_are_shown(prepared: Path, clips: Path) -> None:
    pairs, heard = ShardSet.open(prepared / "pairs"), 0
    for i in range(len(pairs)):
        pair, clip = pairs.read_pair(i), clip_of(pairs, i)
        if clip == "clip3":
            assert (pair.sound, pair.record["sound"]) == (None, "silence")
            continue
        begin = pair.record["window"]["indices"][0] * RATE // FPS  # type: ignore[index]
        whole = read_sound(clips.parent / f"{clip}.mp4").samples
        expected = encode_wav(Sound(whole[:, begin : begin + 9 * RATE // FPS], RATE))
        assert pair.sound is not None
        assert encode_wav(pair.sound) == expected
        heard += begin > 0
    assert heard


def test_latents_of_sound_are_those_of_the_audio_vae(prepared: Path, checkpoint: Path) -> None:
    pairs, latents = ShardSet.open(prepared / "pairs"), ShardSet.open(prepared / "latents")
    vae = open_audio_vae(open_base(settings(prepared, checkpoint, checkpoint, checkpoint).model).checkpoint)
    frames = vae.geometry.latent_frames(9, FPS)
    for i in range(len(latents)):
        pair, latent = pairs.read_pair(i), latents.read_latents(i)
        assert latent.audio is not None
        assert latent.audio_text is not None
        assert latent.audio.shape == (vae.geometry.channels, frames, vae.geometry.bins)
        assert torch.equal(latent.audio, encode_sound(vae, pair.sound, 9, FPS).half().float())
        assert latent.heard == (clip_of(latents, i) != "clip3")
        assert len(latent.references) == 1
        assert not torch.equal(latent.audio_text, torch.zeros_like(latent.audio_text))
    assert latents.empty_text(EMPTY_AUDIO_TEXT_FILE).shape == latent.audio_text.shape


def test_stored_pairs_give_the_same_latents(
    prepared: Path, clips: Path, checkpoint: Path, encoder: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(prepared, again)
    shutil.rmtree(again / "latents")
    pipeline.prepare(settings(again, clips, checkpoint, encoder, "data.sound=silence"))
    assert contents(again / "latents") == contents(prepared / "latents")


def test_required_leaves_out_clips_without_sound(clips: Path, checkpoint: Path, encoder: Path, tmp_path: Path) -> None:
    root = pipeline.prepare(settings(tmp_path, clips, checkpoint, encoder, "data.sound=required"))
    (dropped,) = json.loads((root / "report.json").read_text())["dropped"]
    assert dropped["clip"] == "clip3"
    assert "it has no sound, and data.sound=required" in dropped["reason"]
    latents = ShardSet.open(root / "latents")
    assert {clip_of(latents, i) for i in range(len(latents))} == {"clip0", "clip1", "clip2"}


def test_a_set_without_sound_does_not_change(
    prepared: Path, clips: Path, checkpoint: Path, encoder: Path, tmp_path: Path
) -> None:
    """Its fingerprint names neither the setting nor the audio VAE, and its videos are those of a set with sound."""
    config = settings(tmp_path / "plain", clips, checkpoint, encoder)
    plain = ShardSet.open(pipeline.prepare(config) / "latents")
    assert "sound" not in plain.fingerprint["settings"]["data"]
    assert "audio_vae" not in plain.fingerprint["base"]["parts"]
    sounding = ShardSet.open(prepared / "latents")
    assert "audio_vae" in sounding.fingerprint["base"]["parts"]
    for i in range(len(plain)):
        without, latent = plain.read_latents(i), sounding.read_latents(i)
        assert (without.audio, without.audio_text) == (None, None)
        assert torch.equal(without.target, latent.target)
        assert torch.equal(without.text, latent.text)
    plain.require_settings(config)
    with pytest.raises(ConfigError, match="sound"):
        sounding.require_settings(config)


def test_previews_have_no_sound_and_the_estimate_counts_it(
    clips: Path, checkpoint: Path, encoder: Path, tmp_path: Path
) -> None:
    config = settings(tmp_path, clips, checkpoint, encoder, "data.sound=silence", "data.keep=preview")
    pairs = ShardSet.open(pipeline.prepare(config) / "pairs")
    train = [i for i in pairs.indices("train") if clip_of(pairs, i) == "clip0"]
    assert all(not any("sound" in name for name in pairs._read(i)[1]) for i in train)
    assert all(latent.audio is not None for latent in map(ShardSet.open(tmp_path / "latents").read_latents, train))
    base = open_base(config.model)
    stored = ShardSet.open(tmp_path / "latents").read_latents(0)
    assert stored.audio_text is not None
    assert text_bytes(base, audio=True) == 2 * (stored.text.numel() + stored.audio_text.numel())


def test_a_base_without_audio_half_and_a_wrong_value_are_refused(clips: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.sound=required: .* is the video stream alone"):
        pipeline.prepare(config_of(tmp_path, clips, base, "data.sound=required"))
    with pytest.raises(ConfigError, match=r"data.sound='loud'.*required"):
        config_of(tmp_path, clips, base, "data.sound=loud")


@pytest.mark.parametrize("cut", [0, 20, 60])
def test_a_damaged_sound_is_an_error(cut: int) -> None:
    data = encode_wav(noise(0.1, 0))
    with pytest.raises(ValueError, match="its sound is damaged"):
        decode_wav(data[:cut])

"""The tasks dub and foley on a tiny base: pairs with sound are prepared, both streams trained, and videos generated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import pipeline
from data_prep.sound import encode_sound
from iclora_train.adapters import lora
from iclora_train.config import Config, ConfigError
from iclora_train.core.types import Sound
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.audio.codec import open_audio_vae
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.clip import read_clip
from iclora_train.media.picture import read_picture
from iclora_train.media.shard_clip import encode_clip
from iclora_train.media.sound import encode_wav, read_sound
from iclora_train.training.metrics_table import read_metrics
from scripts.synthetic.gemma import gemma_for
from scripts.synthetic_checkpoint import write_checkpoint
from tests.clips import moving
from tests.command import Result, run
from tests.test_data_sound import RATE, noise
from tests.test_real_bases import SMALL
from tests.tiny import composed

FPS, FRAMES = 25, 32
FEW = [*(setting for setting in SMALL if "radius" not in setting and setting != "logger=none"), "data.keep=lossless"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny 2.3 with its audio half, and its text encoder."""
    folder = tmp_path_factory.mktemp("base")
    write_checkpoint(folder, "2.3")
    gemma_for("2.3", folder / "gemma")
    return folder


def clip_file(path: Path, seed: int, sound: Sound | None) -> None:
    path.write_bytes(encode_clip(moving(FRAMES, 64, 64, seed), FPS, lossless=False, sound=sound))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of six dubbed clips, their originals, and a voice for each. Reference 5 has no sound."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = ["id,video,reference,reference_sound,caption,split"]
    splits = ("train", "train", "val", "val", "heldout", "train")
    for i, split in enumerate(splits):
        clip_file(folder / f"dub{i}.mp4", i, noise(1.4, i))
        clip_file(folder / f"original{i}.mp4", i, None if i == 5 else noise(1.4, i + 20))
        (folder / f"voice{i}.wav").write_bytes(encode_wav(noise(1.4, i + 40)))
        rows.append(f"clip{i},dub{i}.mp4,original{i}.mp4,voice{i}.wav,she says {i},{split}")
    (folder / "list.csv").write_text("\n".join(rows))
    return folder / "list.csv"


def settings(task: str, root: Path, base: Path, clips: Path, *more: str) -> list[str]:
    own = (f"conf={task}", "model=ltx2_3", f"model.checkpoint={base}", f"data.clips={clips}", f"data.root={root}")
    return [*own, *FEW, *more]


def prepare(task: str, root: Path, base: Path, clips: Path, *more: str) -> Config:
    config = composed(*settings(task, root, base, clips, f"model.text_encoder={base / 'gemma'}", *more))
    pipeline.prepare(config)
    return config


@pytest.fixture(scope="module")
def dub_shards(tmp_path_factory: pytest.TempPathFactory, base: Path, pairs: Path) -> Path:
    root = tmp_path_factory.mktemp("dub")
    prepare("dub", root, base, pairs)
    return root


def clip_of(key: str) -> str:
    return key.partition("-")[0].removeprefix("clip")


def heard(path: Path, first: int) -> bytes:
    """The wav of 9 frames of a file from a frame on."""
    samples = read_sound(path).samples
    return encode_wav(Sound(samples[:, first * RATE // FPS :][:, : 9 * RATE // FPS], RATE))


def test_a_pair_has_the_sound_of_its_reference_at_the_same_times(dub_shards: Path, pairs: Path, base: Path) -> None:
    stored, latents = ShardSet.open(dub_shards / "pairs"), ShardSet.open(dub_shards / "latents")
    vae = open_audio_vae(BaseModel.open(str(base)).checkpoint)
    later = 0
    for i in range(len(stored)):
        pair, latent = stored.read_pair(i), latents.read_latents(i)
        first, clip = pair.record["window"]["indices"][0], clip_of(pair.key)  # type: ignore[index]
        assert pair.sound is not None
        assert pair.reference_sound is not None
        assert encode_wav(pair.reference_sound) == heard(pairs.parent / f"original{clip}.mp4", first)
        assert encode_wav(pair.sound) == heard(pairs.parent / f"dub{clip}.mp4", first)
        assert latent.audio_reference is not None
        assert torch.equal(latent.audio_reference, encode_sound(vae, pair.reference_sound, 9, FPS).half().float())
        assert latent.audio is not None
        assert not torch.equal(latent.audio, latent.audio_reference)
        assert len(latent.references) == 1  # the stream of the audio reference is not one of them
        later += first > 0
    assert later


def test_a_clip_whose_reference_has_no_sound_is_left_out_or_gets_silence(
    dub_shards: Path, pairs: Path, base: Path, tmp_path: Path
) -> None:
    (dropped,) = json.loads((dub_shards / "report.json").read_text())["dropped"]
    assert dropped["clip"] == "clip5"
    assert "original5.mp4 has no sound, and data.sound=required" in dropped["reason"]
    prepare("dub", tmp_path, base, pairs, "data.sound=silence")
    stored, latents = ShardSet.open(tmp_path / "pairs"), ShardSet.open(tmp_path / "latents")
    numbers = [i for i in range(len(stored)) if clip_of(stored.samples[i].key) == "5"]
    assert numbers
    for i in numbers:
        pair, latent = stored.read_pair(i), latents.read_latents(i)
        assert (pair.reference_sound, pair.record["reference_sound"]) == (None, "silence")
        vae = open_audio_vae(BaseModel.open(str(base)).checkpoint)
        assert latent.audio_reference is not None
        assert torch.equal(latent.audio_reference, encode_sound(vae, None, 9, FPS).half().float())
        assert latent.heard  # the target has a sound of its own


@pytest.mark.parametrize(("source", "name"), [("column", "voice{}.wav"), ("target", "dub{}.mp4")])
def test_the_audio_reference_is_read_from_the_file_that_is_named(
    source: str, name: str, pairs: Path, base: Path, tmp_path: Path
) -> None:
    prepare("dub", tmp_path, base, pairs, f"task.audio_reference.source={source}")
    stored = ShardSet.open(tmp_path / "pairs")
    assert {clip_of(sample.key) for sample in stored.samples} == set("012345")
    for i in range(len(stored)):
        pair = stored.read_pair(i)
        assert pair.reference_sound is not None
        path = pairs.parent / name.format(clip_of(pair.key))
        first = pair.record["window"]["indices"][0]  # type: ignore[index]
        assert encode_wav(pair.reference_sound) == heard(path, first)


def test_mono_and_8_khz_and_short_and_long_sounds_are_fitted_to_the_window(base: Path, tmp_path: Path) -> None:
    """A sound that ends early is continued by silence, one that is longer is cut; mono is heard on both sides."""
    folder = tmp_path / "clips"
    folder.mkdir()
    mono = noise(1.4, 3)
    sounds = {  # samples of 8 kHz; a mono file; 0.2 s; 3 s
        "low": Sound(noise(1.4, 1).samples[:, :: RATE // 8000], 8000),
        "mono": Sound(mono.samples[:1], RATE),
        "odd": Sound(noise(1.4, 6).samples[:, : 44101 * 7 // 5], 44101),
        "short": noise(0.2, 4),
        "long": noise(3.0, 5),
    }
    rows = ["id,video,reference,reference_sound,caption,split"]
    splits = ("train", "val", "heldout", "train", "train")
    for i, ((name, sound), split) in enumerate(zip(sounds.items(), splits, strict=True)):
        clip_file(folder / f"{name}.mp4", i, noise(1.4, i))
        (folder / f"{name}.wav").write_bytes(encode_wav(sound))
        rows.append(f"{name},{name}.mp4,{name}.mp4,{name}.wav,a {name} sound,{split}")
    (folder / "list.csv").write_text("\n".join(rows))
    prepare("dub", tmp_path / "root", base, folder / "list.csv", "task.audio_reference.source=column")
    stored, latents = ShardSet.open(tmp_path / "root/pairs"), ShardSet.open(tmp_path / "root/latents")
    shapes = {tuple(latents.read_latents(i).audio_reference.shape) for i in range(len(latents))}  # type: ignore[union-attr]
    assert len(shapes) == 1
    rates = {}
    for i in range(len(stored)):
        pair = stored.read_pair(i)
        fitted, name = pair.reference_sound, pair.key.partition("-")[0]
        assert fitted is not None
        assert fitted.samples.shape == (2, round(9 / FPS * fitted.rate))
        rates[name] = fitted.rate
        if name == "mono":
            assert np.array_equal(fitted.samples[0], fitted.samples[1])
        first = pair.record["window"]["indices"][0] / FPS  # type: ignore[index]
        if name == "short":
            silent = max(round((0.2 - first) * RATE), 0)
            assert not fitted.samples[:, silent + 1 :].any()
    assert rates == {"low": 8000, "mono": RATE, "odd": 48000, "short": RATE, "long": RATE}


def test_a_missing_column_a_damaged_sound_and_a_base_without_audio_half_are_named(
    pairs: Path, base: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.csv"
    lines = [",".join(line.split(",")[:3] + line.split(",")[4:]) for line in pairs.read_text().split("\n")]
    plain.write_text("\n".join(lines).replace(",dub", f",{pairs.parent}/dub").replace(",orig", f",{pairs.parent}/orig"))
    with pytest.raises(ConfigError):
        prepare("dub", tmp_path / "root", base, plain, "task.audio_reference.source=column")
    reasons = json.loads((tmp_path / "root/report.json").read_text())["dropped"]
    assert "has no `reference_sound`, which task.audio_reference.source=column needs" in reasons[0]["reason"]
    damaged = tmp_path / "damaged.csv"
    (tmp_path / "voice.wav").write_bytes(b"no sound at all")
    damaged.write_text(
        pairs.read_text()
        .replace("voice0.wav", str(tmp_path / "voice.wav"))
        .replace(",dub", f",{pairs.parent}/dub")
        .replace(",orig", f",{pairs.parent}/orig")
        .replace(",voice", f",{pairs.parent}/voice")
    )
    prepare("dub", tmp_path / "other", base, damaged, "task.audio_reference.source=column", "data.sound=silence")
    (dropped,) = json.loads((tmp_path / "other/report.json").read_text())["dropped"]
    assert dropped["clip"] == "clip0"
    assert "voice.wav" in dropped["reason"]
    for task in ("dub", "foley"):
        result = run(tmp_path, "data_prep", f"conf={task}", f"data.clips={pairs}", "data.root=nano")
        assert result.code == 2
        assert "is the video stream alone; name a checkpoint with its audio half" in result.err


def train(folder: Path, task: str, root: Path, base: Path, clips: Path, *more: str) -> Result:
    return run(folder, "iclora_train", *settings(task, root, base, clips, "logger=csv", "data.batch_size=2", *more))


def test_dub_trains_both_streams_and_says_who_can_use_the_adapter(
    dub_shards: Path, pairs: Path, base: Path, tmp_path: Path
) -> None:
    result = train(tmp_path, "dub", dub_shards, base, pairs, "task.audio_reference.p=0.5")
    assert result.code == 0, result.err
    adapter = lora.read(tmp_path / "runs/dub-ltx2_3/adapter.safetensors")
    assert adapter.metadata["audio_reference"] == "dubit"
    assert any("audio_attn1" in name for name in adapter.weights)
    assert "note: diffusers cannot give the audio reference of this adapter" in result.out
    card = (tmp_path / "runs/dub-ltx2_3/adapter.md").read_text()
    assert "| audio reference | a sound before the output's sound, at negative times (dubit) |" in card
    assert "python -m ltx_pipelines.dubit" in card
    rows = read_metrics(tmp_path / "runs/dub-ltx2_3/metrics.csv").rows
    for name in ("loss", "loss_audio", "val_correct_0.3", "val_audio_correct_0.3", "val_audio_swapped_0.3"):
        values = [float(row[name]) for row in rows if row[name]]
        assert values, name
        assert min(values) > 0, name
    first = rows[0]
    assert float(first["val_audio_correct_0.3"]) != float(first["val_audio_none_0.3"])
    assert first["audio_gain"]
    assert first["audio_swap_gap"]
    assert "sound: reference correct" in result.out
    refused = train(tmp_path, "dub", dub_shards, base, pairs, "model.audio=off", "model.lora.targets=[video]", "run=b")
    assert refused.code == 2
    assert "task dub makes sound" in refused.err


def generate_args(base: Path, adapter: Path, *more: str) -> list[str]:
    small = ("width=64", "height=64", "frames=9", "sample.steps=2", "sample.stg_scale=0", "model.precision=fp32")
    model = ("model=ltx2_3", f"model.checkpoint={base}", f"model.text_encoder={base / 'gemma'}")
    return [*model, *small, f"adapter={adapter}", "cache=cache", "prompt=she sings", *more]


def test_generate_gives_the_audio_reference_at_the_positions_of_training(
    dub_shards: Path, pairs: Path, base: Path, tmp_path: Path
) -> None:
    assert train(tmp_path, "dub", dub_shards, base, pairs).code == 0
    adapter, original = tmp_path / "runs/dub-ltx2_3/adapter.safetensors", pairs.parent / "original0.mp4"

    def video(out: str, *more: str) -> tuple[Result, bytes]:
        args = generate_args(base, adapter, f"reference={original}", "audio=generate", f"out={out}.mp4", *more)
        result = run(tmp_path, "iclora_train.generate", *args)
        wav = tmp_path / f"{out}.wav"
        return result, wav.read_bytes() if wav.exists() else b""

    plain, without = video("plain")
    assert (plain.code, plain.err.count("error")) == (0, 0), plain.err
    assert "the adapter was trained with an audio reference: audio_reference=FILE" in plain.out
    given, dubbed = video("given", f"audio_reference={original}")
    assert given.code == 0, given.err
    assert f"sound is generated after the audio reference {original} (dubit)" in given.out
    again, same = video("again", f"audio_reference={original}", "audio_placement=dubit")
    aligned, other = video("aligned", f"audio_reference={original}", "audio_placement=av2av")
    assert (again.code, aligned.code) == (0, 0)
    assert dubbed == same
    assert len({without, dubbed, other}) == 3
    for name, sound in {
        "short": noise(0.2, 1),
        "long": noise(3.0, 2),
        "mono": Sound(noise(0.36, 3).samples[:1], RATE),
        "low": Sound(noise(0.36, 4).samples[:, :: RATE // 8000], 8000),
    }.items():
        (tmp_path / f"voice_{name}.wav").write_bytes(encode_wav(sound))
        fitted, heard_wav = video(name, f"audio_reference=voice_{name}.wav")
        assert fitted.code == 0, fitted.err
        assert len(heard_wav) == len(dubbed)  # as long as the video, whatever the reference
        assert heard_wav != dubbed
    record = json.loads((tmp_path / "given.json").read_text())
    assert str(original) in record["inputs"]
    assert record["settings"]["audio_reference"] == str(original)
    errors = {
        ("audio_reference=nothing.wav",): "audio_reference=nothing.wav is not a file",
        (f"audio_reference={pairs.parent / 'original5.mp4'}",): "original5.mp4 has no sound: give a clip with sound",
        ("audio_placement=dubit",): "audio_placement=dubit is of an audio reference: set audio_reference=FILE too",
        (f"audio_reference={original}", "audio=copy"): "is for sound that is made: set audio=generate, not copy",
        (
            f"audio_reference={original}",
            "window_frames=17",
            "frames=25",
        ): "audio=generate works for a video in one",
        (
            f"audio_reference={original}",
            "model.audio=off",
        ): "audio=generate samples the audio stream",
    }
    for i, (more, message) in enumerate(errors.items()):
        refused, _ = video(f"refused{i}", *more)
        assert refused.code == 2
        assert message in refused.err


def test_foley_learns_the_sound_of_a_given_video_and_makes_it(pairs: Path, base: Path, tmp_path: Path) -> None:
    clips, root = tmp_path / "list.csv", tmp_path / "shards"
    rows = [
        f"clip{i},{pairs.parent}/dub{i}.mp4,a sound {i},{s}" for i, s in enumerate(("train", "train", "val", "val"))
    ]
    clips.write_text("\n".join(["id,video,caption,split", *rows, f"clip4,{pairs.parent}/dub4.mp4,a sound,heldout"]))
    prepare("foley", root, base, clips)
    result = train(tmp_path, "foley", root, base, clips)
    assert result.code == 0, result.err
    adapter = lora.read(tmp_path / "runs/foley-ltx2_3/adapter.safetensors")
    assert adapter.metadata["video_given"] == "true"
    assert {name.split(".")[2] for name in adapter.weights} == {
        "audio_attn1", "audio_attn2", "audio_ff", "video_to_audio_attn"
    }  # fmt: skip
    assert (
        "| given video | all of it: the adapter makes its sound |"
        in (tmp_path / "runs/foley-ltx2_3/adapter.md").read_text()
    )
    rows_of_log = read_metrics(tmp_path / "runs/foley-ltx2_3/metrics.csv").rows
    assert rows_of_log[0]["audio_swap_gap"]
    assert rows_of_log[0]["val_audio_base_0.3"] == rows_of_log[0]["val_audio_correct_0.3"]  # B is zero before step 1
    assert not any(row["val_correct_0.3"] or row["control_gain"] for row in rows_of_log)
    path, source = tmp_path / "runs/foley-ltx2_3/adapter.safetensors", pairs.parent / "original5.mp4"
    made = run(
        tmp_path, "iclora_train.generate",
        *generate_args(base, path, f"source={source}", "audio=generate", "out=foley.mp4", "frames_out=frames"),
    )  # fmt: skip
    assert made.code == 0, made.err
    assert "sound is generated" in made.out
    frames = [np.asarray(read_picture(tmp_path / f"frames/frame-{i:05d}.png")) for i in range(9)]
    shown = [frame for _, frame in zip(range(9), read_clip(source), strict=False)]
    assert all(np.array_equal(one, other) for one, other in zip(frames, shown, strict=True))  # the clip's own pixels
    sound = read_sound(tmp_path / "foley.wav").samples
    assert sound.std() > 1e-3
    other = run(
        tmp_path, "iclora_train.generate",
        *generate_args(base, path, f"source={pairs.parent / 'original3.mp4'}", "audio=generate", "out=other.mp4"),
    )  # fmt: skip
    assert other.code == 0, other.err
    assert np.abs(read_sound(tmp_path / "other.wav").samples - sound).max() > 1e-4  # the sound follows the video
    silent = run(tmp_path, "iclora_train.generate", *generate_args(base, path, f"source={source}", "out=n.mp4"))
    assert silent.code == 2
    assert "or audio=generate to make the sound of the clip" in silent.err
    judged = run(tmp_path, "eval", *settings("foley", root, base, clips))
    assert judged.code == 2
    assert "task foley makes the sound of a given video, and eval judges videos" in judged.err


def test_sections_have_the_sound_of_their_times(base: Path, tmp_path: Path) -> None:
    """The section of a clip from 0.4 s on, that of its reference from 0.2 s on; a file of the list begins with it."""
    clip_file(tmp_path / "video.mp4", 0, noise(1.4, 0))
    clip_file(tmp_path / "original.mp4", 0, noise(1.4, 1))
    (tmp_path / "voice.wav").write_bytes(encode_wav(noise(1.4, 2)))
    rows = ["id,video,reference,reference_sound,caption,split,start,end,reference_start"]
    splits = ("train", "val", "heldout")
    rows += [f"{split},video.mp4,original.mp4,voice.wav,she sings,{split},0.4,1.2,0.2" for split in splits]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    files = {"target": ("video.mp4", 10), "reference": ("original.mp4", 5), "column": ("voice.wav", 0)}
    for source, (name, offset) in files.items():
        root = tmp_path / source
        more = ("checks.offset.action=warn", "checks.duplicate.action=warn", f"task.audio_reference.source={source}")
        prepare("dub", root, base, tmp_path / "list.csv", *more)
        stored, firsts = ShardSet.open(root / "pairs"), set()
        assert len(stored)
        for i in range(len(stored)):
            pair = stored.read_pair(i)
            first = pair.record["window"]["indices"][0]  # type: ignore[index]
            firsts.add(first)
            assert pair.sound is not None
            assert encode_wav(pair.sound) == heard(tmp_path / "video.mp4", first + 10)
            assert pair.reference_sound is not None
            assert encode_wav(pair.reference_sound) == heard(tmp_path / name, first + offset)
        assert max(firsts) > 0

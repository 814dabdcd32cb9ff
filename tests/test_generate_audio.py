"""The generate command with sound: each mode of `audio`, its track, its record, adapters with audio modules, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from iclora_train.adapters import lora
from iclora_train.config import ConfigError, Lora, Model, Sampling
from iclora_train.core.types import Sound, VideoShape
from iclora_train.generate.audio import AudioPlan, SoundSource
from iclora_train.generate.run import generate
from iclora_train.generate.settings import settings_from_record
from iclora_train.generate.windows import Window
from iclora_train.ltx2.audio.codec import AudioCodec, audio_geometry
from iclora_train.ltx2.audio_stream import RESERVE, memory_obstacle, weight_bytes
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.build import build_transformer
from iclora_train.ltx2.weights.key_names import MODEL_PREFIX, is_audio
from iclora_train.media.clip import probe
from iclora_train.media.shard_clip import encode_clip
from iclora_train.media.sound import encode_wav, probe_sound, read_sound
from scripts.synthetic.gemma import gemma_for
from scripts.synthetic.upsampler import write_upsampler
from scripts.synthetic_checkpoint import write_checkpoint
from tests.clips import moving, write_clip
from tests.command import run
from tests.test_generate import generate_pixels, pixels, settings_for, write_adapter
from tests.test_sound import tone
from tests.tiny import composed

FRAMES, FPS = 9, 25
SECONDS = Fraction(FRAMES, FPS)
MODULES = ["attn1.to_q", "audio_attn1", "audio_to_video_attn"]


def with_sound(path: Path, sound: Sound, frames: int = FRAMES) -> Path:
    path.write_bytes(encode_clip(moving(frames, 64, 64), FPS, lossless=False, sound=sound))
    return path


def audio_adapter(path: Path, checkpoint: Path) -> Path:
    """A random adapter with modules in both streams and between them."""
    base = BaseModel.open(str(checkpoint))
    net = base.transformer(audio=True)
    lora.attach(net, Lora(rank=2, targets=MODULES))
    generator = torch.Generator().manual_seed(4)
    weights = {
        name: (a, torch.randn(b.shape, generator=generator)) for name, (a, b) in lora.adapter_weights(net).items()
    }
    metadata = {"base_model_family": base.family, "base_model_version": base.version, "reference_downscale_factor": "1"}
    lora.save(path, lora.Adapter(weights, metadata))
    return path


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny 2.3 with audio half, audio VAE and vocoder; adapters; clips with and without sound."""
    folder = tmp_path_factory.mktemp("sound")
    checkpoint = write_checkpoint(folder / "base", "2.3")
    gemma_for("2.3", folder / "gemma")
    write_adapter(folder / "adapter.safetensors", checkpoint)
    with_sound(folder / "clip.mp4", tone(float(SECONDS), 48000))
    write_clip(folder / "silent.mp4", frames=FRAMES, height=64, width=64)
    return folder


def model_of(assets: Path, **changes: Any) -> Model:
    file = next((assets / "base").glob("*.safetensors"))
    options = {"checkpoint": str(file), "text_encoder": str(assets / "gemma"), "precision": "fp32"}
    return Model(name="ltx", **(options | changes))


def options(assets: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a video of 64x64x9 in two steps."""
    own = {"width": 64, "height": 64, "frames": FRAMES, "model": model_of(assets), "sample": Sampling(steps=2)}
    return own | changes


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "video.json").read_text())
    return record


def packets_of(path: Path) -> np.ndarray:
    return read_sound(path, Fraction(0), SECONDS).samples


@pytest.mark.parametrize("mode", ["generate", "copy", "reference", "none"])
def test_the_command_writes_each_kind_of_sound(assets: Path, tmp_path: Path, mode: str) -> None:
    model = model_of(assets)
    result = run(
        tmp_path,
        "iclora_train.generate",
        "model=ltx2_3",
        f"model.checkpoint={model.checkpoint}",
        f"model.text_encoder={model.text_encoder}",
        "model.precision=fp32",
        f"adapter={assets}/adapter.safetensors",
        f"reference={assets}/clip.mp4",
        *("width=64", "height=64", f"frames={FRAMES}", "sample.steps=2", "sample.stg_scale=0"),
        *(f"cache={tmp_path}/cache", "prompt=a dog barks", "out=dog.mp4", f"audio={mode}"),
    )
    assert result.code == 0, result.err
    assert "audio: video and audio streams; " in result.out
    track, record = probe_sound(tmp_path / "dog.mp4"), json.loads((tmp_path / "dog.json").read_text())
    assert probe(tmp_path / "dog.mp4").frames == FRAMES
    rate = None if mode == "none" else 48000
    assert record["audio"] == {"mode": mode, "stream": True, "rate": rate}
    assert (tmp_path / "dog.wav").exists() is (mode != "none")
    if mode == "none":
        assert track is None
        return
    assert track is not None
    assert (track.codec, track.rate, track.channels) == ("aac", 48000, 2)
    wav, source = read_sound(tmp_path / "dog.wav"), read_sound(assets / "clip.mp4", Fraction(0), SECONDS)
    assert wav.samples.shape == (2, round(SECONDS * 48000))
    played = read_sound(tmp_path / "dog.mp4")
    assert abs(played.samples.shape[1] - wav.samples.shape[1]) <= 1024
    if mode == "generate":
        assert wav.samples[:, : 48000 // 4].std() > 1e-3
        assert np.abs(wav.samples - source.samples).max() > 0.01
    else:
        assert np.array_equal(packets_of(tmp_path / "dog.mp4"), packets_of(assets / "clip.mp4"))
        assert np.abs(wav.samples - source.samples).max() <= 0.5 / 32768 + 1e-6


def test_what_the_model_hears_changes_the_video(assets: Path, tmp_path: Path) -> None:
    alone = generate_pixels(assets, tmp_path / "off", **options(assets, model=model_of(assets, audio="off")))
    free = generate_pixels(assets, tmp_path / "free", **options(assets))
    copied = generate_pixels(assets, tmp_path / "copied", **options(assets), audio="copy")
    given = generate_pixels(assets, tmp_path / "given", **options(assets), audio="reference")
    assert (free == copied).all()
    assert (free != alone).any()
    assert (given != free).any()
    assert record_of(tmp_path / "off")["audio"] == {"mode": "none", "stream": False, "rate": None}
    again = settings_from_record(record_of(tmp_path / "given"))
    again.out, again.frames_out = str(tmp_path / "again/video.mp4"), str(tmp_path / "again/frames")
    generate(again)
    assert (pixels(tmp_path / "again") == given).all()
    before = record_of(tmp_path / "free")
    del before["settings"]["model"]["audio"], before["settings"]["audio"]
    assert settings_from_record(before).model.audio == "off"


@pytest.mark.parametrize("sound", [tone(0.2, 8000), tone(1.0, 22050)], ids=["short, 8 kHz", "long, 22 kHz"])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_sound_of_a_file_becomes_as_long_as_the_video(
    assets: Path, tmp_path: Path, sound: Sound, channels: int
) -> None:
    file = tmp_path / "sound.wav"
    file.write_bytes(encode_wav(Sound(sound.samples[:channels], sound.rate)))
    generate(settings_for(assets, tmp_path, **options(assets), audio="reference", audio_source=str(file)))
    wav, expected = read_sound(tmp_path / "video.wav"), read_sound(file, Fraction(0), SECONDS)
    assert wav.rate == sound.rate
    assert wav.samples.shape == (2, round(SECONDS * sound.rate))
    assert np.array_equal(wav.samples, expected.samples)
    assert record_of(tmp_path)["inputs"][str(file)]
    played = probe_sound(tmp_path / "video.mp4")
    assert played is not None
    assert (played.rate, played.codec) == (sound.rate, "aac")


def test_the_model_hears_a_source_as_resampled_for_training(assets: Path, tmp_path: Path) -> None:
    """The audio VAE's own formula changes the rate, not FFmpeg's resampler."""
    base, shape = BaseModel.open(model_of(assets).checkpoint), VideoShape(FRAMES, 64, 64, float(FPS))
    geometry, codec = audio_geometry(base.checkpoint), AudioCodec.open(base.checkpoint)
    file, frames = tmp_path / "tone.wav", geometry.latent_frames(FRAMES, FPS)
    file.write_bytes(encode_wav(tone(float(SECONDS), 44100)))
    plan = AudioPlan("reference", geometry, SoundSource(str(file), Fraction(0)), "")
    (latent,) = plan.source_latents(base, shape, [Window(0, FRAMES)])
    assert latent is not None
    assert torch.equal(latent, codec.encode(read_sound(file, Fraction(0), SECONDS), frames))
    other = codec.encode(read_sound(file, Fraction(0), SECONDS, geometry.sample_rate), frames)
    assert not torch.equal(latent, other)
    file.write_bytes(encode_wav(Sound(tone(float(SECONDS), 48000).samples, 47999)))
    with pytest.raises(ConfigError, match=r"tone\.wav: 47999 samples per second cannot be changed.*convert the sound"):
        plan.source_latents(base, shape, [Window(0, FRAMES)])


def test_a_long_video_in_windows_keeps_sound_and_does_not_generate_it(assets: Path, tmp_path: Path) -> None:
    clip = with_sound(tmp_path / "long.mp4", tone(17 / FPS, 48000), 17)
    long = options(assets, frames=17, reference=str(clip), window_frames=9, window_overlap=1)
    with pytest.raises(ConfigError, match=r"audio=generate works for a video in one piece.*window_frames"):
        generate(settings_for(assets, tmp_path, **long, audio="generate"))
    for mode in ("copy", "reference"):
        generate(settings_for(assets, tmp_path / mode, **long, audio=mode))
        wav = read_sound(tmp_path / mode / "video.wav")
        assert wav.samples.shape[1] == round(17 / FPS * 48000)
    assert (pixels(tmp_path / "copy") != pixels(tmp_path / "reference")).any()


def test_two_stages_make_sound(assets: Path, tmp_path: Path) -> None:
    up = write_upsampler(tmp_path / "up.safetensors", in_channels=8, mid_channels=32, num_blocks_per_stage=1)
    generate(settings_for(assets, tmp_path, **options(assets), upsampler=str(up), audio="generate"))
    wav = read_sound(tmp_path / "video.wav")
    assert wav.samples.shape[1] == round(SECONDS * 48000)
    assert wav.samples.std() > 1e-3


def test_a_prefix_keeps_its_sound_in_time(assets: Path, tmp_path: Path) -> None:
    """Of a prefix the last 8k+1 frames are used, and the sound begins with them."""
    prefix = with_sound(tmp_path / "prefix.mp4", tone(12 / FPS, 48000), 12)
    settings = settings_for(assets, tmp_path, **options(assets, frames=17), prefix=str(prefix), audio="copy")
    generate(settings)
    wav = read_sound(tmp_path / "video.wav").samples
    expected = read_sound(prefix, Fraction(3, FPS), Fraction(17, FPS)).samples
    assert np.abs(wav - expected).max() <= 0.5 / 32768 + 1e-6
    assert not wav[:, round(10 / FPS * 48000) :].any()


def test_audio_modules_of_an_adapter_act_when_audio_is_on(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = audio_adapter(tmp_path / "adapter.safetensors", next((assets / "base").glob("*.safetensors")))
    own = options(assets, adapter=str(adapter))
    with_audio = generate_pixels(assets, tmp_path / "on", **own)
    assert "audio modules of the adapters are not used" not in capsys.readouterr().out
    generate_pixels(assets, tmp_path / "off", **own | {"model": model_of(assets, audio="off")})
    unused = len(lora.read(adapter).audio)
    assert unused >= 8
    assert f"{unused} audio modules of the adapters are not used" in capsys.readouterr().out
    assert [record_of(tmp_path / name)["unused_modules"] for name in ("on", "off")] == [0, unused]
    state = lora.read(adapter)
    kept = {name: factors for name, factors in state.weights.items() if "audio" not in name}
    lora.save(adapter, replace(state, weights=kept))
    assert (generate_pixels(assets, tmp_path / "video", **own) != with_audio).any()


def test_errors_name_the_setting(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = str(assets / "silent.mp4")
    with pytest.raises(ConfigError, match=r"audio=.*loud.*generate, copy, reference, none"):
        settings_for(assets, tmp_path, audio="loud")
    with pytest.raises(ConfigError, match=r"audio_source=x.wav is for audio=copy and audio=reference"):
        settings_for(assets, tmp_path, audio_source="x.wav")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"audio": "copy", "reference": silent}, r"reference=.*silent.mp4 has no sound, and audio=copy keeps it"),
        ({"audio": "copy", "audio_source": "no.wav"}, r"audio_source=no.wav is not a file"),
        ({"audio": "copy", "audio_source": str(assets / "adapter.safetensors")}, r"audio_source: .*adapter"),
        ({"audio": "generate", "model": model_of(assets, audio="off")}, r"set model.audio=auto or on"),
        ({"audio": "generate", "width": 128, "tile_width": 64}, r"tiles are sampled without sound"),
    ]
    for changes, message in cases:
        with pytest.raises(ConfigError, match=message):
            generate(settings_for(assets, tmp_path, **options(assets, **changes)))
    assert not list(tmp_path.glob("video*"))
    generate_pixels(assets, tmp_path / "tiles", **options(assets, width=128), tile_width=64)
    assert "audio: the video stream alone (tiles are sampled without sound" in capsys.readouterr().out


def test_a_base_without_audio_half_or_vocoder_is_refused_for_sound_and_used_without(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(model_of(assets).checkpoint)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    video = {k: t for k, t in weights.items() if not is_audio(k.removeprefix(MODEL_PREFIX))}
    mute = {k: t for k, t in weights.items() if not k.startswith("vocoder.")}
    for name, state, message in (
        ("video", video, r"the checkpoint has no audio half"),
        ("mute", mute, r"the checkpoint has no audio VAE or vocoder: set model.audio_vae"),
    ):
        save_file(state, tmp_path / f"{name}.safetensors", metadata)
        own = options(assets, model=model_of(assets, checkpoint=str(tmp_path / f"{name}.safetensors")))
        for mode in ("generate", "reference"):
            with pytest.raises(ConfigError, match=rf"audio={mode}: .*{message}.*; set audio=copy or audio=none"):
                generate(settings_for(assets, tmp_path, **own, audio=mode))
        with pytest.raises(ConfigError, match=rf"model.audio=on: .*{message}.*; set model.audio=auto"):
            generate(settings_for(assets, tmp_path, **options(assets, model=replace(own["model"], audio="on"))))
        generate(settings_for(assets, tmp_path / name, **own, audio="copy"))
        assert f"audio: the video stream alone ({message.split(':')[0]}" in capsys.readouterr().out
        assert (tmp_path / name / "video.wav").exists()


def test_the_estimate_of_the_weights_is_what_is_loaded(assets: Path) -> None:
    model = model_of(assets)
    base = BaseModel.open(model.checkpoint)
    for audio in (False, True):
        net = build_transformer(base, model, "cpu", audio)
        assert weight_bytes(base, model, audio) == sum(p.nbytes for p in net.parameters())
    both, alone = (weight_bytes(base, model, audio) for audio in (True, False))
    assert weight_bytes(base, replace(model, weight_offload=1), True) < both
    for free, fits in ((both, True), (both - 1, False), (alone, False), (alone - 1, True)):  # at last neither fits
        obstacle = memory_obstacle(base, model, free + RESERVE)
        assert (obstacle is None) is fits
        assert fits or "GiB are free: set model.audio=on to try" in str(obstacle)


def test_training_of_the_audio_stream_needs_sound() -> None:
    with pytest.raises(ConfigError, match=r"model.audio=on trains on the sound of the clips too: set data.sound"):
        composed("conf=deblur", "model.audio=on")
    assert composed("conf=deblur", "model.audio=off").model.audio == "off"
    assert Model(name="a", checkpoint="b", audio="True").audio == "on"  # `audio: on` in a YAML file

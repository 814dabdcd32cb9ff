"""Audio VAE, vocoder, mel front end and tokens equal diffusers' and independent formulas. Wrong files are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio, LTX2Pipeline
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from iclora_train.config import ConfigError
from iclora_train.core.types import AudioGeometry, Sound
from iclora_train.ltx2.audio.audio_vae import AudioVAE
from iclora_train.ltx2.audio.codec import AudioCodec, audio_geometry, has_audio
from iclora_train.ltx2.audio.layout import vae_arguments, vae_key, vocoder_arguments, vocoder_key
from iclora_train.ltx2.audio.mel import MelFrontEnd, mel_filters
from iclora_train.ltx2.audio.resample import resample
from iclora_train.ltx2.audio.tokens import times_before, to_latent, to_tokens, token_times
from iclora_train.ltx2.audio.vocoder import Vocoder
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.weights.model_files import Checkpoint
from scripts.synthetic import audio, published
from scripts.synthetic.configs import SIZES, VERSIONS
from scripts.synthetic.folders import SyntheticCheckpoint
from scripts.synthetic_checkpoint import write_checkpoint

LTX = AudioGeometry(channels=8, bins=16, sample_rate=16000, hop=160)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny official file of each version."""
    return {version: write_checkpoint(tmp_path_factory.mktemp("ltx"), version) for version in VERSIONS}


@pytest.fixture(scope="module")
def codecs(files: dict[str, Path]) -> dict[str, AudioCodec]:
    return {version: AudioCodec.open(Checkpoint.open(file)) for version, file in files.items()}


def noise(samples: int, seed: int = 0) -> Sound:
    generator = np.random.default_rng(seed)
    return Sound(generator.normal(scale=0.1, size=(2, samples)).astype(np.float32), 16000)


def config_of(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        config: dict[str, Any] = json.loads(opened.metadata()["config"])
    return config


def by_diffusers(file: Path, **changes: Any) -> tuple[Any, Any]:  # diffusers is not typed
    """diffusers' audio VAE and vocoder with the renamed weights of an official file, loaded strictly."""
    config, state = config_of(file), load_file(file)
    arguments = audio.vae_arguments(config["audio_vae"])
    voice = audio.vocoder_arguments(config["vocoder"], arguments["mel_bins"]) | changes
    vae: Any = AutoencoderKLLTX2Audio(**arguments)
    vocoder: Any = (LTX2VocoderWithBWE if "bwe" in config["vocoder"] else LTX2Vocoder)(**voice)
    for model, prefix, table in ((vae, "audio_vae.", audio.AUDIO_VAE), (vocoder, "vocoder.", audio.VOCODER)):
        part = {key.removeprefix(prefix): tensor.float() for key, tensor in state.items() if key.startswith(prefix)}
        model.load_state_dict({published.renamed(key, table): tensor for key, tensor in part.items()})
    return vae.eval(), vocoder.eval()


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_an_official_file_gives_the_latents_mels_and_waveforms_of_diffusers(
    files: dict[str, Path], codecs: dict[str, AudioCodec], version: str
) -> None:
    codec = codecs[version]
    vae, vocoder = by_diffusers(files[version], **({} if version == "2.0" else {"final_act_fn": "clamp"}))
    mel = torch.randn(2, 2, 33, codec.vae.mel_bins)
    packed = LTX2Pipeline._pack_audio_latents(vae.encode(mel).latent_dist.mode())
    normalised = LTX2Pipeline._normalize_audio_latents(packed, vae.latents_mean, vae.latents_std)
    latent = codec.vae.encode_mel(mel)
    assert latent.shape == (2, codec.geometry.channels, 9, codec.geometry.bins)
    assert (to_tokens(latent) - normalised).abs().max() < 1e-5

    raw = LTX2Pipeline._denormalize_audio_latents(normalised, vae.latents_mean, vae.latents_std)
    decoded = vae.decode(LTX2Pipeline._unpack_audio_latents(raw, 9, codec.geometry.bins)).sample
    ours = codec.vae.decode(latent)
    assert ours.shape == (2, 2, 33, codec.vae.mel_bins)
    assert (ours - decoded).abs().max() < 1e-5
    waveform = codec.vocoder(ours)
    assert waveform.shape == (2, 2, 33 * codec.output_rate // 100)
    assert waveform.std() > 0.01
    assert (waveform - vocoder(decoded)).abs().max() < 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("version", VERSIONS)
def test_names_and_shapes_are_those_of_diffusers(version: str, size: str) -> None:
    """Of the published sizes too, on the meta device; and our arguments are those of diffusers' conversion script."""
    checkpoint = SyntheticCheckpoint(version, size)
    arguments, window = vae_arguments(checkpoint.config)
    voice = vocoder_arguments(checkpoint.config, arguments["mel_bins"])
    published_voice = audio.vocoder_arguments(checkpoint.config["vocoder"], checkpoint.mel_bins)
    with torch.device("meta"):
        models = AudioVAE(arguments, window).model, Vocoder(voice).model
    published_vae = audio.vae_arguments(checkpoint.config["audio_vae"])
    assert {key: models[0].config[key] for key in published_vae} == published_vae | {"ch_mult": (1, 2, 4)}
    assert {key for key, value in published_voice.items() if voice.get(key, value) != value} <= {"final_act_fn"}
    for model, specs, table in (
        (models[0], checkpoint.audio_vae, audio.AUDIO_VAE),
        (models[1], checkpoint.vocoder, audio.VOCODER),
    ):
        stored = {published.renamed(spec.name, table): spec.shape for spec in specs}
        assert stored == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        rename = vae_key if table is audio.AUDIO_VAE else vocoder_key
        assert stored.keys() == {rename(spec.name) for spec in specs}


@pytest.mark.parametrize(("version", "rate"), [("2.0", 24000), ("2.3", 48000), ("2.5", 48000)])
def test_sample_rates_and_sizes_come_from_the_checkpoint(
    files: dict[str, Path], codecs: dict[str, AudioCodec], version: str, rate: int
) -> None:
    codec, checkpoint = codecs[version], Checkpoint.open(files[version])
    assert (codec.output_rate, codec.geometry.sample_rate) == (rate, 16000)
    assert has_audio(checkpoint)
    assert audio_geometry(checkpoint) == codec.geometry
    sound = codec.decode(codec.encode(noise(16000)))
    assert (sound.rate, sound.samples.shape) == (rate, (2, 101 * rate // 100))


@pytest.mark.parametrize("layout", ["split", "diffusers"])
@pytest.mark.parametrize("version", VERSIONS)
def test_all_layouts_give_the_same_latents(
    codecs: dict[str, AudioCodec], tmp_path: Path, version: str, layout: str
) -> None:
    codec, sound = AudioCodec.open(Checkpoint.open(write_checkpoint(tmp_path, version, layout))), noise(8000)
    latent = codecs[version].encode(sound)
    assert torch.equal(codec.encode(sound), latent)
    mel = codec.vae.decode(latent)
    assert torch.equal(mel, codecs[version].vae.decode(latent))
    if version != "2.0" and layout == "diffusers":  # the published folders leave the clamp out
        assert codec.vocoder.model.vocoder.final_act_fn is None
        codec.vocoder.model.vocoder.final_act_fn = "clamp"
    assert torch.equal(codec.vocoder(mel), codecs[version].vocoder(mel))


def test_the_window_that_is_asked_for_is_encoded(codecs: dict[str, AudioCodec]) -> None:
    """A longer sound is cut after encoding, a shorter one is continued by silence."""
    codec, sound = codecs["2.3"], noise(32000)
    whole = codec.encode(sound)
    assert torch.equal(codec.encode(sound, 20), whole[:, :, :20])
    padded = codec.encode(Sound(sound.samples[:, :5000], 16000), 20)
    assert torch.equal(padded, codec.encode(Sound(sound.samples[:, :5000], 16000).fitted(0.76), 20))
    assert codec.encode(Sound(sound.samples[:, :10], 16000), 1).shape[2] == 1  # shorter than half a window
    with pytest.raises(ValueError, match=r"takes stereo \(B, 2, S\), got \(1, 1, 32000\)"):
        codec.encode(Sound(sound.samples[:1], 16000))
    with pytest.raises(ValueError, match=r"takes latents \(B, 2, l, 4\), got \(1, 3, 5, 4\)"):
        codec.decode(torch.zeros(1, 3, 5, 4))


def resampled_by_hand(samples: np.ndarray, rate: int, new_rate: int, number: int) -> float:
    """Sample `number` at the new rate, as a sum over all samples (S) in float64."""
    t = (np.arange(len(samples)) / rate - number / new_rate) * 0.99 * min(rate, new_rate)
    weights = np.sinc(t) * np.cos(np.pi * t / 12) ** 2 * (np.abs(t) < 6)
    return float((weights * samples).sum() * 0.99 * min(rate, new_rate) / rate)


@pytest.mark.parametrize(("rate", "new_rate"), [(48000, 16000), (44100, 16000), (8000, 16000), (22050, 16000)])
def test_sound_is_resampled_by_the_formula_of_lightricks_encoders(rate: int, new_rate: int) -> None:
    samples = np.random.default_rng(0).normal(size=(2, 997)).astype(np.float32)
    result = resample(torch.from_numpy(samples)[None], rate, new_rate)[0]
    assert result.shape == (2, -(-997 * new_rate // rate))
    for number in (0, 1, 7, result.shape[1] // 2, result.shape[1] - 1):
        assert result[1, number].item() == pytest.approx(
            resampled_by_hand(samples[1], rate, new_rate, number), abs=1e-5
        )


def test_sound_of_any_rate_is_encoded_at_the_rate_of_the_vae(codecs: dict[str, AudioCodec]) -> None:
    codec, time = codecs["2.3"], np.arange(48000) / 48000
    at_48000 = Sound(np.stack([np.sin(2 * np.pi * 440 * time)] * 2).astype(np.float32), 48000)
    at_16000 = Sound(np.ascontiguousarray(at_48000.samples[:, ::3]), 16000)
    direct = codec.vae.encode(torch.from_numpy(at_16000.samples)[None])
    assert torch.equal(codec.encode(at_16000), direct)
    assert torch.equal(
        codec.encode(at_48000), codec.vae.encode(resample(torch.from_numpy(at_48000.samples)[None], 3, 1))
    )
    with pytest.raises(ValueError, match="44099 samples per second cannot be changed to 16000"):
        codec.encode(Sound(at_48000.samples, 44099))


def test_sound_that_fits_a_video_has_its_length() -> None:
    sound = Sound(np.ones((2, 100), np.float32), 100)
    assert sound.seconds == 1
    longer = sound.fitted(1.5).samples
    assert longer.shape == (2, 150)
    assert longer[:, :100].all()
    assert not longer[:, 100:].any()
    assert sound.fitted(0.25).samples.shape == (2, 25)


def mel_by_hand(waveform: np.ndarray, rate: int, window: int, hop: int, bins: int) -> np.ndarray:
    """(S) -> (L,M) by sums over samples in float64, one mel bin at a time."""
    padded = np.pad(waveform.astype(np.float64), window // 2, mode="reflect")
    n = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
    wave = np.exp(-2j * np.pi * np.outer(np.arange(window // 2 + 1), n) / window)
    frames = [padded[i : i + window] * hann for i in range(0, len(padded) - window + 1, hop)]
    magnitude = np.abs(np.stack(frames) @ wave.T)

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * math.log(rate / 2 / 1000) / math.log(6.4)
    edges = [hertz(top * i / (bins + 1)) for i in range(bins + 2)]
    result = np.zeros((len(frames), bins))
    for m in range(bins):
        low, centre, high = edges[m : m + 3]
        for k in range(window // 2 + 1):
            f = k * rate / window
            height = max(0.0, min((f - low) / (centre - low), (high - f) / (high - centre)))
            result[:, m] += magnitude[:, k] * height * 2 / (high - low)
    return np.log(np.maximum(result, 1e-5))


def test_the_mel_front_end_equals_its_formula() -> None:
    """Sums over samples, and torchaudio's and librosa's filters as transformers computes them."""
    rate, window, hop, bins = 16000, 1024, 160, 64
    filters = mel_filter_bank(window // 2 + 1, bins, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney").T
    assert np.abs(mel_filters(rate, window, bins).numpy() - filters).max() < 1e-7
    time = np.arange(4000) / rate
    waveform = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.01 * np.random.default_rng(0).normal(size=len(time))
    mel = MelFrontEnd(rate, window, hop, bins)(torch.tensor(waveform)[None, None])[0, 0]
    assert mel.shape == (4000 // hop + 1, bins)
    assert np.abs(mel.numpy() - mel_by_hand(waveform.astype(np.float32), rate, window, hop, bins)).max() < 1e-4


def test_the_front_end_is_the_same_when_the_model_was_built_without_memory(codecs: dict[str, AudioCodec]) -> None:
    front_end = codecs["2.3"].vae.front_end
    waveform = torch.randn(1, 2, 3000)
    assert torch.equal(front_end(waveform), MelFrontEnd(16000, 1024, 160, 16)(waveform))


@pytest.mark.parametrize(
    ("frames", "fps", "latent"),
    [(121, 24.0, 126), (121, 25.0, 121), (49, 24000 / 1001, 51), (1, 25.0, 1), (1, 60.0, 1)],
)
def test_the_number_of_audio_frames_is_that_of_diffusers(frames: int, fps: float, latent: int) -> None:
    assert LTX.latent_frames(frames, fps) == latent == max(round(frames / fps * (16000 / 160 / 4.0)), 1)
    assert LTX.mel_frames(latent) == 4 * latent - 3


def test_tokens_and_their_times_are_those_of_diffusers() -> None:
    latent = torch.randn(2, 8, 30, 16)
    tokens = to_tokens(latent)
    assert tokens.shape == (2, 30, LTX.width)
    assert torch.equal(tokens, LTX2Pipeline._pack_audio_latents(latent))
    assert torch.equal(to_latent(tokens, LTX), latent)
    rope = LTX2AudioVideoRotaryPosEmbed(
        dim=32, modality="audio", scale_factors=(4,), sampling_rate=16000, hop_length=160
    )
    times = token_times(LTX, 30)
    assert torch.equal(times.expand(2, -1, -1, -1), rope.prepare_audio_coords(2, 30, torch.device("cpu")))
    assert times[0, 0, :3].flatten().tolist() == pytest.approx([0, 0.01, 0.01, 0.05, 0.05, 0.09])


def test_the_times_of_a_dubbing_reference_end_before_the_target() -> None:
    """ltx-pipelines' dubit.py: minus the end of the reference, minus 0.04 s."""
    times = token_times(LTX, 30)
    before = times_before(LTX, times)
    assert before[0, 0, -1, 1].item() == pytest.approx(-0.04)
    assert torch.allclose(before, times - times[0, 0, -1, 1] - 0.04)


def rewritten(file: Path, out: Path, state: dict[str, Tensor] | None = None, **sections: Any) -> Path:
    """A copy of an official file with other tensors or other sections of its config."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    config = json.loads(metadata["config"]) | sections
    save_file(load_file(file) if state is None else state, out, metadata | {"config": json.dumps(config)})
    return out


def test_a_base_without_sound_is_refused_with_the_setting_to_change(files: dict[str, Path], tmp_path: Path) -> None:
    nano = BaseModel.open("nano").checkpoint
    assert not has_audio(nano)
    with pytest.raises(ConfigError, match=r"holds no audio_vae; set model\.audio_vae to the one file with audio_vae"):
        AudioCodec.open(nano)
    silent = {key: tensor for key, tensor in load_file(files["2.3"]).items() if not key.startswith("vocoder.")}
    checkpoint = Checkpoint.open(rewritten(files["2.3"], tmp_path / "silent.safetensors", silent))
    assert not has_audio(checkpoint)
    with pytest.raises(ConfigError, match=r"holds no vocoder; set model\.audio_vae"):
        AudioCodec.open(checkpoint)


def test_the_audio_vae_may_be_in_a_file_of_its_own(
    files: dict[str, Path], codecs: dict[str, AudioCodec], tmp_path: Path
) -> None:
    split = write_checkpoint(tmp_path, "2.5", "split")
    transformer, sound = next(split.glob("diffusion_models/*")), next(split.glob("vae/*audio*"))
    assert not has_audio(Checkpoint.open(transformer, next(split.glob("vae/*video*"))))
    base = BaseModel.open(str(transformer), str(next(split.glob("vae/*video*"))), audio_vae=str(sound))
    assert torch.equal(AudioCodec.open(base.checkpoint).encode(noise(4000)), codecs["2.5"].encode(noise(4000)))
    with pytest.raises(ConfigError, match=r"model\.audio_vae=.* holds no audio_vae: set it to the one file"):
        Checkpoint.open(files["2.5"], audio_vae=next(split.glob("vae/*video*")))


def test_two_audio_vaes_in_a_folder_do_not_stop_work_without_sound(tmp_path: Path) -> None:
    split = write_checkpoint(tmp_path, "2.5", "split")
    sound = next(split.glob("vae/*audio*"))
    (sound.parent / "second-audio-vae.safetensors").write_bytes(sound.read_bytes())
    checkpoint = Checkpoint.open(split)
    assert not has_audio(checkpoint)
    with pytest.raises(ConfigError, match="the one file with audio_vae"):
        AudioCodec.open(checkpoint)
    assert has_audio(Checkpoint.open(split, audio_vae=sound))
    with pytest.raises(ConfigError, match=r"both hold the audio_vae .* set model\.audio_vae to one of them"):
        Checkpoint.open(split, audio_vae=sound.parent)


def changed(section: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A deep copy of a section with one value changed, or removed if the value is None."""
    copy: dict[str, Any] = json.loads(json.dumps(section))
    *parents, key = path.split(".")
    part = copy
    for name in parents:
        part = part[name]
    part.pop(key) if value is None else part.update({key: value})
    return copy


DD = "model.params.ddconfig"


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("audio_vae", "model", None, r"audio_vae\.model\.params\.ddconfig is missing"),
        ("audio_vae", "model", 3, r"audio_vae\.model in the metadata is not a section"),
        ("audio_vae", f"{DD}.causality_axis", "width", r"ddconfig\.causality_axis='width' is not supported"),
        ("audio_vae", f"{DD}.ch_mult", [1, 2], r"ch_mult=\(1, 2\) and mel_bins=16 must be divided by 4"),
        ("audio_vae", f"{DD}.z_channels", 3, r"3 channels x 4 bins .* do not equal the 8 values"),
        ("audio_vae", f"{DD}.num_res_blocks", 2, r"the audio VAE does not fit its config .*model\.audio_vae"),
        ("audio_vae", f"{DD}.num_res_blocks", "many", r"config of audio_vae cannot be used"),
        ("audio_vae", "preprocessing.mel.mel_fmax", 7600, r"mel\.mel_fmax=7600 is not supported"),
        ("vocoder", "bwe.hop_length", None, r"vocoder\.bwe\.hop_length missing from the metadata"),
        ("vocoder", "vocoder.resblock", "2", r"vocoder\.vocoder\.resblock='2' is not supported"),
        ("vocoder", "vocoder.stereo", False, r"vocoder\.vocoder\.stereo=False is not supported"),
        ("vocoder", "bwe.output_sampling_rate", 44100, r"make 48000 samples per second, but 44100 are declared"),
        ("vocoder", "vocoder.upsample_kernel_sizes", [11, 4], r"config of vocoder cannot be used .*same length"),
    ],
)
def test_sections_and_keys_of_other_models_are_refused(
    files: dict[str, Path], tmp_path: Path, name: str, path: str, value: Any, message: str
) -> None:
    section = changed(config_of(files["2.3"])[name], path, value)
    file = rewritten(files["2.3"], tmp_path / "changed.safetensors", **{name: section})
    with pytest.raises(ConfigError, match=message) as error:
        AudioCodec.open(Checkpoint.open(file))
    assert str(file) in str(error.value)


def test_the_config_of_another_diffusers_vae_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "2.3", "diffusers")
    file = folder / "audio_vae" / "config.json"
    config = json.loads(file.read_text())
    for change, message in (
        ({"groups": 3}, "config.json has groups, which AutoencoderKLLTX2Audio does not know"),
        ({"norm_type": "group"}, "norm_type='group' is not supported"),
        ({"_class_name": "AutoencoderOobleck"}, "not of LTX-2's AutoencoderKLLTX2Audio"),
    ):
        file.write_text(json.dumps(config | change))
        with pytest.raises(ConfigError, match=message):
            AudioCodec.open(Checkpoint.open(folder))

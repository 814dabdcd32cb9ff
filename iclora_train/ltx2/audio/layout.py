"""Config and keys of the audio VAE and the vocoder: official sections -> arguments and keys of diffusers' classes.

Sources: ltx-core's `audio_vae/model_configurator.py` (fields of the sections `audio_vae` and `vocoder`, and their
defaults), diffusers' `scripts/convert_ltx2_to_diffusers.py` (the published configs and key names). 2.0 has one
generator, which makes 24 kHz; since 2.3 `vocoder` has a generator for 16 kHz (`vocoder`) and one that extends its
bandwidth to 48 kHz (`bwe`).
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.core.types import AudioGeometry
from iclora_train.ltx2.weights.key_names import STATISTICS

Section = dict[str, Any]
State = dict[str, Tensor]
AUDIO_REMEDY = (
    "the file is incomplete or of another version: fetch it again, or give model.audio_vae the file that belongs to "
    "model.checkpoint"
)
TEMPORAL = 4  # mel frames to a latent frame, and mel bins to a latent bin, in diffusers' and Lightricks' classes
WINDOW = 1024  # samples in a window of the mel front end, where nothing else is declared
# Fields that have only these values in all published sections.
FIXED_VAE: Section = {
    "double_z": True,
    "downsample_time": False,
    "resamp_with_conv": True,
    "norm_type": "pixel",
    "causality_axis": "height",
    "attn_type": "vanilla",
    "in_channels": 2,
    "out_ch": 2,
}
FIXED_FOLDER: Section = {  # the same in the config.json of a diffusers folder
    "double_z": True,
    "norm_type": "pixel",
    "causality_axis": "height",
    "is_causal": True,
    "in_channels": 2,
    "output_channels": 2,
}
_SEGMENTS = {  # of the vocoder's keys: official -> diffusers'
    "conv_pre": "conv_in",
    "conv_post": "conv_out",
    "act_post": "act_out",
    "ups": "upsamplers",
    "resblocks": "resnets",
}


def _part(section: Section, *names: str) -> Section:
    """A nested section; {} where it is missing or null. ConfigError if it is something else."""
    for i, name in enumerate(names):
        part = section.get(name) or {}
        if not isinstance(part, dict):
            raise ConfigError(f"{'.'.join(names[: i + 1])} in the metadata is not a section; fetch the file again")
        section = part
    return section


def require_fixed(section: Section, fixed: Section, name: str) -> None:
    """ConfigError unless the fields of a section that must have one value have it, or are missing."""
    for key, expected in fixed.items():
        if section.get(key, expected) != expected:
            raise ConfigError(f"{name}.{key}={section[key]!r} is not supported; the audio of LTX-2 has {expected!r}")


def vae_arguments(config: Section) -> tuple[Section, int]:
    """The whole official config -> arguments of AutoencoderKLLTX2Audio, and the window of the mel front end in samples.

    ConfigError for a config without audio VAE and for an unsupported field."""
    params = _part(config, "audio_vae", "model", "params")
    fields = _part(config, "audio_vae", "model", "params", "ddconfig")
    if not fields:
        raise ConfigError("audio_vae.model.params.ddconfig is missing; the metadata has no LTX-2 audio VAE")
    stft, mel = (_part(config, "audio_vae", "preprocessing", name) for name in ("stft", "mel"))
    rate = params.get("sampling_rate", 16000)
    require_fixed(fields, FIXED_VAE, "audio_vae.model.params.ddconfig")
    require_fixed(mel, {"mel_fmin": 0, "mel_fmax": rate / 2}, "audio_vae.preprocessing.mel")
    window = stft.get("filter_length", WINDOW)
    require_fixed(stft, {"win_length": window, "causal": True}, "audio_vae.preprocessing.stft")
    bins = (
        fields.get("mel_bins") or mel.get("n_mel_channels") or _part(config, "audio_vae", "variables").get("mel_bins")
    )
    if not bins:
        raise ConfigError("audio_vae.preprocessing.mel.n_mel_channels is missing; fetch the file again")
    arguments = {
        "base_channels": fields.get("ch", 128),
        "output_channels": 2,
        "ch_mult": tuple(fields.get("ch_mult", (1, 2, 4))),
        "num_res_blocks": fields.get("num_res_blocks", 2),
        "attn_resolutions": tuple(fields.get("attn_resolutions", (8, 16, 32))) or None,
        "in_channels": 2,
        "resolution": fields.get("resolution", 256),
        "latent_channels": fields.get("z_channels", 8),
        "norm_type": "pixel",
        "causality_axis": "height",
        "mid_block_add_attention": fields.get("mid_block_add_attention", True),
        "sample_rate": rate,
        "mel_hop_length": stft.get("hop_length", 160),
        "mel_bins": bins,
    }
    return arguments, window


def geometry_of(arguments: Section) -> AudioGeometry:
    """Sizes of the latents. ConfigError for an audio VAE that does not merge 4 mel frames and 4 mel bins, and for one
    whose statistics do not fit its latents."""
    channels, bins = arguments["latent_channels"], arguments["mel_bins"] // TEMPORAL
    levels = tuple(arguments["ch_mult"])
    if 2 ** (len(levels) - 1) != TEMPORAL or arguments["mel_bins"] % TEMPORAL:
        raise ConfigError(f"audio VAE: ch_mult={levels} and mel_bins={arguments['mel_bins']} must be divided by 4")
    if channels * bins != arguments["base_channels"]:
        raise ConfigError(
            f"audio VAE: {channels} channels x {bins} bins of a latent frame do not equal the "
            f"{arguments['base_channels']} values of its statistics"
        )
    return AudioGeometry(channels, bins, arguments["sample_rate"], arguments["mel_hop_length"], TEMPORAL)


def _generator(section: Section, name: str, mel_bins: int, final: str | None) -> Section:
    """Arguments of LTX2Vocoder for one official generator. final: the last function where it is not tanh; `bwe` has
    none, because the sum with the resampled waveform is clamped instead."""
    kind = section.get("resblock", "1")
    if kind not in ("1", "AMP1"):
        raise ConfigError(f"{name}.resblock={kind!r} is not supported; the vocoders of LTX-2 have '1' or 'AMP1'")
    is_amp = kind == "AMP1"
    require_fixed(section, {"stereo": True} | ({"activation": "snakebeta"} if is_amp else {}), name)
    tanh = section.get("use_tanh_at_final", True) and final is not None
    return {
        "in_channels": 2 * mel_bins,
        "hidden_channels": section.get("upsample_initial_channel", 1024),
        "out_channels": 2,
        "upsample_kernel_sizes": section.get("upsample_kernel_sizes", [16, 15, 8, 4, 4]),
        "upsample_factors": section.get("upsample_rates", [6, 5, 2, 2, 2]),
        "resnet_kernel_sizes": section.get("resblock_kernel_sizes", [3, 7, 11]),
        "resnet_dilations": section.get("resblock_dilation_sizes", [[1, 3, 5]] * 3),
        "act_fn": "snakebeta" if is_amp else "leaky_relu",
        "leaky_relu_negative_slope": 0.1,
        "antialias": is_amp,
        "final_act_fn": "tanh" if tanh else final,
        "final_bias": section.get("use_bias_at_final", True),
    }


def vocoder_arguments(config: Section, mel_bins: int) -> Section:
    """The whole official config -> arguments of LTX2Vocoder, or of LTX2VocoderWithBWE if the section has `bwe`.

    mel_bins: of the audio VAE. ConfigError for a config without vocoder and for an unsupported field."""
    section = _part(config, "vocoder")
    if not section:
        raise ConfigError("the section vocoder is missing; the metadata has no LTX-2 vocoder")
    if "bwe" not in section:
        rate = section.get("output_sampling_rate", 24000)
        return _generator(section, "vocoder", mel_bins, "clamp") | {"output_sampling_rate": rate}
    bwe = _part(config, "vocoder", "bwe")
    needed = ("n_fft", "hop_length", "num_mels", "input_sampling_rate", "output_sampling_rate")
    missing = [f"vocoder.bwe.{key}" for key in needed if key not in bwe]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing from the metadata; fetch the file again")
    first = _generator(_part(config, "vocoder", "vocoder"), "vocoder.vocoder", mel_bins, "clamp")
    second = _generator(bwe, "vocoder.bwe", bwe["num_mels"], None)
    return {
        **first,
        **{f"bwe_{key}": value for key, value in second.items()},
        "filter_length": bwe["n_fft"],
        "window_length": bwe["n_fft"],
        "hop_length": bwe["hop_length"],
        "num_mel_channels": bwe["num_mels"],
        "input_sampling_rate": bwe["input_sampling_rate"],
        "output_sampling_rate": bwe["output_sampling_rate"],
    }


def check_rates(arguments: Section, geometry: AudioGeometry) -> None:
    """ConfigError unless the factors of the generators give the declared sample rates."""
    rate = geometry.sample_rate / geometry.hop * math.prod(arguments["upsample_factors"])
    declared = arguments.get("input_sampling_rate", arguments["output_sampling_rate"])
    if rate == declared and "bwe_upsample_factors" in arguments:
        rate = declared / arguments["hop_length"] * math.prod(arguments["bwe_upsample_factors"])
        declared = arguments["output_sampling_rate"]
    if rate != declared:
        raise ConfigError(f"vocoder: its factors make {rate:g} samples per second, but {declared} are declared")


def vae_key(official: str) -> str:
    """diffusers' name of a key of the audio VAE without its prefix."""
    return STATISTICS.get(official, official)


def vocoder_key(official: str) -> str:
    """diffusers' name of a key of the vocoder without its prefix."""
    return ".".join(_SEGMENTS.get(part, part) for part in official.split(".") if part != "lowpass")

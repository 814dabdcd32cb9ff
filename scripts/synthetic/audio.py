"""The audio VAE and the vocoder: sections of the official config, tensors, and diffusers' names and arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from scripts.synthetic.configs import since
from scripts.synthetic.layout import Spec

AUDIO_VAE = (  # official names -> diffusers', as in its scripts/convert_ltx2_to_diffusers.py
    ("per_channel_statistics.mean-of-means", "latents_mean"),
    ("per_channel_statistics.std-of-means", "latents_std"),
)
VOCODER = (
    ("resblocks", "resnets"),
    ("conv_pre", "conv_in"),
    ("conv_post", "conv_out"),
    ("act_post", "act_out"),
    ("downsample.lowpass", "downsample"),
    ("ups.", "upsamplers."),
)
VOCODER_CLASSES = ("LTX2Vocoder", "LTX2VocoderWithBWE")  # of 2.0, since 2.3
KERNEL = 12  # of the filters around the activations


def audio_section(size: str) -> dict[str, Any]:
    """The `audio_vae` section, the same in all versions."""
    full = size == "full"
    fields = {
        "double_z": True,
        "mel_bins": 16 if size == "tiny" else 64,
        "z_channels": 2 if size == "tiny" else 8,
        "resolution": 256,
        "downsample_time": False,
        "in_channels": 2,
        "out_ch": 2,
        "ch": 8 if size == "tiny" else 128,
        "ch_mult": [1, 2, 4],
        "num_res_blocks": 2 if full else 1,
        "attn_resolutions": [],
        "dropout": 0.0,
        "mid_block_add_attention": False,
        "norm_type": "pixel",
        "causality_axis": "height",
    }
    return {
        "model": {"params": {"ddconfig": fields, "sampling_rate": 16000}},
        "preprocessing": {
            "audio": {"sampling_rate": 16000, "max_wav_value": 32768.0, "duration": 5.12, "stereo": True},
            "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
            "mel": {"n_mel_channels": fields["mel_bins"], "mel_fmin": 0, "mel_fmax": 8000},
        },
    }


def _generator(width: int, rates: list[int], kernels: list[int], size: str, **more: Any) -> dict[str, Any]:
    """A generator. The tiny one has one kernel size, and two channels after its last layer."""
    full = size == "full"
    return {
        "upsample_initial_channel": width if full else 2 ** (len(rates) + 1),
        "upsample_rates": rates,
        "upsample_kernel_sizes": kernels,
        "resblock_kernel_sizes": [3, 7, 11] if full else [3],
        "resblock_dilation_sizes": [[1, 3, 5]] * (3 if full else 1),
        "stereo": True,
    } | more


def vocoder_section(version: str, size: str) -> dict[str, Any]:
    """The `vocoder` section: 24 kHz in 2.0, bandwidth extension to 48 kHz since 2.3."""
    if not since("2.3", version):
        return _generator(1024, [6, 5, 2, 2, 2], [16, 15, 8, 4, 4], size, resblock="1")
    shared = {"resblock": "AMP1", "activation": "snakebeta", "use_tanh_at_final": False, "use_bias_at_final": False}
    extension = {
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "win_size": 512,
        "num_mels": 16 if size == "tiny" else 64,
    }
    return {
        "vocoder": _generator(1536, [5, 2, 2, 2, 2, 2], [11, 4, 4, 4, 4, 4], size, **shared),
        "bwe": _generator(512, [6, 5, 2, 2, 2], [12, 11, 4, 4, 4], size, **shared, **extension),
    }


def _conv(
    name: str, inputs: int, outputs: int, *kernel: int, bias: bool = True, transposed: bool = False
) -> Iterator[Spec]:
    """A convolution whose output has the variance of its input; a transposed one stores inputs first."""
    channels = (inputs, outputs) if transposed else (outputs, inputs)
    yield Spec(f"{name}.weight", (*channels, *kernel), 1 / math.sqrt(inputs * math.prod(kernel)))
    if bias:
        yield Spec(f"{name}.bias", (outputs,), 0.02)


def _resnet(name: str, inputs: int, outputs: int) -> Iterator[Spec]:
    yield from _conv(f"{name}.conv1.conv", inputs, outputs, 3, 3)
    yield from _conv(f"{name}.conv2.conv", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from _conv(f"{name}.nin_shortcut.conv", inputs, outputs, 1, 1)


def audio_vae(section: dict[str, Any]) -> Iterator[Spec]:
    """Encoder, decoder and statistics, without the prefix `audio_vae.`."""
    fields = section["model"]["params"]["ddconfig"]
    base, latent, layers = fields["ch"], fields["z_channels"], fields["num_res_blocks"]
    widths = [base * factor for factor in fields["ch_mult"]]
    yield from _conv("encoder.conv_in.conv", fields["in_channels"], base, 3, 3)
    width = base
    for i, wide in enumerate(widths):
        for j in range(layers):
            yield from _resnet(f"encoder.down.{i}.block.{j}", width, wide)
            width = wide
        if wide is not widths[-1]:
            yield from _conv(f"encoder.down.{i}.downsample.conv", wide, wide, 3, 3)
    yield from _conv("encoder.conv_out.conv", width, 2 * latent, 3, 3)
    yield from _conv("decoder.conv_in.conv", latent, width, 3, 3)
    for side in ("encoder", "decoder"):
        for block in ("block_1", "block_2"):
            yield from _resnet(f"{side}.mid.{block}", width, width)
    for i in reversed(range(len(widths))):
        for j in range(layers + 1):
            yield from _resnet(f"decoder.up.{i}.block.{j}", width, widths[i])
            width = widths[i]
        if i:
            yield from _conv(f"decoder.up.{i}.upsample.conv.conv", width, width, 3, 3)
    yield from _conv("decoder.conv_out.conv", width, fields["out_ch"], 3, 3)
    yield Spec("per_channel_statistics.mean-of-means", (base,), 0.1)
    yield Spec("per_channel_statistics.std-of-means", (base,), 0.1, 1.0)


def _activation(name: str, width: int) -> Iterator[Spec]:
    yield Spec(f"{name}.act.alpha", (width,), 0.1)
    yield Spec(f"{name}.act.beta", (width,), 0.1)
    yield Spec(f"{name}.upsample.filter", (1, 1, KERNEL), 0.02, 1 / KERNEL)
    yield Spec(f"{name}.downsample.lowpass.filter", (1, 1, KERNEL), 0.02, 1 / KERNEL)


def _generator_specs(prefix: str, section: dict[str, Any], mel_bins: int) -> Iterator[Spec]:
    width, is_amp = section["upsample_initial_channel"], section["resblock"] == "AMP1"
    kernels, dilations = section["resblock_kernel_sizes"], section["resblock_dilation_sizes"]
    yield from _conv(f"{prefix}conv_pre", 2 * mel_bins, width, 7)
    for i, kernel in enumerate(section["upsample_kernel_sizes"]):
        yield from _conv(f"{prefix}ups.{i}", width, width // 2, kernel, transposed=True)
        width //= 2
        for j, (size, layers) in enumerate(zip(kernels, dilations, strict=True)):
            block = f"{prefix}resblocks.{i * len(kernels) + j}"
            for half in (1, 2):
                for layer in range(len(layers)):
                    yield from _conv(f"{block}.convs{half}.{layer}", width, width, size)
                    if is_amp:
                        yield from _activation(f"{block}.acts{half}.{layer}", width)
    if is_amp:
        yield from _activation(f"{prefix}act_post", width)
    yield from _conv(f"{prefix}conv_post", width, 2, 7, bias=section.get("use_bias_at_final", True))


def vocoder(section: dict[str, Any], mel_bins: int) -> Iterator[Spec]:
    """Generators and the front end between them, without the prefix `vocoder.`."""
    if "bwe" not in section:
        yield from _generator_specs("", section, mel_bins)
        return
    bwe = section["bwe"]
    yield from _generator_specs("vocoder.", section["vocoder"], mel_bins)
    yield from _generator_specs("bwe_generator.", bwe, bwe["num_mels"])
    frequencies = bwe["n_fft"] // 2 + 1
    for basis in ("forward_basis", "inverse_basis"):
        yield Spec(f"mel_stft.stft_fn.{basis}", (2 * frequencies, 1, bwe["n_fft"]), 0.05)
    yield Spec("mel_stft.mel_basis", (bwe["num_mels"], frequencies), 0.002, 0.01)


def vae_arguments(section: dict[str, Any]) -> dict[str, Any]:
    """config.json of diffusers' audio_vae folder."""
    fields = section["model"]["params"]["ddconfig"]
    stft = section["preprocessing"]["stft"]
    return {
        "base_channels": fields["ch"],
        "output_channels": fields["out_ch"],
        "ch_mult": fields["ch_mult"],
        "num_res_blocks": fields["num_res_blocks"],
        "attn_resolutions": None,
        "in_channels": fields["in_channels"],
        "resolution": fields["resolution"],
        "latent_channels": fields["z_channels"],
        "norm_type": "pixel",
        "causality_axis": "height",
        "dropout": 0.0,
        "mid_block_add_attention": False,
        "sample_rate": section["model"]["params"]["sampling_rate"],
        "mel_hop_length": stft["hop_length"],
        "is_causal": True,
        "mel_bins": fields["mel_bins"],
        "double_z": True,
    }


def _generator_arguments(section: dict[str, Any], mel_bins: int) -> dict[str, Any]:
    is_amp = section["resblock"] == "AMP1"
    return {
        "in_channels": 2 * mel_bins,
        "hidden_channels": section["upsample_initial_channel"],
        "out_channels": 2,
        "upsample_kernel_sizes": section["upsample_kernel_sizes"],
        "upsample_factors": section["upsample_rates"],
        "resnet_kernel_sizes": section["resblock_kernel_sizes"],
        "resnet_dilations": section["resblock_dilation_sizes"],
        "act_fn": "snakebeta" if is_amp else "leaky_relu",
        "leaky_relu_negative_slope": 0.1,
        "antialias": is_amp,
        "antialias_ratio": 2,
        "antialias_kernel_size": KERNEL,
        "final_act_fn": None if is_amp else "tanh",
        "final_bias": not is_amp,
    }


def vocoder_arguments(section: dict[str, Any], mel_bins: int) -> dict[str, Any]:
    """config.json of diffusers' vocoder folder, with the values that its conversion script writes."""
    if "bwe" not in section:
        return _generator_arguments(section, mel_bins) | {"output_sampling_rate": 24000}
    bwe = section["bwe"]
    extension = {f"bwe_{key}": value for key, value in _generator_arguments(bwe, bwe["num_mels"]).items()}
    return {
        **_generator_arguments(section["vocoder"], mel_bins),
        **extension,
        "filter_length": bwe["n_fft"],
        "hop_length": bwe["hop_length"],
        "window_length": bwe["n_fft"],
        "num_mel_channels": bwe["num_mels"],
        "input_sampling_rate": bwe["input_sampling_rate"],
        "output_sampling_rate": bwe["output_sampling_rate"],
    }

"""Name, shape and random distribution of every tensor of an official checkpoint, from its config."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

MODEL = "model.diffusion_model."
TIME_CHANNELS = 256


@dataclass(frozen=True)
class Spec:
    """A tensor to write, with normally distributed values. dtype: as in safetensors; origin: the official name."""

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    dtype: str = "BF16"
    origin: str = ""


def with_prefix(specs: Iterable[Spec], prefix: str, rename: Callable[[str], str] = str) -> list[Spec]:
    """The specs with new names and a prefix; `origin` is the official name."""
    return [replace(spec, name=prefix + rename(spec.name), origin=spec.name) for spec in specs]


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[Spec]:
    """A linear layer whose output has the variance of its input."""
    yield Spec(f"{name}.weight", (outputs, inputs), 1 / math.sqrt(inputs))
    if bias:
        yield Spec(f"{name}.bias", (outputs,), 0.1)


def attention(name: str, query: int, context: int, inner: int, heads: int, gated: bool) -> Iterator[Spec]:
    """Attention with `query` and `context` as input widths and `inner` as its own width."""
    yield Spec(f"{name}.q_norm.weight", (inner,), 0.1, 1.0)
    yield Spec(f"{name}.k_norm.weight", (inner,), 0.1, 1.0)
    yield from linear(f"{name}.to_q", query, inner)
    yield from linear(f"{name}.to_k", context, inner)
    yield from linear(f"{name}.to_v", context, inner)
    yield from linear(f"{name}.to_out.0", inner, query)
    if gated:
        yield from linear(f"{name}.to_gate_logits", query, heads)


def feed_forward(name: str, width: int, bias: bool) -> Iterator[Spec]:
    yield from linear(f"{name}.net.0.proj", width, 4 * width, bias)
    yield from linear(f"{name}.net.2", 4 * width, width, bias)


def adaln(name: str, width: int, rows: int) -> Iterator[Spec]:
    yield from linear(f"{name}.emb.timestep_embedder.linear_1", TIME_CHANNELS, width)
    yield from linear(f"{name}.emb.timestep_embedder.linear_2", width, width)
    yield from linear(f"{name}.linear", width, rows * width)


def table(name: str, rows: int, width: int) -> Spec:
    """An AdaLN table, which the published files store in fp32."""
    return Spec(name, (rows, width), 0.2, dtype="F32")


def _block(name: str, section: dict[str, Any], width: int, audio: int) -> Iterator[Spec]:
    heads, gated = section["num_attention_heads"], section.get("apply_gated_attention", False)
    cross = section.get("cross_attention_adaln", False)
    text, audio_text = section["cross_attention_dim"], section["audio_cross_attention_dim"]
    yield from attention(f"{name}.attn1", width, width, width, heads, gated)
    yield from attention(f"{name}.attn2", width, text, width, heads, gated)
    yield from attention(f"{name}.audio_attn1", audio, audio, audio, heads, gated)
    yield from attention(f"{name}.audio_attn2", audio, audio_text, audio, heads, gated)
    yield from attention(f"{name}.audio_to_video_attn", width, audio, audio, heads, gated)
    yield from attention(f"{name}.video_to_audio_attn", audio, width, audio, heads, gated)
    yield from feed_forward(f"{name}.ff", width, section.get("ff_bias", True))
    yield from feed_forward(f"{name}.audio_ff", audio, section.get("audio_ff_bias", True))
    for prefix, size in (("", width), ("audio_", audio)):
        yield table(f"{name}.{prefix}scale_shift_table", 9 if cross else 6, size)
        if cross:
            yield table(f"{name}.{prefix}prompt_scale_shift_table", 2, size)
    yield table(f"{name}.scale_shift_table_a2v_ca_video", 5, width)
    yield table(f"{name}.scale_shift_table_a2v_ca_audio", 5, audio)


def transformer(section: dict[str, Any]) -> Iterator[Spec]:
    """Video stream, audio stream and the cross-attention between them, without the prefix."""
    width = section["num_attention_heads"] * section["attention_head_dim"]
    audio = section["audio_num_attention_heads"] * section["audio_attention_head_dim"]
    cross = section.get("cross_attention_adaln", False)
    audio_in = section.get("audio_in_channels", 128)
    channels = {"": (section["in_channels"], section["out_channels"])}
    channels["audio_"] = (audio_in, section["audio_out_channels"])
    for prefix, size in (("", width), ("audio_", audio)):
        yield from linear(f"{prefix}patchify_proj", channels[prefix][0], size)
        yield from linear(f"{prefix}proj_out", size, channels[prefix][1])
        yield from adaln(f"{prefix}adaln_single", size, 9 if cross else 6)
        yield table(f"{prefix}scale_shift_table", 2, size)
        if cross:
            yield from adaln(f"{prefix}prompt_adaln_single", size, 2)
        if not section.get("caption_proj_before_connector", False):
            yield from linear(f"{prefix}caption_projection.linear_1", section["caption_channels"], size)
            yield from linear(f"{prefix}caption_projection.linear_2", size, size)
    yield from adaln("av_ca_video_scale_shift_adaln_single", width, 4)
    yield from adaln("av_ca_audio_scale_shift_adaln_single", audio, 4)
    yield from adaln("av_ca_a2v_gate_adaln_single", width, 1)
    yield from adaln("av_ca_v2a_gate_adaln_single", audio, 1)
    if section.get("use_keyframes_abs_pos_embedding", False):
        yield Spec("keyframes_abs_pos_embedding", (1, width), 0.5)
    for i in range(section["num_layers"]):
        yield from _block(f"transformer_blocks.{i}", section, width, audio)


def connectors(section: dict[str, Any]) -> Iterator[Spec]:
    """The two connectors, without the prefix. Audio sizes default to the video sizes."""
    heads, width = section["connector_num_attention_heads"], section["connector_attention_head_dim"]
    sides = {
        "video_embeddings_connector": (heads, width),
        "audio_embeddings_connector": (
            section.get("audio_connector_num_attention_heads", heads),
            section.get("audio_connector_attention_head_dim", width),
        ),
    }
    for name, (count, each) in sides.items():
        size = count * each
        yield Spec(f"{name}.learnable_registers", (section["connector_num_learnable_registers"], size), 0.6)
        for i in range(section["connector_num_layers"]):
            block, gated = f"{name}.transformer_1d_blocks.{i}", section.get("connector_apply_gated_attention", False)
            yield from attention(f"{block}.attn1", size, size, size, count, gated)
            yield from feed_forward(f"{block}.ff", size, True)


def text_projection(section: dict[str, Any], gemma_layers: int) -> Iterator[Spec]:
    """The linear from the flattened outputs of all layers of the text encoder to the connectors' width."""
    name, flat = "text_embedding_projection", section["caption_channels"] * (gemma_layers + 1)
    if not section.get("caption_proj_before_connector", False):
        yield from linear(f"{name}.aggregate_embed", flat, section["caption_channels"], bias=False)
        return
    for side, prefix in (("video", ""), ("audio", "audio_")):
        width = section[f"{prefix}num_attention_heads"] * section[f"{prefix}attention_head_dim"]
        yield from linear(f"{name}.{side}_aggregate_embed", flat, width)


def _conv(name: str, inputs: int, outputs: int) -> Iterator[Spec]:
    yield Spec(f"{name}.conv.weight", (outputs, inputs, 3, 3, 3), 1 / math.sqrt(27 * inputs))
    yield Spec(f"{name}.conv.bias", (outputs,), 0.02)


def _volume(kind: str) -> int:
    """The number of cells that a compress block merges into one."""
    return {"compress_space": 4, "compress_time": 2, "compress_all": 8}[kind.removesuffix("_res")]


def _res_blocks(name: str, count: int, width: int) -> Iterator[Spec]:
    for j in range(count):
        yield from _conv(f"{name}.res_blocks.{j}.conv1", width, width)
        yield from _conv(f"{name}.res_blocks.{j}.conv2", width, width)


def vae(section: dict[str, Any]) -> Iterator[Spec]:
    """Encoder, decoder and statistics of the latents, without the prefix."""
    latent, pixels = section["latent_channels"], 3 * section["patch_size"] ** 2
    width = section["encoder_base_channels"]
    yield from _conv("encoder.conv_in", pixels, width)
    for i, (kind, params) in enumerate(section["encoder_blocks"]):
        if kind == "res_x":
            yield from _res_blocks(f"encoder.down_blocks.{i}", params["num_layers"], width)
        else:
            wide = width * params["multiplier"]
            yield from _conv(f"encoder.down_blocks.{i}.conv", width, wide // _volume(kind))
            width = wide
    yield from _conv("encoder.conv_out", width, latent + 1)
    width = section["decoder_base_channels"]
    width *= math.prod(params.get("multiplier", 1) for kind, params in section["decoder_blocks"] if kind != "res_x")
    yield from _conv("decoder.conv_in", latent, width)
    for i, (kind, params) in enumerate(reversed(section["decoder_blocks"])):
        if kind == "res_x":
            yield from _res_blocks(f"decoder.up_blocks.{i}", params["num_layers"], width)
        else:
            narrow = width // params["multiplier"]
            yield from _conv(f"decoder.up_blocks.{i}.conv", width, narrow * _volume(kind))
            width = narrow
    yield from _conv("decoder.conv_out", width, pixels)
    yield Spec("per_channel_statistics.mean-of-means", (latent,), 0.1)
    yield Spec("per_channel_statistics.std-of-means", (latent,), 0.1, 1.0)


def ignored() -> Iterator[Spec]:
    """Statistics that an official file also has and that this project does not read."""
    yield Spec("vae.per_channel_statistics.channel", (8,), 0.1)
    yield Spec("vae.per_channel_statistics.mean-of-stds", (8,), 0.1)

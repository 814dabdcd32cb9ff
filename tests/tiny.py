"""A tiny base model with random weights and latents for it, written within a second. Used by many tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from iclora_train.config import Config, to_config
from iclora_train.config.hydra_app import conf_dir, register_schema
from iclora_train.core.fingerprint import content_settings
from iclora_train.core.types import LatentPair, VideoShape
from iclora_train.data.shard_sample import pack_latents
from iclora_train.data.shards import ShardWriter
from iclora_train.ltx2.base_model import BaseModel, save_base
from iclora_train.ltx2.model.transformer import Transformer, TransformerConfig
from iclora_train.ltx2.text.nano_encoder import NanoTextConfig, NanoTextEncoder
from iclora_train.ltx2.vae.video_vae import VideoVAE

CHANNELS, WIDTH = 8, 48
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": WIDTH // 2,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 2,
    "cross_attention_dim": WIDTH,
    "positional_embedding_theta": 100.0,
    "positional_embedding_max_pos": [2, 128, 128],
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
    "rope_type": "split",
}
VAE = {  # 8 x 8 pixels and 4 frames per latent cell
    "_class_name": "CausalVideoAutoencoder",
    "latent_channels": CHANNELS,
    "patch_size": 2,
    "decoder_base_channels": 16,
    "encoder_blocks": [["res_x", 1], ["compress_all_res", {"multiplier": 2}]] * 2 + [["res_x", 1]],
    "decoder_blocks": [["res_x", 1], ["compress_all", {"multiplier": 2, "residual": True}]] * 2 + [["res_x", 1]],
}
TEXT = {"words": 64, "tokens": 4, "width": 16, "output": WIDTH, "layers": 1, "heads": 2}
SHAPE = VideoShape(frames=5, height=32, width=32, fps=25.0)
SETTINGS = [f"data.{key}={getattr(SHAPE, key)}" for key in ("frames", "height", "width")]


def composed(*overrides: str) -> Config:
    """The checked config of train.yaml with these overrides."""
    register_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return to_config(compose("train", overrides=list(overrides)))


def write_tiny_base(folder: Path, seed: int = 0, version: str = "2.3") -> Path:
    """Write a base with random fp32 weights in the official layout. Its family is `tiny`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = Transformer(TransformerConfig.from_metadata(TRANSFORMER))
        for table in (p for name, p in transformer.named_parameters() if name.endswith("table")):
            torch.nn.init.normal_(table, std=0.3)
        text = NanoTextEncoder(NanoTextConfig(**TEXT))
        vae = VideoVAE.from_config(VAE)
    config: dict[str, Any] = {"transformer": TRANSFORMER, "vae": VAE, "text_encoder": TEXT}
    save_base(folder, transformer, vae, text, config, version=version, family="tiny", dtype=torch.float32)
    return folder


def write_tiny_latents(
    folder: Path, base: Path, config: Config, downscale: int | None = None, seed: int = 0, train: int = 24
) -> Path:
    """Write a finished latent shard set (`train` train, 6 val, 6 heldout clips) for `base`. Each reference is 0.5 times
    its target, subsampled by the task's factor or by `downscale`; a task without references has none."""
    parts = config.task.for_references()
    strides = [downscale or part.reference_downscale for part in parts]
    frames = [slice(1 if part.reference_frame is not None else None) for part in parts]  # one frame is a picture
    model, generator = BaseModel.open(str(base)), torch.Generator().manual_seed(seed)
    latent_frames, h, w = model.geometry.latent_size(SHAPE.frames, SHAPE.height, SHAPE.width)
    base_fingerprint = {"parts": model.latent_fingerprints}
    writer = ShardWriter(folder, "latents", {"base": base_fingerprint, "settings": content_settings(config)})
    names = []
    for split, count in (("train", train), ("val", 6), ("heldout", 6)):
        samples = []
        for i in range(count):
            target = torch.randn(CHANNELS, latent_frames, h, w, generator=generator)
            references = tuple(0.5 * target[:, f, ::n, ::n] for f, n in zip(frames, strides, strict=True))
            text = torch.randn(TEXT["tokens"], TEXT["output"], generator=generator)
            pair = LatentPair(f"{split}{i:03d}", target, references, text, SHAPE.fps, "a caption")
            samples.append(pack_latents(pair, SHAPE, source=f"{split}{i // 2}", record={}))
        names.append(f"{split}-00000.tar")
        writer.write(names[-1], samples)
    writer.write_empty_text(torch.randn(TEXT["tokens"], TEXT["output"], generator=generator))
    writer.finish(names)
    return folder

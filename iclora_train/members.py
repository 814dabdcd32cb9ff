"""A clip as it is stored in a shard: the members of a WebDataset sample, as bytes by extension."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from iclora_train.files import write_whole
from iclora_train.pair import LatentPair, Pair, VideoShape
from iclora_train.video import encode_clip

Members = dict[str, Any]  # a WebDataset sample: "__key__" and extension -> bytes


def pair_members(pair: Pair, source: str) -> Members:
    """A pair as it is stored; media are lossless."""
    clips = {"target": pair.target, **{f"reference{i}": clip for i, clip in enumerate(pair.references)}}
    media = {f"{name}.mp4": encode_clip(clip, pair.fps) for name, clip in clips.items()}
    frames, height, width = pair.target.shape[:3]
    shape = VideoShape(frames, height, width, pair.fps)
    return {"__key__": pair.key, "json": _about(shape, pair.caption, source, pair.record), **media}


def latent_members(pair: LatentPair, shape: VideoShape, source: str, record: dict[str, object]) -> Members:
    """A latent pair as it is stored, in fp16; `shape` is the target's in pixels. ValueError if a value does not fit."""
    tensors = {"target": pair.target, "text": pair.text}
    tensors |= {f"reference{i}": latent for i, latent in enumerate(pair.references)}
    halves = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()}
    for name, half in halves.items():
        if not half.isfinite().all():
            raise ValueError(f"{pair.key}: {name} holds values that do not fit fp16 (NaN, or beyond 65504)")
    about = _about(shape, pair.caption, source, record)
    return {"__key__": pair.key, "json": about, "latents.safetensors": safetensors.torch.save(halves)}


def save_text(path: Path, text: Tensor) -> None:
    """Keep the features (T,D) of one caption in a file, fp16."""
    with write_whole(path) as file:
        file.write(safetensors.torch.save({"text": text.detach().to("cpu", torch.float16).contiguous()}))


def load_text(path: Path) -> Tensor:
    """What `save_text` kept, fp32."""
    return safetensors.torch.load_file(path)["text"].float()


def _about(shape: VideoShape, caption: str, source: str, record: dict[str, object]) -> bytes:
    """`<key>.json` of a clip."""
    about = {**asdict(shape), "bucket": shape.bucket, "caption": caption, "source": source}
    return json.dumps({**about, "record": record}, sort_keys=True).encode()

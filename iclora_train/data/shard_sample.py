"""A clip as it is stored in a shard: the members of a WebDataset sample, as bytes by extension."""

from __future__ import annotations

import io
import json
import math
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.types import LatentPair, Pair, VideoShape
from iclora_train.data.video import encode_clip

Members = dict[str, Any]  # a WebDataset sample: "__key__" and extension -> bytes


def pack_pair(pair: Pair, source: str) -> Members:
    """A pair as it is stored; media are lossless."""
    clips = {"target": pair.target, **{f"reference{i}": clip for i, clip in enumerate(pair.references)}}
    media = {f"{name}.mp4": encode_clip(clip, pair.fps) for name, clip in clips.items()}
    frames, height, width = pair.target.shape[:3]
    shape = VideoShape(frames, height, width, pair.fps)
    return {"__key__": pair.key, "json": _about(shape, pair.caption, source, pair.record), **media}


def pack_latents(pair: LatentPair, shape: VideoShape, source: str, record: dict[str, object]) -> Members:
    """A latent pair as it is stored, in fp16; `shape` is the target's in pixels. ValueError if a value does not fit."""
    tensors = {"target": pair.target, "text": pair.text}
    tensors |= {f"reference{i}": latent for i, latent in enumerate(pair.references)}
    halves = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()}
    for name, half in halves.items():
        if not half.isfinite().all():
            raise ValueError(f"{pair.key}: {name} holds values that do not fit fp16 (NaN, or beyond 65504)")
    about = _about(shape, pair.caption, source, record)
    return {"__key__": pair.key, "json": about, "latents.safetensors": safetensors.torch.save(halves)}


def unpack_members(data: memoryview, key: str) -> Members:
    """The members of sample `key` (without its key) in the bytes of its part of a tar, as views: nothing is copied."""
    views = {}
    with tarfile.open(fileobj=_Seen(data), mode="r:") as tar:
        for member in tar:
            views[member.name.removeprefix(key + ".")] = data[member.offset_data :][: member.size]
    return views


class _Seen(io.RawIOBase):
    """A file that is a view of memory (BytesIO would copy it)."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def read(self, size: int = -1) -> bytes:
        end = len(self.data) if size < 0 else self.at + size
        found = bytes(self.data[self.at : end])
        self.at += len(found)
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        self.at = offset
        return offset

    def tell(self) -> int:
        return self.at


def load_fp16(data: memoryview) -> dict[str, Tensor]:
    """The tensors of `pack_latents`, fp16, in the memory of `data` (safetensors' loader would copy it)."""
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:begin]))
    found = {}
    for name, about in header.items():
        assert about["dtype"] == "F16"
        count, offset = math.prod(about["shape"]), begin + about["data_offsets"][0]
        found[name] = torch.frombuffer(data, dtype=torch.float16, count=count, offset=offset).reshape(about["shape"])
    return found


def save_text_features(path: Path, text: Tensor) -> None:
    """Keep the features (T,D) of one caption in a file, fp16."""
    with write_atomic(path) as file:
        file.write(safetensors.torch.save({"text": text.detach().to("cpu", torch.float16).contiguous()}))


def load_text_features(path: Path) -> Tensor:
    """What `save_text_features` kept, fp32."""
    return safetensors.torch.load_file(path)["text"].float()


def _about(shape: VideoShape, caption: str, source: str, record: dict[str, object]) -> bytes:
    """`<key>.json` of a clip."""
    about = {**asdict(shape), "bucket": shape.bucket, "caption": caption, "source": source}
    return json.dumps({**about, "record": record}, sort_keys=True).encode()

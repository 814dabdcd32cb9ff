"""One clip in a shard: pack it into the members of a WebDataset sample, and unpack them.

The streams of a clip are `target`, `reference0`, `reference1`, ..., and of a latent clip also `text`. `reference_names`
ignores streams with other names, so that more can be stored.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.types import LatentPair, Pair, VideoShape
from iclora_train.media.shard_clip import encode_clip

Members = dict[str, Any]  # a WebDataset sample: "__key__", and bytes by extension


def pack_pair(pair: Pair, source: str) -> Members:
    """Pack a pair; its videos are lossless."""
    streams = {"target": pair.target, **{f"reference{i}": clip for i, clip in enumerate(pair.references)}}
    media = {f"{name}.mp4": encode_clip(clip, pair.fps) for name, clip in streams.items()}
    frames, height, width = pair.target.shape[:3]
    shape = VideoShape(frames, height, width, pair.fps)
    return {"__key__": pair.key, "json": _metadata(shape, pair.caption, source, pair.record), **media}


def pack_latents(pair: LatentPair, shape: VideoShape, source: str, record: dict[str, object]) -> Members:
    """Pack a latent pair in fp16; `shape` is the target's in pixels. ValueError if a value does not fit fp16."""
    streams = {"target": pair.target, "text": pair.text}
    streams |= {f"reference{i}": latent for i, latent in enumerate(pair.references)}
    halves = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in streams.items()}
    for name, half in halves.items():
        if not half.isfinite().all():
            raise ValueError(f"{pair.key}: {name} holds values that do not fit fp16 (NaN, or beyond 65504)")
    metadata = _metadata(shape, pair.caption, source, record)
    return {"__key__": pair.key, "json": metadata, "latents.safetensors": safetensors.torch.save(halves)}


def reference_names(streams: Iterable[str]) -> list[str]:
    """The names of the reference streams, in order: reference0, reference1, ..."""
    count = sum(re.fullmatch(r"reference\d+", name) is not None for name in streams)
    return [f"reference{i}" for i in range(count)]


def unpack_members(data: memoryview, key: str) -> Members:
    """The members of sample `key` by extension, as views of `data`, the sample's bytes of a tar. Nothing is copied."""
    views = {}
    with tarfile.open(fileobj=_MemoryFile(data), mode="r:") as tar:
        for member in tar:
            views[member.name.removeprefix(key + ".")] = data[member.offset_data :][: member.size]
    return views


class _MemoryFile(io.RawIOBase):
    """A file over a memoryview, without the copy that BytesIO makes."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0

    def read(self, size: int = -1) -> bytes:
        end = len(self.data) if size < 0 else self.position + size
        chunk = bytes(self.data[self.position : end])
        self.position += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        self.position = offset
        return offset

    def tell(self) -> int:
        return self.position


def load_fp16(data: memoryview) -> dict[str, Tensor]:
    """The fp16 tensors of `pack_latents`, as views of `data` (safetensors' loader would copy them)."""
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:begin]))
    tensors = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F16"
        count, offset = math.prod(entry["shape"]), begin + entry["data_offsets"][0]
        tensors[name] = torch.frombuffer(data, dtype=torch.float16, count=count, offset=offset).reshape(entry["shape"])
    return tensors


def save_text_features(path: Path, text: Tensor) -> None:
    """Write the text features (T,D) of one caption to a file, in fp16."""
    with write_atomic(path) as file:
        file.write(safetensors.torch.save({"text": text.detach().to("cpu", torch.float16).contiguous()}))


def load_text_features(path: Path) -> Tensor:
    """Read the text features of `save_text_features`, in fp32."""
    return safetensors.torch.load_file(path)["text"].float()


def _metadata(shape: VideoShape, caption: str, source: str, record: dict[str, object]) -> bytes:
    """`<key>.json` of a clip."""
    metadata = {**asdict(shape), "bucket": shape.bucket, "caption": caption, "source": source}
    return json.dumps({**metadata, "record": record}, sort_keys=True).encode()

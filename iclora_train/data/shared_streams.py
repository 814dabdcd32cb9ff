"""Store a stream that several samples of a latent shard have in common only once.

Windows of one clip share its caption, whose features are the largest stream of a sample (8 MiB with LTX-2); windows at
the same place share their target. The first sample holds the stream. The others name it in `shared` of their json.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from iclora_train.core.records import Count, Text
from iclora_train.core.safetensors_header import TensorEntry, parse_header, shortened
from iclora_train.data.tar_members import FilePart, read_members, read_range

LATENTS = "latents.safetensors"  # the member with the streams of a sample
SMALLEST = 2**16  # bytes; smaller streams are stored with every sample


@dataclass(frozen=True)
class StreamPlace:
    """Where a stream is stored: the key of a sample in the same shard, the name there, the checksum of its values."""

    sample: Text
    stream: Text
    crc32: Count


def share_streams(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The samples of one latent shard, without streams of at least SMALLEST bytes that an earlier stream is equal to.

    Deterministic: the result depends on nothing but the samples and their order.
    """
    places: dict[bytes, StreamPlace] = {}
    for sample in samples:
        yield _without_repeated(sample, places) if LATENTS in sample else sample


def _without_repeated(sample: dict[str, Any], places: dict[bytes, StreamPlace]) -> dict[str, Any]:
    """The sample without the streams in `places` (digest -> place), to which its other large streams are added."""
    streams, shared = safetensors.torch.load(sample[LATENTS]), {}
    for name, stream in sorted(streams.items()):
        if stream.nbytes >= SMALLEST:
            values = stream.numpy().tobytes()
            identity = hashlib.sha256(f"{tuple(stream.shape)}".encode() + values).digest()
            here = StreamPlace(sample["__key__"], name, zlib.crc32(values))
            place = places.setdefault(identity, here)
            if place is not here:
                shared[name] = asdict(place)
    if not shared:
        return sample
    kept = {name: stream for name, stream in streams.items() if name not in shared}
    record = json.dumps({**json.loads(sample["json"]), "shared": shared}, sort_keys=True).encode()
    return {**sample, "json": record, LATENTS: safetensors.torch.save(kept)}


def read_stream(file: io.BufferedReader, offset: int, size: int, place: StreamPlace) -> Tensor:
    """The fp16 stream at `place`, whose sample has `size` bytes at `offset` of a tar. Only its own bytes are read.

    ValueError when it is missing or damaged.
    """
    members = read_members(FilePart(file, offset, size), whole=False)
    member = next((m for m in members if m.name == f"{place.sample}.{LATENTS}"), None)
    if member is None or member.size < 8:
        raise ValueError(f"sample {shortened(place.sample)} has no {LATENTS}")
    begin = offset + member.data
    length = int.from_bytes(read_range(file, begin, 8), "little")
    if length > member.size - 8:
        raise ValueError("its safetensors header is damaged")
    _, entries = parse_header(bytes(read_range(file, begin + 8, length)))
    entry = entries.get(place.stream)
    if entry is None:
        raise ValueError(f"sample {shortened(place.sample)} has no {shortened(place.stream)}")
    if not is_fp16_within(entry, member.size - 8 - length):
        raise ValueError(f"its tensor {shortened(place.stream)} is not fp16, or does not lie within the file")
    values = read_range(file, begin + 8 + length + entry.start, entry.end - entry.start)
    if zlib.crc32(values) != place.crc32:
        raise ValueError(f"the checksum of its {shortened(place.stream)} is wrong")
    return torch.frombuffer(values, dtype=torch.float16, count=math.prod(entry.shape)).reshape(entry.shape)


def is_fp16_within(entry: TensorEntry, size: int) -> bool:
    """Whether a tensor of a safetensors file is fp16 and lies in the `size` bytes after the header."""
    return entry.dtype == "F16" and entry.start < entry.end <= size

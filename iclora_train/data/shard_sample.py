"""One clip in a shard: pack it into the members of a WebDataset sample, and unpack them.

The streams of a clip are `target`, `reference0`, `reference1`, ..., and of a latent clip also `text`. A clip whose task
stores a mask (`task.conditions`) has a stream `mask` too: white pixels, or levels of latent cells. With `data.sound` a
pair has its sound as `sound.wav`, and a latent clip the streams `audio` and `audio_text`; with `task.audio_reference`
they have `reference_sound.wav` and the stream `audio_reference` too. Streams with other names are ignored, so that more
can be stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.records import (
    Bucket,
    PositiveCount,
    PositiveNumber,
    Text,
    read_limited,
)
from iclora_train.core.regular_files import open_regular
from iclora_train.core.safetensors_header import parse_header, shortened
from iclora_train.core.types import LatentPair, Pair, Sound, VideoShape
from iclora_train.data.controls import reference_records
from iclora_train.data.shared_streams import LATENTS, StreamPlace, is_fp16_within
from iclora_train.data.tar_members import BytesPart, read_members
from iclora_train.media.shard_clip import decode_clip, encode_clip, encode_preview
from iclora_train.media.sound import decode_wav, encode_wav

Members = dict[str, Any]  # a WebDataset sample: "__key__", and bytes by extension
PREVIEW = "preview.mp4"  # extension of a preview, after the name of its stream
MAX_TEXT_BYTES = 2**28  # of the features of one caption; LTX-2's have 8 MiB
_MAX_TEXT_HEADER = 2**16
SOUND, REFERENCE_SOUND = "sound.wav", "reference_sound.wav"
SILENCE = "silence"  # `sound` in the record of a clip that has no sound of its own
WHITE = 127  # pixels of a mask above it are white

T = TypeVar("T")


@dataclass(frozen=True)
class ClipRecord:
    """`<key>.json` of a clip: its size in pixels, rate, bucket, caption, source, and how its reference was made.

    keep: `preview` or `none` for a pair whose pixels are not kept; otherwise empty.
    """

    frames: PositiveCount
    height: PositiveCount
    width: PositiveCount
    fps: PositiveNumber
    bucket: Bucket
    caption: Text
    source: Text
    record: dict[str, Any] = field(default_factory=dict)
    shared: dict[Text, StreamPlace] = field(default_factory=dict)  # streams that another sample holds
    keep: Text = ""


def pack_pair(pair: Pair, source: str, keep: str = "lossless") -> Members:
    """Pack a pair. keep: `lossless` videos, small ones for a `preview`, or `none`."""
    streams = {"target": pair.target, **{f"reference{i}": clip for i, clip in enumerate(pair.references)}}
    if pair.mask is not None:
        streams["mask"] = np.repeat(pair.mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
    if keep == "lossless":
        media = {f"{name}.mp4": encode_clip(clip, pair.fps) for name, clip in streams.items()}
    else:
        previews = streams if keep == "preview" else {}
        media = {f"{name}.{PREVIEW}": encode_preview(clip, pair.fps) for name, clip in previews.items()}
    for name, sound in ((SOUND, pair.sound), (REFERENCE_SOUND, pair.reference_sound)):
        if sound is not None and keep == "lossless":
            media[name] = encode_wav(sound)
    frames, height, width = pair.target.shape[:3]
    shape = VideoShape(frames, height, width, pair.fps)
    kept = {} if keep == "lossless" else {"keep": keep}
    return {"__key__": pair.key, "json": _metadata(shape, pair.caption, source, pair.record, **kept), **media}


def pack_latents(pair: LatentPair, shape: VideoShape, source: str, record: dict[str, object]) -> Members:
    """Pack a latent pair in fp16; `shape` is the target's in pixels. ValueError if a value does not fit fp16."""
    streams = {"target": pair.target, "text": pair.text}
    streams |= {f"reference{i}": latent for i, latent in enumerate(pair.references)}
    if pair.mask is not None:
        streams["mask"] = pair.mask  # small whole numbers, which fp16 holds exactly
    if pair.audio is not None and pair.audio_text is not None:
        streams |= {"audio": pair.audio, "audio_text": pair.audio_text}
    if pair.audio_reference is not None:
        streams["audio_reference"] = pair.audio_reference
    halves = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in streams.items()}
    for name, half in halves.items():
        if not half.isfinite().all():
            raise ValueError(f"{pair.key}: {name} holds values that do not fit fp16 (NaN, or beyond 65504)")
    metadata = _metadata(shape, pair.caption, source, record)
    return {"__key__": pair.key, "json": metadata, LATENTS: safetensors.torch.save(halves)}


def reference_names(streams: Iterable[str]) -> list[str]:
    """The names of the reference streams, in order: reference0, reference1, ..."""
    count = sum(re.fullmatch(r"reference\d+", name) is not None for name in streams)
    return [f"reference{i}" for i in range(count)]


def unpack_members(data: memoryview, key: str) -> Members:
    """The members of sample `key` by extension, as views of `data`, the sample's bytes of a tar. Nothing is copied.

    ValueError when the bytes are damaged.
    """
    members = read_members(BytesPart(data), whole=False)
    return {member.name.removeprefix(key + "."): data[member.data :][: member.size] for member in members}


def pair_of(key: str, record: ClipRecord, members: Mapping[str, memoryview]) -> Pair:
    """The pair in the members of a sample. ValueError when a video is missing or damaged."""
    videos = {name.removesuffix(".mp4"): data for name, data in members.items()}
    target, *references = (decode_clip(bytes(data)) for data in _streams(videos, "target"))
    mask = decode_clip(bytes(videos["mask"]))[..., 0] > WHITE if "mask" in videos else None
    if mask is not None and mask.shape != target.shape[:3]:
        raise ValueError(f"its mask has the size {mask.shape}, its target {target.shape[:3]}")
    sounds = [_sound_of(members, name, record) for name in (SOUND, REFERENCE_SOUND)]
    return Pair(key, target, tuple(references), record.caption, record.fps, record.record, mask, *sounds)


def _sound_of(members: Mapping[str, memoryview], name: str, record: ClipRecord) -> Sound | None:
    """A sound of a pair. ValueError if it is damaged, or missing although the record has it."""
    if name in members:
        return decode_wav(bytes(members[name]))
    if record.record.get(name.removesuffix(".wav")) not in (None, SILENCE):
        raise ValueError(f"it has no {name}")
    return None


def previews_of(members: Mapping[str, memoryview]) -> dict[str, np.ndarray]:
    """The previews in the members of a sample, uint8 RGB (F,h,w,3) by stream. ValueError when one is damaged."""
    names = {name: name.removesuffix(f".{PREVIEW}") for name in members if name.endswith(f".{PREVIEW}")}
    return {stream: decode_clip(bytes(members[name])) for name, stream in names.items()}


def latents_of(
    key: str, record: ClipRecord, members: Mapping[str, memoryview], shared: Mapping[str, Tensor], dtype: torch.dtype
) -> LatentPair:
    """The latent pair in the members of a sample. ValueError when a tensor is missing or damaged.

    shared: the streams that other samples hold (`ClipRecord.shared`).
    """
    latents = {**load_fp16(*_streams(members, LATENTS, references=False)), **shared}
    target, text, *references = (latent.to(dtype) for latent in _streams(latents, "target", "text"))
    if text.ndim != 2 or any(latent.ndim != 4 for latent in (target, *references)):
        raise ValueError("its tensors have other dimensions than (C,f,h,w), and (T,D) for text")
    places, mask = _places(record, len(references)), latents.get("mask")
    if mask is not None and (mask.shape != target.shape[1:] or not torch.isin(mask, torch.arange(4.0)).all()):
        raise ValueError(f"its mask has the size {tuple(mask.shape)} or other values than 0, 1, 2 and 3")
    mask = None if mask is None else mask.to(torch.uint8)
    pair = LatentPair(key, target, tuple(references), text, record.fps, record.caption, places, mask)
    return _with_sound(pair, latents, record, dtype)


def _with_sound(pair: LatentPair, latents: Mapping[str, Tensor], record: ClipRecord, dtype: torch.dtype) -> LatentPair:
    """The pair with the streams `audio` (C,l,m), `audio_text` (T,D') and `audio_reference` (C,l,m) that its record
    has."""
    names: tuple[str, ...] = ("audio", "audio_text") if "sound" in record.record else ()
    names += ("audio_reference",) if "reference_sound" in record.record else ()
    streams: dict[str, Any] = {
        name: stream.to(dtype) for name, stream in zip(names, _streams(latents, *names, references=False), strict=True)
    }
    if any(stream.ndim != (2 if name == "audio_text" else 3) for name, stream in streams.items()):
        raise ValueError("its tensors of sound have other dimensions than (C,l,m), and (T,D) for text")
    return replace(pair, **streams, heard=record.record.get("sound") != SILENCE)


def _places(record: ClipRecord, count: int) -> tuple[int | None, ...]:
    """The target frames that were drawn for `count` references. ValueError for one that the clip does not have."""
    parts = list(reference_records(record.record))
    places = [part.get("place") for part in parts[:count]]
    for place in places:
        if place is not None and not (type(place) is int and 0 <= place < record.frames):
            raise ValueError(f"the place of a reference is {str(place)[:40]}, not one of its {record.frames} frames")
    return (*places, *[None] * (count - len(places)))


def _streams(streams: Mapping[str, T], *names: str, references: bool = True) -> list[T]:
    """The streams `names`, then the references. ValueError names the first that is missing."""
    needed = [*names, *(reference_names(streams) if references else ())]
    missing = [name for name in needed if name not in streams]
    if missing:
        raise ValueError(f"it has no {missing[0]}")
    return [streams[name] for name in needed]


def load_fp16(data: memoryview) -> dict[str, Tensor]:
    """The fp16 tensors of `pack_latents`, as views of `data` (safetensors' loader would copy them).

    ValueError when the header is damaged or does not fit the bytes.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    if begin > len(data):
        raise ValueError("its safetensors header is damaged")
    _, entries = parse_header(bytes(data[8:begin]))
    tensors = {}
    for name, entry in entries.items():
        if not is_fp16_within(entry, len(data) - begin):
            raise ValueError(f"its tensor {shortened(name)} is not fp16, or does not lie within the file")
        values = torch.frombuffer(data, dtype=torch.float16, count=math.prod(entry.shape), offset=begin + entry.start)
        tensors[name] = values.reshape(entry.shape)
    return tensors


def save_text_features(path: Path, text: Tensor) -> None:
    """Write the text features (T,D) of one caption to a file, in fp16 and with a checksum in the metadata."""
    half = text.detach().to("cpu", torch.float16).contiguous()
    with write_atomic(path) as file:
        file.write(safetensors.torch.save({"text": half}, {"sha256": _tensor_digest(half)}))


def load_text_features(path: Path) -> Tensor:
    """Read the text features of `save_text_features`, in fp32. Files of version 0.1 have no checksum.

    OSError when the file cannot be read, ValueError when it is damaged.
    """
    data = read_limited(path, MAX_TEXT_BYTES)
    try:
        text = safetensors.torch.load(data).get("text")
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if text is None or text.dtype != torch.float16 or text.ndim != 2:
        raise ValueError("it holds no fp16 tensor text of shape (T,D)")
    metadata, _ = parse_header(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if metadata.get("sha256") not in (None, _tensor_digest(text)):
        raise ValueError("its checksum is wrong")
    return text.float()


def is_whole_text_file(path: Path) -> bool:
    """Whether a file of text features has all of its bytes. The tensor is not read, so its checksum is not compared."""
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            size = file.seek(0, 2)
            file.seek(8)
            _, entries = parse_header(file.read(min(length, _MAX_TEXT_HEADER)))
    except (OSError, ValueError):
        return False
    return size == 8 + length + max((entry.end for entry in entries.values()), default=0)


def _tensor_digest(tensor: Tensor) -> str:
    """sha256 of the shape and the bytes of an fp16 tensor."""
    return hashlib.sha256(f"{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes()).hexdigest()


def _metadata(shape: VideoShape, caption: str, source: str, record: dict[str, object], **more: str) -> bytes:
    """`<key>.json` of a clip."""
    metadata = {**asdict(shape), "bucket": shape.bucket, "caption": caption, "source": source}
    return json.dumps({**metadata, **more, "record": record}, sort_keys=True).encode()

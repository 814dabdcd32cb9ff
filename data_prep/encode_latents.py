"""Encode pairs to latents, so that the VAE runs once and not in every training step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from data_prep.sound import encode_sound
from iclora_train.config import Config, ConfigError
from iclora_train.core.copy_stream import CopyStream
from iclora_train.core.device import default_device
from iclora_train.core.types import LatentPair, Pair, VideoShape
from iclora_train.data.shard_sample import Members, pack_latents
from iclora_train.diffusion.kept_latents import mask_to_levels
from iclora_train.ltx2.audio.codec import open_audio_vae
from iclora_train.ltx2.base_model import BaseModel, open_base
from iclora_train.ltx2.text_features import TextFeatures
from iclora_train.media.pixels import from_uint8

CPU_BATCH_PIXELS = 2**22  # approximate frames x height x width of a batch on a CPU; small clips share a batch


@dataclass(frozen=True)
class ClipPair:
    """A pair in pixels, and the id of the clip that it was cut from."""

    pair: Pair
    clip: str


@dataclass(frozen=True)
class _Staged:
    """A batch on the device: uint8 clips (B,F,H,W,3) of the targets, then of each reference. ready: the copies end."""

    videos: list[Tensor]
    ready: torch.cuda.Event | None


class LatentEncoder:
    """The VAE of the base model, on the current GPU if there is one, with the cached text features.

    precision: data.vae_precision. pixels: approximate frames x height x width of targets per batch. It is halved when
    a GPU runs out of memory.

    Several threads may call `encode_batch`: while the VAE encodes the batch of one, another copies its batch to the GPU
    or packs its latents.
    """

    def __init__(self, base: BaseModel, texts: TextFeatures, precision: str | None = None) -> None:
        """texts: with the features of the audio stream (`TextFeatures.audio`), if sound is to be encoded too."""
        device = default_device()
        self.device = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.vae, self.texts = base.vae(dtype).to(self.device), texts
        self.pixels = CPU_BATCH_PIXELS if self.device.type == "cpu" else self.vae.max_pixels
        self._audio_vae = open_audio_vae(base.checkpoint).to(self.device) if texts.audio else None
        self._copies, self._vae_lock, self._text_lock = CopyStream(self.device), Lock(), Lock()

    @classmethod
    def open(cls, config: Config) -> LatentEncoder:
        """Open the base model and the text features in data.root, also in a process on another machine."""
        base = open_base(config.model)
        texts = TextFeatures(Path(config.data.root), base, config.data.sound is not None)
        return cls(base, texts, config.data.vae_precision)

    def batch_pixels(self) -> int:
        """`pixels`, in the form in which an encoder in another process is asked for it."""
        return self.pixels

    def encode_batch(self, batch: list[ClipPair]) -> list[Members]:
        """Latent samples of pairs of one bucket."""
        latents = self.encode([item.pair for item in batch])
        return [_members(item, latent) for item, latent in zip(batch, latents, strict=True)]

    def encode(self, pairs: list[Pair]) -> list[LatentPair]:
        """Encode pairs of one size; latents on the host. ConfigError if a single pair does not fit into GPU memory."""
        most = max(self.pixels // pairs[0].target[..., 0].size, 1)
        if len(pairs) > most:
            return self.encode(pairs[:most]) + self.encode(pairs[most:])
        try:
            return self._encode(pairs)
        except torch.OutOfMemoryError as error:
            frames, height, width = pairs[0].target.shape[:3]
            if len(pairs) == 1:
                raise ConfigError(
                    f"the GPU has no memory to encode one clip of {width}x{height}x{frames}: stop other programs, "
                    "or lower data.frames, data.height, data.width"
                ) from error
        torch.cuda.empty_cache()  # after `except`: inside it, the traceback would still hold the tensors of the batch
        half = len(pairs) // 2
        self.pixels = half * frames * height * width
        return self.encode(pairs[:half]) + self.encode(pairs[half:])

    @torch.inference_mode()
    def _encode(self, pairs: list[Pair]) -> list[LatentPair]:
        with self._on_device():
            staged = self._stage(pairs)
            with self._vae_lock:  # held while the work is queued on the GPU, not until it is done
                self._copies.make_compute_wait(staged.ready)
                latents = [self._to_host(self.vae.encode(from_uint8(video))) for video in staged.videos]
                done = torch.cuda.current_stream().record_event() if self.device.type == "cuda" else None
            if done is not None:
                done.synchronize()
        return [
            self._latent_pair(pair, target, tuple(references))
            for pair, target, *references in zip(pairs, *latents, strict=True)
        ]

    def _latent_pair(self, pair: Pair, target: Tensor, references: tuple[Tensor, ...]) -> LatentPair:
        """The latents of a pair with its text, its mask and its sound."""
        mask = None if pair.mask is None else _levels(pair.mask, target)
        text = self._text(pair.caption)
        latent = LatentPair(pair.key, target, references, text, pair.fps, pair.caption, mask=mask)
        if self._audio_vae is None:
            return latent
        with self._text_lock:
            audio_text = self.texts.read_audio(pair.caption)
        with self._on_device(), self._vae_lock:
            audio = encode_sound(self._audio_vae, pair.sound, len(pair.target), pair.fps).cpu()
            reference = None
            if "reference_sound" in pair.record:
                reference = encode_sound(self._audio_vae, pair.reference_sound, len(pair.target), pair.fps).cpu()
        heard = pair.sound is not None
        return replace(latent, audio=audio, audio_text=audio_text, heard=heard, audio_reference=reference)

    def _stage(self, pairs: list[Pair]) -> _Staged:
        """Copy the clips to the device, beside the VAE's work on another batch."""
        columns = zip(*((pair.target, *pair.references) for pair in pairs), strict=True)
        with self._copies.context():
            videos = [self._to_device(list(column)) for column in columns]
            return _Staged(videos, self._copies.record())

    def _to_device(self, clips: list[np.ndarray]) -> Tensor:
        """uint8 clips (F,H,W,3) -> (B,F,H,W,3). Their memory may be read-only, as Ray's is."""
        gpu = self.device.type == "cuda"
        video = torch.empty((len(clips), *clips[0].shape), dtype=torch.uint8, pin_memory=gpu)
        np.stack(clips, out=video.numpy())
        if not gpu:
            return video
        return video.to(self.device, non_blocking=True)

    def _to_host(self, latents: Tensor) -> Tensor:
        """A copy in pinned memory, complete when the work that is queued on the GPU so far is done."""
        if self.device.type == "cpu":
            return latents
        host = torch.empty(latents.shape, dtype=latents.dtype, pin_memory=True)
        return host.copy_(latents, non_blocking=True)

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _text(self, caption: str) -> Tensor:
        with self._text_lock:
            return self.texts.read(caption)


def _levels(mask: np.ndarray, target: Tensor) -> Tensor:
    """The levels (f,h,w) of a mask (F,H,W) on the grid of the target's latents (C,f,h,w)."""
    _, f, h, w = target.shape
    return mask_to_levels(torch.from_numpy(mask), (f, h, w))[0]


def _members(item: ClipPair, latent: LatentPair) -> Members:
    """The latent sample of a pair."""
    frames, height, width = item.pair.target.shape[:3]
    return pack_latents(latent, VideoShape(frames, height, width, item.pair.fps), item.clip, item.pair.record)

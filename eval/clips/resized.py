"""The held-out windows at another size: fewer pixels, or fewer frames, of the same windows, encoded again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from eval.clips.windows import HeldOut, Window
from eval.metrics import Clip
from iclora_train.config import Task
from iclora_train.core.fingerprint import digest
from iclora_train.core.types import LatentPair, Pair
from iclora_train.data.clip_hashes import KnownClip
from iclora_train.data.shard_sample import WHITE
from iclora_train.diffusion.kept_latents import mask_to_levels
from iclora_train.ltx2.vae.video_vae import VideoVAE
from iclora_train.media.pixels import from_uint8

Size = tuple[int, int, int]  # F, H, W of a clip


def resized_clip(clip: Clip, size: Size) -> Clip:
    """The first frames of a clip (F,H,W,3), averaged down to the height and width of `size`."""
    count, height, width = size
    frames = clip[:count]
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames]).astype(np.uint8)


class ResizedHeldOut(HeldOut):
    """The windows of `original` at `size`, which is nowhere larger. References keep their share of the target's size.

    Captions, partners, seeds and text features are those of the original.
    """

    def __init__(self, original: HeldOut, size: Size, task: Task, vae: VideoVAE) -> None:
        vars(self).update(vars(original))
        self._original, self._size, self._task, self._vae = original, size, task, vae
        self._encoded: dict[str, LatentPair] = {}

    def pair(self, window: Window) -> Pair:
        """The pair of a window, in pixels of the new size."""
        pair = self._original.pair(window)
        height = pair.target.shape[1]
        references = tuple(
            resized_clip(reference, self._reference_size(number, height // reference.shape[1]))
            for number, reference in enumerate(pair.references)
        )
        mask = None
        if pair.mask is not None:
            mask = resized_clip(pair.mask.astype(np.uint8) * 255, self._size) > WHITE
        return replace(pair, target=resized_clip(pair.target, self._size), references=references, mask=mask)

    def _reference_size(self, number: int, downscale: int) -> Size:
        frames, height, width = self._size
        task = self._task.of_reference(number)
        return (frames - 1) // task.reference_temporal_scale + 1, height // downscale, width // downscale

    def latents(self, window: Window) -> LatentPair:
        """The pair of a window as latents of the new size, encoded once."""
        if window.key not in self._encoded:
            original, pair = self._original.latents(window), self.pair(window)
            references = tuple(self._encode(reference) for reference in pair.references)
            target = self._encode(pair.target)
            size = (target.shape[1], target.shape[2], target.shape[3])
            mask = None if pair.mask is None else mask_to_levels(torch.from_numpy(pair.mask), size)[0]
            self._encoded[window.key] = replace(original, target=target, references=references, mask=mask)
        return self._encoded[window.key]

    @torch.no_grad()
    def _encode(self, clip: Clip) -> Tensor:
        """A clip (F,H,W,3) as latents (C,f,h,w) on the CPU."""
        device = self._vae.model.device
        return self._vae.encode(from_uint8(torch.from_numpy(clip[None]).to(device)))[0].float().cpu()

    @property
    def divided(self) -> set[str]:
        """As `HeldOut.divided`."""
        return self._original.divided

    def known_clips(self, root: Any) -> dict[str, KnownClip]:
        """As `HeldOut.known_clips`."""
        return self._original.known_clips(root)

    def empty_text(self) -> Tensor:
        """As `HeldOut.empty_text`."""
        return self._original.empty_text()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Digests of the shards; that of the latents with the size."""
        known = self._original.fingerprint
        return {**known, "latents": digest([known["latents"], *self._size])}

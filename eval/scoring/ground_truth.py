"""The ground truth of every window, from the held-out shards."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
import torch

from eval.clips.windows import HeldOut
from eval.metrics import Clip, GroundTruth, edited_region
from eval.metrics.base import Mask
from iclora_train.config import Task
from iclora_train.core.types import Geometry, Pair
from iclora_train.data.controls import controls_of
from iclora_train.diffusion.clean_cells import CleanCells
from iclora_train.diffusion.kept_latents import mask_to_levels
from iclora_train.media.frame_times import simultaneous_frames

MIN_CACHED = 8  # windows whose ground truth always stays in memory: the windows of a batch and their partners
CACHE_BYTES = 2**30  # more windows are cached up to this total size
COPIES = 6  # size of a ground truth relative to its target: three clips, and the data that metrics cache


class GroundTruths:
    """Targets and ground truths by window number, read on demand.

    geometry: of the base. band: side of a reference token in pixels.
    """

    def __init__(self, held_out: HeldOut, task: Task, geometry: Geometry, band: int) -> None:
        self.held_out, self.task, self.geometry, self.band = held_out, task, geometry, band
        target_bytes = held_out.pair(held_out.windows[0]).target.nbytes
        count = max(MIN_CACHED, CACHE_BYTES // (COPIES * target_bytes))
        self.target: Callable[[int], Clip] = lru_cache(count)(
            lambda n: held_out.pair(held_out.windows_and_donors[n]).target
        )
        self.of: Callable[[int], GroundTruth] = lru_cache(count)(self._ground_truth)

    def reference(self, number: int, which: int) -> Clip:
        """One of the references of a window, resized to the size and frame count of the target."""
        pair = self.held_out.pair(self.held_out.windows_and_donors[number])
        return fit_to_shape(pair.references[which], pair.target.shape)

    def _ground_truth(self, number: int) -> GroundTruth:
        window = self.held_out.windows_and_donors[number]
        pair = self.held_out.pair(window)
        controls = controls_of(self.task, pair.record)
        return GroundTruth(
            target=pair.target,
            shuffled=self.target(window.partner),
            reference=fit_to_shape(pair.references[0], pair.target.shape) if pair.references else None,
            region=region_to_make(self.task, pair, self.geometry),
            record=pair.record,
            fps=pair.fps,
            band=self.band,
            caption=pair.caption,
            controls=tuple(control.name for control in controls),
        )


def region_to_make(task: Task, pair: Pair, geometry: Geometry) -> Mask | None:
    """The region (F,H,W) of the target that the model has to make; None if it has to make the whole clip.

    Neither the reference shows it (`edited_region`), nor is it a given part (`task.conditions`).
    """
    hidden = None
    if pair.references:
        hidden = edited_region(controls_of(task, pair.record)[0].task(task), pair.target, pair.references[0])
    new = new_pixels(task, pair.target.shape[:3], geometry, pair.mask)
    return hidden if new is None else new if hidden is None else hidden & new


def new_pixels(task: Task, shape: tuple[int, ...], geometry: Geometry, mask: Mask | None = None) -> Mask | None:
    """The pixels (F,H,W) that the usual conditions of a task do not give; None if the task has none of them.

    mask: of the pair.
    """
    frames, height, width = shape
    size = geometry.latent_size(frames, height, width)
    levels = None if mask is None else mask_to_levels(torch.from_numpy(mask), size)
    cells = CleanCells(task.conditions, geometry.temporal).usual(1, size, levels)
    if cells is None:
        return None
    new = ~cells[0].numpy()
    per_frame = new[-(-np.arange(frames) // geometry.temporal)]  # latent frame 0 holds pixel frame 0 alone
    return per_frame.repeat(geometry.spatial, axis=1).repeat(geometry.spatial, axis=2)


def fit_to_shape(clip: Clip, shape: tuple[int, ...]) -> Clip:
    """A clip resized (bicubic) to height and width of `shape` (F,H,W,3), with frames repeated to its frame count."""
    frames, height, width = shape[:3]
    indices = simultaneous_frames(frames, len(clip))
    if clip.shape[1:3] == (height, width):
        return clip[indices]
    resized = [cv2.resize(clip[i], (width, height), interpolation=cv2.INTER_CUBIC) for i in indices]
    return np.stack(resized).astype(np.uint8)

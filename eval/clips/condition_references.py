"""The references of a batch under a condition: which clip's they are, their strength, and their mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.clips.attention_masks import fade_masks, fade_weights, half_masks
from eval.clips.conditions import Condition
from iclora_train.config import Task
from iclora_train.data.batch import Batch
from iclora_train.diffusion.sampler import Reference
from iclora_train.diffusion.training_inputs import reference_start


@dataclass(frozen=True)
class ConditionReferences:
    """What all references of a condition share. latent_frames: of the targets; temporal: frames of each of them.

    mask_left: of each clip, whether the half mask keeps the left half.
    """

    condition: Condition
    task: Task
    latent_frames: int
    temporal: int
    mask_left: Sequence[bool]
    device: torch.device

    def of(self, windows: Batch, donors: Batch) -> list[Reference]:
        """The references of the windows, or of the clips whose references they have; a condition may leave out one."""
        result = []
        for number in range(len(windows.references)):
            kind = self.condition.reference_of(number)
            if kind != "none":
                latents = (windows if kind == "own" else donors).references[number]
                start = reference_start(self.task.of_reference(number), windows, number, self.temporal)
                result.append(self._reference(latents, number, start))
        return result

    def _reference(self, latents: Tensor, number: int, start: int | Tensor) -> Reference:
        """Reference `number` (B,C,f,h,w), with the strength and the mask of the condition on its own grid.

        start: the target frame at which it begins, in its own clip; a drawn one (B,) also holds for the reference of
        another clip, so that only the content differs.
        """
        task, mask = self.task.of_reference(number), None
        if self.condition.mask == "half":
            mask = half_masks(self.mask_left, latents.shape[-1])
        elif self.condition.mask == "fade":
            mask = fade_masks(len(latents), latents.shape[2], self._fade_at(start))
        places = start if isinstance(start, Tensor) else None
        return Reference.of_task(
            latents.to(self.device), task, self.condition.strength_of(number), mask, places, number
        )

    def _fade_at(self, start: int | Tensor) -> list[float]:
        """The weight of the fade mask in the target's latent frame in which a reference begins; of all or (B,)."""
        f = self.latent_frames
        frames = start.tolist() if isinstance(start, Tensor) else [start]
        return [0.0 if f == 1 else fade_weights(f)[-(-frame // self.temporal)] for frame in frames]


def use_specification(task: Task) -> dict[str, Any]:
    """The factors and frames of a task's references, and their strengths at condition strength 1: JSON-serialisable.

    Keys that say nothing new are left out, so that clips keep their older hash.
    """
    places = [[more.downscale, more.temporal_scale, more.frame] for more in task.more_references]
    usual = [use.usual for use in task.reference_uses]
    return {
        "factors": [task.reference_downscale, task.reference_temporal_scale],
        **({} if task.reference_frame is None else {"frame": task.reference_frame}),
        **({"more_references": places} if places else {}),
        **({"strengths": usual} if set(usual) - {(1.0, 1.0)} else {}),
    }

"""A batch of latent clips, and the function that stacks clips into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from iclora_train.core.types import LatentPair


@dataclass(frozen=True)
class Batch:
    """B clips of one bucket, each with the same number of references.

    target      (B,C,f,h,w)
    references  one (B,C,f',h',w') for each reference
    text        (B,T,D) text features
    fps         (B,) frames per second; always on the host
    keys        B names of clips
    captions    B captions
    places      for each reference (B,) target frames that were drawn for it, on the host; None if none were
    audio       (B,C,l,m) latents of the sound, and audio_text (B,T,D'); None if a clip has none, or another length
    heard       (B,) bool, the clip has a sound of its own; on the host
    audio_reference  (B,C,l,m) latents of the audio references; None if a clip has none, or another length
    mask        (B,f,h,w) levels of the part of the target that is made anew, on the host; None if a clip has no mask
    """

    target: Tensor
    references: list[Tensor]
    text: Tensor
    fps: Tensor
    keys: list[str]
    captions: list[str] = field(default_factory=list)
    places: list[Tensor | None] = field(default_factory=list)
    mask: Tensor | None = None
    audio: Tensor | None = None
    audio_text: Tensor | None = None
    heard: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    audio_reference: Tensor | None = None

    @property
    def latents(self) -> list[Tensor]:
        """The target, then the references."""
        return [self.target, *self.references]

    @property
    def device(self) -> torch.device:
        """The device of the latents and the text features."""
        return self.target.device

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `change` to the latents and the text features. fps stays on the host."""
        references = [change(reference) for reference in self.references]
        of_sound = {name: getattr(self, name) for name in ("audio", "audio_text", "audio_reference")}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in of_sound.items() if tensor is not None}
        return replace(self, target=change(self.target), references=references, text=change(self.text), **changed)

    def to(self, device: torch.device) -> Batch:
        """Copy the latents and the text features to `device` without waiting for the copy.

        fps stays on the host: reading it on a GPU would make every step wait for the device.
        """
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Put all tensors into pinned memory. `DataLoader(pin_memory=True)` calls this."""
        return replace(self.map_tensors(Tensor.pin_memory), fps=self.fps.pin_memory())

    def clip(self, number: int) -> Batch:
        """A batch of one clip of this batch."""
        part = slice(number, number + 1)
        clip = self.map_tensors(lambda tensor: tensor[part])
        places = [None if frames is None else frames[part] for frames in self.places]
        mask = None if self.mask is None else self.mask[part]
        clip = replace(clip, fps=self.fps[part], keys=self.keys[part], captions=self.captions[part])
        return replace(clip, places=places, mask=mask, heard=self.heard[part])

    def place(self, number: int) -> Tensor | None:
        """The target frames (B,) that were drawn for reference `number`; None if none were."""
        return self.places[number] if number < len(self.places) else None


def collate(pairs: list[LatentPair]) -> Batch:
    """Stack latent pairs of one bucket into a batch.

    In a DataLoader worker, `default_collate` allocates every tensor in shared memory. The tensors are then not copied
    again, and no thread still uses them when the worker ends.
    """
    references = zip(*(pair.references for pair in pairs), strict=True)
    masks = [pair.mask for pair in pairs if pair.mask is not None]
    return Batch(
        audio=_stacked([pair.audio for pair in pairs]),
        audio_text=_stacked([pair.audio_text for pair in pairs]),
        audio_reference=_stacked([pair.audio_reference for pair in pairs]),
        heard=torch.tensor([pair.heard for pair in pairs]),
        target=default_collate([pair.target for pair in pairs]),
        references=[default_collate(list(clips)) for clips in references],
        text=default_collate([pair.text for pair in pairs]),
        fps=default_collate([torch.tensor(pair.fps) for pair in pairs]),
        keys=[pair.key for pair in pairs],
        captions=[pair.caption for pair in pairs],
        mask=default_collate(masks) if len(masks) == len(pairs) else None,
        places=[_places([pair.places[i] for pair in pairs]) for i in range(min(len(pair.places) for pair in pairs))],
    )


def _places(frames: list[int | None]) -> Tensor | None:
    """The places of a reference in several clips. Clips without one, of another source, have -1 beside others."""
    if all(frame is None for frame in frames):
        return None
    return torch.tensor([-1 if frame is None else frame for frame in frames])


def _stacked(tensors: list[Tensor | None]) -> Tensor | None:
    """One tensor of each clip, stacked, if every clip has it in one size."""
    present = [tensor for tensor in tensors if tensor is not None]
    if len(present) < len(tensors) or len({tensor.shape for tensor in present}) > 1:
        return None
    stacked: Tensor = default_collate(present)
    return stacked

"""Learned slots: one vector per reference, added to each of its tokens, so that the model sees which reference it is.

Without them two references of equal layout are told apart by their content only: their tokens have equal positions.
The vectors are one tensor of the adapter file, under KEY. Other programs ignore it (docs/adapters.md, "Learned slots").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.adapters.metadata import reference_layouts
from iclora_train.config import ConfigError
from iclora_train.ltx2.model.transformer import Transformer

# The key of the vectors (references, width). Without the prefix `diffusion_model.`, with which diffusers takes a key
# for a linear of a LoRA and refuses the file.
KEY = "reference_slots"
NOT_IN_BASE = (
    "it has learned slots of its references, which the files of a base have no place for: "
    "`python -m iclora_train.adapters convert --no-slots` writes it without them"
)
LIMIT = (
    f"ComfyUI, ltx-pipelines and diffusers leave out the learned slots of the references ({KEY}): there, references of "
    "equal layout are told apart by their content only"
)
INPUT_LINEAR = "patchify_proj"  # the linear to whose outputs the vectors are added


class ReferenceSlots(nn.Module):
    """The vectors (n,D) of n references, in the order of the task. strength: of the adapter."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(vectors)
        self.strength = 1.0

    def forward(self, group: Tensor) -> Tensor:
        """What is added to each token (N,D); group (N,): 0 is the target, which gets nothing, i is reference i.

        A product with rows of zeros and ones: its backward pass sums the tokens of a reference in a fixed order.
        """
        numbers = torch.arange(1, len(self.weight) + 1, device=group.device)
        return (group[:, None] == numbers).to(self.weight) @ (self.strength * self.weight)


def slots_in(transformer: Transformer) -> ReferenceSlots | None:
    """The slots of a transformer; None if it has none."""
    slots = transformer.reference_slots
    assert slots is None or isinstance(slots, ReferenceSlots)
    return slots


def set_slots(transformer: Transformer, vectors: Tensor | None) -> ReferenceSlots | None:
    """Give a transformer frozen slots with these vectors (n,D), or none."""
    slots = None
    if vectors is not None:
        device = next(transformer.parameters()).device
        slots = ReferenceSlots(vectors.to(device, torch.float32)).requires_grad_(False)
    transformer.reference_slots = slots
    return slots


def slot_findings(slots: Tensor, metadata: Mapping[str, str]) -> Iterator[str]:
    """Problems of the vectors of an adapter whose numbers are checked (`file.tensor_findings`)."""
    count = len(reference_layouts(metadata))
    if count < 2:
        yield (
            f"{KEY} holds learned slots, which tell several references apart, and the metadata name {count}: export "
            "the adapter again, or leave the slots out (`convert --no-slots`)"
        )
    elif slots.ndim != 2 or slots.shape[0] != count or not slots.numel():
        yield (
            f"{KEY} has the shape {tuple(slots.shape)}, not ({count}, width), one vector for each reference: export "
            "the adapter again"
        )


def width_findings(slots: Tensor | None, linears: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """A finding if the vectors do not fit a base; linears: module -> (out, in)."""
    width = linears[INPUT_LINEAR][0] if INPUT_LINEAR in linears else None
    if slots is not None and width not in (None, slots.shape[1]):
        yield f"{KEY}: the learned slots have {slots.shape[1]} channels, the base has {width}: wrong base model?"


def combined_slots(slots: Sequence[tuple[Tensor | None, float]], count: int) -> Tensor | None:
    """The weighted sum (count,D) of the vectors of several adapters; None if none has any.

    count: references of the combined adapter. ConfigError for vectors of different widths.
    """
    present = [(vectors.float(), strength) for vectors, strength in slots if vectors is not None]
    widths = {vectors.shape[1] for vectors, _ in present}
    if len(widths) > 1:
        raise ConfigError(f"{KEY}: the adapters have learned slots of different widths {sorted(widths)}: other bases?")
    if not present:
        return None
    return torch.stack([strength * F.pad(v, (0, 0, 0, count - len(v))) for v, strength in present]).sum(0)

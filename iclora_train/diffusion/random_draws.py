"""All random values of a training step, drawn on the host from one generator.

Every draw is a function of (seed, optimizer step, number of the batch in the step), so that a resumed run needs no
saved random state, and a step draws the same values on any number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from iclora_train.config import Flow
from iclora_train.config.audio_reference import AudioReference
from iclora_train.config.references import MoreReference
from iclora_train.diffusion.clean_cells import CleanCells
from iclora_train.diffusion.flow_matching import sample_sigma

WHOLE_FRAME = (0.0, 1.0, 0.0, 1.0)  # the region that is the whole frame
SEEDS = 1 << 62


@dataclass(frozen=True)
class RandomDraws:
    """All random values of a step, on the host, so that reading them never waits for a GPU.

    sigma              (B,)           noise level
    noise              (B,C,f,h,w)
    clean_first_frame  (B,) bool      the first latent frame is clean
    use_references     (B,) bool      the clip sees its references
    attention_strength (B,)           attention strength of the references; None when all are 1
    region             (B,4)          the references are masked outside this region; None when every region is whole
    locality_region    (B,4)          region of the locality term (`diffusion.loss`); None without flow.locality
    drop_caption       (B,) bool      the clip has the empty caption; None when every clip has its own
    clean              (B,f,h,w) bool cells of the target that are clean; None without task.conditions
    use_more           (B,n) bool     the clip sees each of the n task.more_references; None when every clip sees all
    reference_noise    (B,)           share of noise in the references' latents; None without flow.reference_noise
    noise_seed         int            seed of the references' noise
    audio_noise        (B,C,l,m)      of the sound; None where the video stream is trained alone
    use_audio          (B,) bool      the clip has its audio reference; None when every clip has it

    A region is its top, bottom, left and right edge as shares of the frame.
    """

    sigma: Tensor
    noise: Tensor
    clean_first_frame: Tensor
    use_references: Tensor
    attention_strength: Tensor | None = None
    region: Tensor | None = None
    locality_region: Tensor | None = None
    drop_caption: Tensor | None = None
    clean: Tensor | None = None
    use_more: Tensor | None = None
    reference_noise: Tensor | None = None
    noise_seed: int = 0
    audio_noise: Tensor | None = None
    use_audio: Tensor | None = None

    def sees(self, number: int) -> Tensor:
        """(B,) bool: the clip sees reference `number` (0: the first)."""
        if self.use_more is None or number == 0:
            return self.use_references
        return self.use_references & self.use_more[:, number - 1]

    def noisy_reference(self, latent: Tensor, number: int) -> Tensor:
        """Reference `number`, x (B,C,f,h,w), with its noise: (1 - share) x + share noise, equal in every call."""
        if self.reference_noise is None:
            return latent
        noise = torch.randn(latent.shape, generator=Generator().manual_seed((self.noise_seed + number) % SEEDS))
        share = self.reference_noise[:, None, None, None, None].to(latent)
        return latent + share * (noise.to(latent) - latent)


def step_generator(seed: int, step: int, slot: int) -> Generator:
    """The generator of batch number `slot` (from 0) of an optimizer step: a pure function of its arguments."""
    digest = hashlib.sha256(f"{seed} {step} {slot}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def draw_random(
    target: Tensor,
    flow: Flow,
    generator: Generator,
    clean_cells: CleanCells | None = None,
    more_references: Sequence[MoreReference] = (),
    masks: Tensor | None = None,
) -> RandomDraws:
    """Draw the random values for a target (B,C,f,h,w) on the CPU, so that they are the same on every device.

    masks: levels (B,f,h,w) of the clips' own masks, for `clean_cells`.
    """
    batch, _, f, h, w = target.shape
    sigma = sample_sigma(batch, f * h * w, flow, generator)
    noise = torch.randn(target.shape, generator=generator)
    clean_first_frame = torch.rand(batch, generator=generator) < flow.first_frame_p
    use_references = torch.rand(batch, generator=generator) < flow.reference_p
    # Optional values are drawn last, so that a setting does not change the draws before it.
    strength = draw_strength(batch, flow.attention_strength_p, generator) if flow.attention_strength_p else None
    region = draw_region(batch, flow.region_mask_p, generator) if flow.region_mask_p else None
    locality_region = draw_region(batch, flow.locality_p, generator) if flow.locality else None
    dropped = torch.rand(batch, generator=generator) < flow.caption_dropout_p if flow.caption_dropout_p else None
    drop_caption = dropped if dropped is not None and dropped.any() else None
    clean = None if clean_cells is None else clean_cells.draw(batch, (f, h, w), generator, masks)
    of_references = (use_references, strength, region, locality_region)
    use_more = draw_more(batch, [reference.p for reference in more_references], generator)
    draws = RandomDraws(sigma, noise, clean_first_frame, *of_references, drop_caption, clean, use_more)
    if not flow.reference_noise:
        return draws
    shares = flow.reference_noise * torch.rand(batch, generator=generator)
    return replace(draws, reference_noise=shares, noise_seed=int(torch.randint(SEEDS, (), generator=generator)))


def draw_more(batch: int, shares: Sequence[float], generator: Generator) -> Tensor | None:
    """Whether each clip sees each further reference, (B,n), with its probability in `shares`; None if all do."""
    if all(share == 1 for share in shares):
        return None
    drawn = torch.rand(batch, len(shares), generator=generator) < torch.tensor(shares)
    return None if drawn.all() else drawn


def draw_audio_reference(
    use_references: Tensor, reference: AudioReference | None, generator: Generator
) -> Tensor | None:
    """Whether each clip has its audio reference, (B,); None if all have, or the task has none. A clip that is trained
    without its references has no audio reference either."""
    if reference is None:
        return None
    drawn = use_references
    if reference.p < 1:
        drawn = drawn & (torch.rand(len(drawn), generator=generator) < reference.p)
    return None if drawn.all() else drawn


def draw_strength(batch: int, p: float, generator: Generator) -> Tensor | None:
    """Attention strengths (B,): uniform in (0, 1) with probability p, else 1. None when all are 1."""
    selected = torch.rand(batch, generator=generator) < p
    strength = torch.where(selected, torch.rand(batch, generator=generator), 1.0)
    return strength if selected.any() else None


def draw_region(batch: int, p: float, generator: Generator) -> Tensor | None:
    """Regions (B,4), edges top, bottom, left, right in [0, 1]: a part of the frame with probability p, else all of it.

    Half of the parts are rectangles with sides uniform in [0.25, 1]. Half are one side of a straight cut through the
    whole frame at 0.25 to 0.75, as in masks for several references. None when every region is the whole frame.
    """
    selected, halved = (torch.rand(batch, 1, generator=generator) < share for share in (p, 0.5))
    sides = 0.25 + 0.75 * torch.rand(batch, 2, generator=generator)
    starts = torch.rand(batch, 2, generator=generator) * (1 - sides)
    rectangle = torch.stack([starts, starts + sides], dim=2).flatten(1)  # (B,4)
    cut = 0.25 + 0.5 * torch.rand(batch, 1, generator=generator)
    edge = torch.randint(4, (batch, 1), generator=generator)  # the edge that moves to the cut
    whole = torch.tensor(WHOLE_FRAME).expand(batch, 4)
    half = whole.scatter(1, edge, cut)
    return torch.where(selected, torch.where(halved, half, rectangle), whole) if selected.any() else None

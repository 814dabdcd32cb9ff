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
from iclora_train.config.reference_use import Drawn, ReferenceUse
from iclora_train.config.references import MoreReference
from iclora_train.core.device import to_device
from iclora_train.diffusion.clean_cells import CleanCells
from iclora_train.diffusion.flow_matching import sample_sigma

WHOLE_FRAME = (0.0, 1.0, 0.0, 1.0)  # the region that is the whole frame
SEEDS = 1 << 62


@dataclass(frozen=True)
class ReferenceDraws:
    """How each clip uses one reference, on the host.

    attention_strength (B,)   None when all are 1
    region             (B,4)  the reference is masked outside this region; None when every region is whole
    noise              (B,)   share of noise in its latents; None when all are 0
    strength           (B,)   its tokens have (1 - strength) of the noise level; None when training gives 1 to all clips
    """

    attention_strength: Tensor | None = None
    region: Tensor | None = None
    noise: Tensor | None = None
    strength: Tensor | None = None


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
    of_references                     the draws of each reference, in order; empty while all share the values above
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
    of_references: tuple[ReferenceDraws, ...] = ()

    def sees(self, number: int) -> Tensor:
        """(B,) bool: the clip sees reference `number` (0: the first)."""
        if self.use_more is None or number == 0:
            return self.use_references
        return self.use_references & self.use_more[:, number - 1]

    def leaves_out(self, number: int) -> Tensor | None:
        """(B,) bool: the clip sees its first reference, but not reference `number`. None: no clip does."""
        if self.use_more is None or number == 0:
            return None
        left_out = self.use_references & ~self.use_more[:, number - 1]
        return left_out if left_out.any() else None

    def of_reference(self, number: int) -> ReferenceDraws:
        """How each clip uses reference `number`. In a task that lists one reference it holds for all of a clip."""
        if not self.of_references:
            return ReferenceDraws(self.attention_strength, self.region, self.reference_noise)
        return self.of_references[min(number, len(self.of_references) - 1)]

    def noisy_reference(self, latent: Tensor, number: int) -> Tensor:
        """Reference `number`, x (B,C,f,h,w), as the model gets it, equal in every call.

        Noise that the model is not told of comes first: (1 - share) x + share noise. Then, for strengths below 1, the
        reference is noised to the level of its tokens, (1 - strength) sigma, with other noise.
        """
        draws = self.of_reference(number)
        latent = _add_noise(latent, draws.noise, self.noise_seed + number)
        level = None if draws.strength is None else (1 - draws.strength) * self.sigma
        return _add_noise(latent, level, self.noise_seed + SEEDS // 2 + number)


def _add_noise(latent: Tensor, share: Tensor | None, seed: int) -> Tensor:
    """(1 - share) x + share noise for latents x (B,C,f,h,w) and shares (B,) on the host; x itself for None."""
    if share is None:
        return latent
    noise = torch.randn(latent.shape, generator=Generator().manual_seed(seed % SEEDS))
    share, noise = (to_device(value, latent.device).to(latent) for value in (share, noise))
    return latent + share[:, None, None, None, None] * (noise - latent)


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
    uses: Sequence[ReferenceUse] = (),
) -> RandomDraws:
    """Draw the random values for a target (B,C,f,h,w) on the CPU, so that they are the same on every device.

    masks: levels (B,f,h,w) of the clips' own masks, for `clean_cells`. uses: of each reference (`Task.reference_uses`).
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
    if flow.reference_noise:
        shares = flow.reference_noise * torch.rand(batch, generator=generator)
        draws = replace(draws, reference_noise=shares, noise_seed=_draw_seed(generator))
    return draws if not any(use.as_dict() for use in uses) else draw_uses(draws, uses, generator)


def _draw_seed(generator: Generator) -> int:
    return int(torch.randint(SEEDS, (), generator=generator))


def draw_uses(draws: RandomDraws, uses: Sequence[ReferenceUse], generator: Generator) -> RandomDraws:
    """The draws with those of each reference (`uses`). What its settings leave open is the value of all references."""
    seed, batch, shared = _draw_seed(generator), len(draws.sigma), draws.of_reference(0)
    of_references = []
    for use in uses:
        attention, noise, strength = use.drawn_attention, use.drawn_noise, use.drawn_strength
        of_references.append(
            ReferenceDraws(
                draw_values(batch, attention, 1.0, generator) if attention else shared.attention_strength,
                draw_region(batch, p, generator) if (p := use.region_mask_p) is not None else shared.region,
                draw_values(batch, noise, 0.0, generator) if noise else shared.noise,
                None if strength is None else _uniform(batch, strength, generator),
            )
        )
    return replace(draws, of_references=tuple(of_references), noise_seed=draws.noise_seed or seed)


def usual_uses(batch: int, uses: Sequence[ReferenceUse]) -> tuple[ReferenceDraws, ...]:
    """The usual strengths of each reference (`ReferenceUse.usual`), for `RandomDraws.of_references`."""
    of_references = []
    for use in uses:
        of_all = [None if value == 1 else torch.full((batch,), value) for value in use.usual]
        of_references.append(ReferenceDraws(strength=of_all[0], attention_strength=of_all[1]))
    return tuple(of_references)


def draw_values(batch: int, values: Drawn, neutral: float, generator: Generator) -> Tensor | None:
    """Values (B,), uniform in their bounds with their probability, else `neutral`. None when all are neutral."""
    selected = torch.rand(batch, generator=generator) < values.p
    result = torch.where(selected, _uniform(batch, values, generator), neutral)
    return None if (result == neutral).all() else result


def _uniform(batch: int, values: Drawn, generator: Generator) -> Tensor:
    """(B,), within the bounds."""
    return values.low + (values.high - values.low) * torch.rand(batch, generator=generator)


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

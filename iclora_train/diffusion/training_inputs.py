"""What one step shows the transformer: everything random drawn from one generator, a batch laid out as tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from iclora_train.config import ConfigError, Flow, Task
from iclora_train.core.types import Geometry, Tokens
from iclora_train.data.batch import Batch
from iclora_train.diffusion.flow_matching import add_noise, sample_sigma, target_velocity
from iclora_train.diffusion.reference import append_reference, target_tokens, to_tokens

WHOLE_FRAME = (0.0, 1.0, 0.0, 1.0)  # the region that is all of the frame
SHARED = 4  # shapes of batches whose positions are kept
_KNOWN: dict[Hashable, Tensor] = {}


@dataclass(frozen=True)
class RandomDraws:
    """All that is random in a step: sigma (B,), noise (B,C,f,h,w); bool (B,): first frame given, reference shown. On
    the host, so that nothing waits for a GPU to know them.

    Where the settings ask for them: attention strength of the references (B,), the region that they are seen in
    (B,4), its top, bottom, left and right edge as shares of the frame, and a region (B,4) that is to be independent of
    what they show outside of it.
    """

    sigma: Tensor
    noise: Tensor
    clean_first_frame: Tensor
    use_references: Tensor
    attention_strength: Tensor | None = None
    region: Tensor | None = None
    locality_region: Tensor | None = None


def step_generator(seed: int, batch: int, rank: int) -> Generator:
    """The generator of one batch on one rank. A pure function, so that resuming needs no saved random state."""
    digest = hashlib.sha256(f"{seed} {batch} {rank}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def draw_random(target: Tensor, flow: Flow, generator: Generator) -> RandomDraws:
    """Draws for a target (B,C,f,h,w), made on the CPU, so that they are the same whatever trains."""
    batch, _, f, h, w = target.shape
    sigma = sample_sigma(batch, f * h * w, flow, generator)
    noise = torch.randn(target.shape, generator=generator)
    first = torch.rand(batch, generator=generator) < flow.first_frame_p
    shown = torch.rand(batch, generator=generator) < flow.reference_p
    # What a setting switches on is drawn after what is always drawn, so that it changes nothing of that.
    strength = draw_strength(batch, flow.attention_strength_p, generator) if flow.attention_strength_p else None
    region = draw_region(batch, flow.region_mask_p, generator) if flow.region_mask_p else None
    local = draw_region(batch, flow.locality_p, generator) if flow.locality else None
    return RandomDraws(sigma, noise, first, shown, strength, region, local)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. To a GPU it goes from pinned memory: the host does not wait until what was asked for is
    computed."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def draw_strength(batch: int, p: float, generator: Generator) -> Tensor | None:
    """Attention strengths (B,), with probability p uniform in (0, 1), else 1; None where all are 1."""
    chosen = torch.rand(batch, generator=generator) < p
    drawn = torch.where(chosen, torch.rand(batch, generator=generator), 1.0)
    return drawn if chosen.any() else None


def draw_region(batch: int, p: float, generator: Generator) -> Tensor | None:
    """Regions (B,4), edges top, bottom, left, right in [0, 1]; with probability p a part of the frame, else all of it.

    Half of the parts are rectangles with sides uniform in [.25, 1], half lie on one side of a straight cut at .25 to
    .75 through the whole frame: what masks of several references look like. None where all regions are whole.
    """
    chosen, halved = (torch.rand(batch, 1, generator=generator) < share for share in (p, 0.5))
    sides = 0.25 + 0.75 * torch.rand(batch, 2, generator=generator)
    begins = torch.rand(batch, 2, generator=generator) * (1 - sides)
    rectangle = torch.stack([begins, begins + sides], dim=2).flatten(1)  # (B,4)
    cut = 0.25 + 0.5 * torch.rand(batch, 1, generator=generator)
    kept = torch.randint(4, (batch, 1), generator=generator)  # which edge is moved to the cut
    whole = torch.tensor(WHOLE_FRAME).expand(batch, 4)
    half = whole.scatter(1, kept, cut)
    return torch.where(chosen, torch.where(halved, half, rectangle), whole) if chosen.any() else None


def region_mask(region: Tensor, height: int, width: int) -> Tensor:
    """The share of each cell of a grid that lies within regions (B,4): still masks (B,1,h,w)."""

    def covered(edges: Tensor, count: int) -> Tensor:  # (B,2) -> (B,count)
        cells = torch.arange(count, device=edges.device)
        begin, end = (edges * count)[:, :1], (edges * count)[:, 1:]
        return (torch.minimum(end, cells + 1.0) - torch.maximum(begin, cells)).clamp(0, 1)

    return (covered(region[:, :2], height)[:, :, None] * covered(region[:, 2:], width)[:, None])[:, None]


def region_to_tokens(region: Tensor, size: tuple[int, int, int]) -> Tensor:
    """The share of each token of a latent grid (f,h,w) that lies within regions (B,4): (B,n)."""
    frames, height, width = size
    return region_mask(region, height, width).expand(-1, frames, -1, -1).flatten(1)


def build_tokens(
    batch: Batch, draws: RandomDraws, task: Task, geometry: Geometry, within: Tensor | None = None
) -> tuple[Tokens, Tensor]:
    """Tokens of a batch, noisy target and clean references, and the velocity (B,n,C) of its n target tokens.

    A clip whose reference is not shown has attention weight 0 on it; the draws' strength and region weight those that
    are shown, and so does `within`, one more region (B,4). ConfigError when the references' size does not fit the
    task's factors.
    """
    clean = batch.target
    sigma, noise, first = (
        to_device(drawn, clean.device) for drawn in (draws.sigma, draws.noise, draws.clean_first_frame)
    )
    noisy = add_noise(clean, noise, sigma)
    given = first[:, None, None, None, None]
    noisy = torch.cat([torch.where(given, clean[:, :, :1], noisy[:, :, :1]), noisy[:, :, 1:]], dim=2)
    tokens = target_tokens(noisy, sigma, geometry, to_device(batch.fps.float(), clean.device), first)
    regions = [to_device(region, clean.device) for region in (draws.region, within) if region is not None]
    strength: float | Tensor = 1.0
    if draws.attention_strength is not None or regions or not draws.use_references.all():
        strength = to_device(
            (1.0 if draws.attention_strength is None else draws.attention_strength) * draws.use_references, clean.device
        )
    for reference in batch.references:
        require_factors(clean, reference, task, batch.keys[0])
        tokens = append_reference(
            tokens,
            reference,
            task.reference_downscale,
            task.reference_temporal_scale,
            attention_strength=strength,
            attention_mask=_seen(regions, *reference.shape[3:]),
        )
    shapes = tuple(tuple(latent.shape) for latent in batch.latents)
    factors = (task.reference_downscale, task.reference_temporal_scale)
    position = _shared(tokens.position, (shapes, tuple(batch.fps.tolist()), factors, geometry, clean.device))
    return replace(tokens, position=position), to_tokens(target_velocity(clean, noise))


def _shared(position: Tensor, key: Hashable) -> Tensor:
    """The first positions that came with this key: one tensor for all batches of a shape, so that what depends on it is
    made once (`rope.RopeCache`)."""
    if key not in _KNOWN and len(_KNOWN) == SHARED:
        del _KNOWN[next(iter(_KNOWN))]
    return _KNOWN.setdefault(key, position)


def _seen(regions: list[Tensor], height: int, width: int) -> Tensor | None:
    """The share of each cell of a grid that lies within all regions, (B,4) each: still masks (B,1,h,w)."""
    masks = [region_mask(region, height, width) for region in regions]
    return torch.stack(masks).prod(0) if masks else None


def require_factors(target: Tensor, reference: Tensor, task: Task, key: str) -> None:
    """ConfigError unless a reference (B,C,f',h',w') is smaller than its target by exactly the declared factors."""
    frames, height, width = target.shape[2:]
    ref_frames, ref_height, ref_width = reference.shape[2:]
    space, time = task.reference_downscale, task.reference_temporal_scale
    if (height, width) != (ref_height * space, ref_width * space):
        raise ConfigError(
            f"task.reference_downscale={space}: clip {key} has a latent reference of {ref_width}x{ref_height} for a "
            f"target of {width}x{height}; declare the factor they were made with, or prepare the pairs again"
        )
    if frames - 1 != (ref_frames - 1) * time:
        raise ConfigError(
            f"task.reference_temporal_scale={time}: clip {key} has {ref_frames} latent frames of reference for "
            f"{frames} of target; declare the factor they were made with, or prepare the pairs again"
        )

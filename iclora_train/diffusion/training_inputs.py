"""The inputs of a training step: a batch and its random draws as tokens.

Batches of one shape share one position tensor (`_position_cache`, keyed by the shapes, frame rates, factors, geometry
and device of a batch). `ltx2.model.rope.RopeCache` relies on this: it finds its rotation tables by the identity of the
position tensor. With a new tensor in every step it would compute equal tables in every step.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor

from iclora_train.config import ConfigError, Task, require
from iclora_train.config.places import is_drawn
from iclora_train.config.references import reference_keys
from iclora_train.core.device import to_device
from iclora_train.core.types import Geometry, Tokens
from iclora_train.data.batch import Batch
from iclora_train.diffusion.flow_matching import add_noise, target_velocity
from iclora_train.diffusion.random_draws import RandomDraws
from iclora_train.diffusion.reference import append_reference, snap_frame, target_tokens, to_tokens

POSITION_CACHE_SIZE = 4  # batch shapes
_position_cache: dict[Hashable, Tensor] = {}


def region_mask(region: Tensor, height: int, width: int) -> Tensor:
    """The share of each grid cell that is inside regions (B,4): still masks (B,1,h,w)."""

    def coverage(edges: Tensor, count: int) -> Tensor:  # (B,2) -> (B,count)
        cells = torch.arange(count, device=edges.device)
        start, end = (edges * count)[:, :1], (edges * count)[:, 1:]
        return (torch.minimum(end, cells + 1.0) - torch.maximum(start, cells)).clamp(0, 1)

    return (coverage(region[:, :2], height)[:, :, None] * coverage(region[:, 2:], width)[:, None])[:, None]


def region_to_tokens(region: Tensor, size: tuple[int, int, int]) -> Tensor:
    """The share of each token of a latent grid (f,h,w) that is inside regions (B,4): (B,n)."""
    frames, height, width = size
    return region_mask(region, height, width).expand(-1, frames, -1, -1).flatten(1)


def drop_captions(batch: Batch, draws: RandomDraws, empty: Tensor | None) -> Batch:
    """The batch with the text features of the empty caption, (T,D), for the clips of `draws.drop_caption`.

    ConfigError when the features of the empty caption have another size than those of the clips.
    """
    if draws.drop_caption is None:
        return batch
    assert empty is not None, "flow.caption_dropout_p needs the features of the empty caption"
    text = batch.text
    require(
        empty.shape == text.shape[1:],
        f"flow.caption_dropout_p: the empty caption of data.root has text features of {tuple(empty.shape)}, clip "
        f"{batch.keys[0]} of {tuple(text.shape[1:])}: delete data.root and run data_prep again",
    )
    dropped = to_device(draws.drop_caption, text.device)
    return replace(batch, text=torch.where(dropped[:, None, None], empty.to(text), text))


def build_tokens(
    batch: Batch, draws: RandomDraws, task: Task, geometry: Geometry, mask_region: Tensor | None = None
) -> tuple[Tokens, Tensor]:
    """Tokens of a batch (noisy target, clean references), and the velocity (B,n,C) of its n target tokens.

    A reference has attention weight 0 in the clips that do not see it (`draws.sees`). Otherwise its weight is its
    attention strength inside its region (`draws.of_reference`) and inside `mask_region`, one more region (B,4), and 0
    outside.
    With `task.video_given` the target is clean, at noise level 0 and without a loss.
    ConfigError when the references' size does not fit the task's factors.
    """
    clean = batch.target
    device = clean.device
    sigma, noise = to_device(draws.sigma, device), to_device(draws.noise, device)
    first = torch.arange(clean.shape[2], device=device) == 0
    kept = (to_device(draws.clean_first_frame, device)[:, None] & first)[:, :, None, None]  # (B,f,1,1)
    if draws.clean is not None:
        kept = kept | to_device(draws.clean, device)  # (B,f,h,w)
    if task.video_given:  # row 0 is 0 too, because the audio stream sees it
        sigma, kept = torch.zeros_like(sigma), torch.ones_like(kept)
    noisy = torch.where(kept[:, None], clean, add_noise(clean, noise, sigma))
    tokens = target_tokens(noisy, sigma, geometry, to_device(batch.fps.float(), device), kept)
    factors = []
    for number, (reference, part) in enumerate(zip(batch.references, tasks_of(task, batch), strict=True)):
        require_factors(clean, reference, part, batch.keys[0], number)
        frame = reference_start(part, batch, number, geometry.temporal)
        use = draws.of_reference(number)
        regions = [to_device(region, device) for region in (use.region, mask_region) if region is not None]
        tokens = append_reference(
            tokens,
            draws.noisy_reference(reference, number),
            part.reference_downscale,
            part.reference_temporal_scale,
            1.0 if use.strength is None else to_device(use.strength, device),
            attention_strength=_attention_strength(draws, number, bool(regions), device),
            attention_mask=_regions_mask(regions, *reference.shape[3:]),
            frame=to_device(frame, device) if isinstance(frame, Tensor) else frame,
        )
        tokens = _without_left_out(tokens, draws.leaves_out(number), reference[0, 0].numel())
        place = tuple(frame.tolist()) if isinstance(frame, Tensor) else frame
        factors.append((part.reference_downscale, part.reference_temporal_scale, place))
    shapes = tuple(tuple(latent.shape) for latent in batch.latents)
    key = (shapes, tuple(batch.fps.tolist()), tuple(factors), geometry, device)
    position = _shared_position(tokens.position, key)
    return replace(tokens, position=position), to_tokens(target_velocity(clean, noise))


def _without_left_out(tokens: Tokens, left_out: Tensor | None, count: int) -> Tokens:
    """The tokens with the last `count`, those of a reference, marked as absent in the clips (B,) that leave it out."""
    if left_out is None and tokens.absent is None:
        return tokens
    batch, total = tokens.latent.shape[:2]
    absent = torch.zeros(batch, total, dtype=torch.bool, device=tokens.latent.device)
    if tokens.absent is not None:
        absent[:, : tokens.absent.shape[1]] = tokens.absent
    if left_out is not None:
        absent[:, total - count :] = to_device(left_out, absent.device)[:, None]
    return replace(tokens, absent=absent)


def tasks_of(task: Task, batch: Batch) -> list[Task]:
    """The task of each reference of a batch (`Task.of_reference`).

    ConfigError when the clips have another number of references than task.more_references makes.
    """
    count, names = len(batch.references), task.reference_names
    require(
        count in (0, len(names)) or not task.more_references,
        f"clip {batch.keys[0]} has {count} references, and the task has {len(names)} ({', '.join(names)}): delete "
        "data.root and run data_prep again",
    )
    return [task.of_reference(number) for number in range(count)]


def _attention_strength(draws: RandomDraws, number: int, masked: bool, device: torch.device) -> float | Tensor:
    """The attention strength of reference `number`: of all clips, or (B,). masked: it also has a mask."""
    sees, drawn = draws.sees(number), draws.of_reference(number).attention_strength
    if drawn is None and not masked and sees.all():
        return 1.0
    strengths = 1.0 if drawn is None else drawn
    return to_device(strengths * sees, device)


def _shared_position(position: Tensor, key: Hashable) -> Tensor:
    """The position tensor that was first stored under this key: one tensor for all batches of a shape.

    Other caches are keyed by the identity of this tensor (see the module docstring). The oldest entry is dropped when
    the cache is full.
    """
    if key not in _position_cache and len(_position_cache) == POSITION_CACHE_SIZE:
        del _position_cache[next(iter(_position_cache))]
    return _position_cache.setdefault(key, position)


def _regions_mask(regions: list[Tensor], height: int, width: int) -> Tensor | None:
    """The share of each grid cell that is inside all regions, (B,4) each: still masks (B,1,h,w)."""
    masks = [region_mask(region, height, width) for region in regions]
    return torch.stack(masks).prod(0) if masks else None


def reference_start(task: Task, batch: Batch, number: int, temporal: int) -> int | Tensor:
    """The target frame at which reference `number` (0: the first) of a batch begins: of all clips, or, where it is
    drawn for each clip, (B,) on the host. temporal: pixel frames of a latent frame.

    ConfigError if the reference would not lie in the target. A prepared clip has a first latent frame that holds one
    frame, which a clip inside the target does not have: only a picture can begin after frame 0.
    """
    length, frames, frame_key = batch.references[number].shape[2], batch.target.shape[2], reference_keys(number)[2]
    if task.reference_frame is None:
        return 0
    if is_drawn(task.reference_frame):
        return _drawn_start(task, batch, number, (frames - 1) * temporal + 1)
    start = snap_frame(task.reference_frame, length, frames, temporal, key=frame_key)
    require(
        start == 0 or length == 1,
        f"{frame_key}={task.reference_frame}: the reference is a clip of {length} latent frames, and only a reference "
        f"of one frame can begin after frame 0: give one frame, or set {frame_key}=0",
    )
    return start


def _drawn_start(task: Task, batch: Batch, number: int, frames: int) -> Tensor:
    """The target frames (B,) that preparation drew for reference `number`, of targets of `frames` pixel frames."""
    key, places = reference_keys(number)[2], batch.place(number)
    length = batch.references[number].shape[2]
    require(
        length == 1,
        f"{key}={task.reference_frame}: the reference of clip {batch.keys[0]} has {length} latent frames, and only a "
        "picture has a place of its own in each clip: prepare the pairs again",
    )
    missing = [clip for i, clip in enumerate(batch.keys) if places is None or not 0 <= int(places[i]) < frames]
    require(
        not missing,
        f"{key}={task.reference_frame}: clip {missing and missing[0]} has no place for its reference in its {frames} "
        "frames: prepare its pairs with this setting",
    )
    assert places is not None
    return places


def require_factors(target: Tensor, reference: Tensor, task: Task, key: str, number: int = 0) -> None:
    """ConfigError unless a reference (B,C,f',h',w') is smaller than its target by exactly the declared factors.

    number: of the reference, 0 for the first.
    """
    space_key, time_key, _ = reference_keys(number)
    frames, height, width = target.shape[2:]
    ref_frames, ref_height, ref_width = reference.shape[2:]
    space, time = task.reference_downscale, task.reference_temporal_scale
    if (height, width) != (ref_height * space, ref_width * space):
        raise ConfigError(
            f"{space_key}={space}: clip {key} has a latent reference of {ref_width}x{ref_height} for a "
            f"target of {width}x{height}; declare the factor they were made with, or prepare the pairs again"
        )
    if task.reference_frame is None and frames - 1 != (ref_frames - 1) * time:
        raise ConfigError(
            f"{time_key}={time}: clip {key} has {ref_frames} latent frames of reference for "
            f"{frames} of target; declare the factor they were made with, or prepare the pairs again"
        )

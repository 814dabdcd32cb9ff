"""The in-context idea: clean tokens of a reference video follow the noisy tokens of the target in one sequence.

`target_tokens` makes the tokens of a noisy target, and `append_reference` appends the tokens of a reference. Training
and sampling build the transformer's input with these two functions only.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from iclora_train.config import frame_from_start, require
from iclora_train.core.types import Geometry, Tokens

CLEAN_ROW = 1  # of `Tokens.sigma`: row 0 is the target's noise level, row 1 is 0


def to_tokens(latent: Tensor) -> Tensor:
    """Latent clips (B,C,f,h,w) as tokens (B,N,C); time varies slowest, width fastest."""
    return latent.flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
    """The inverse of `to_tokens` for a latent grid (f,h,w)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def grid_position(
    size: tuple[int, int, int], geometry: Geometry, device: torch.device | str | None = None, causal: bool = True
) -> Tensor:
    """Position of each token of a latent grid (f,h,w): fp32 (3,N,2), [start, end) in pixel frames, pixels, pixels.

    The first latent frame holds pixel frame 0 alone; latent frame k starts at pixel frame temporal*(k-1)+1
    (`get_pixel_coords` with its causal fix in Lightricks' ltx-core). causal=False: each holds `temporal` frames.
    """
    cells = [torch.arange(n + 1, dtype=torch.float32, device=device) for n in size]
    time = cells[0] * geometry.temporal
    if causal:
        time = (time + 1 - geometry.temporal).clamp(min=0)
    edges = (time, *(axis * geometry.spatial for axis in cells[1:]))
    starts = torch.stack(torch.meshgrid(*(e[:-1] for e in edges), indexing="ij"))  # (3,f,h,w)
    ends = torch.stack(torch.meshgrid(*(e[1:] for e in edges), indexing="ij"))
    return torch.stack([starts, ends], dim=-1).flatten(1, 3)


def target_tokens(
    noisy: Tensor, sigma: Tensor, geometry: Geometry, fps: float | Tensor, clean: Tensor | None = None
) -> Tokens:
    """Tokens of a target (B,C,f,h,w) at noise level sigma (B,); fps of all clips, or (B,).

    Where `clean` (B,f,h,w) bool, or a shape that expands to it, is True, the caller has put clean latents. These tokens
    have noise level 0 and do not count in the loss.
    """
    batch, _, f, h, w = noisy.shape
    count, device = f * h * w, noisy.device
    rate = fps.to(device, torch.float32) if isinstance(fps, Tensor) else torch.full((batch,), float(fps), device=device)
    position = grid_position((f, h, w), geometry, device).repeat(batch, 1, 1, 1)  # (B,3,N,2)
    position[:, 0] /= rate[:, None, None]
    first = torch.arange(count, device=device).expand(batch, count) < h * w  # (B,N)
    if clean is None:
        clean = torch.zeros(batch, 1, 1, 1, dtype=torch.bool, device=device)
    clean = clean.expand(batch, f, h, w).flatten(1)  # (B,N)
    return Tokens(
        latent=to_tokens(noisy),
        sigma=torch.stack([sigma, torch.zeros_like(sigma)], dim=1),  # (B,2)
        level=clean.long() * CLEAN_ROW,
        position=position,
        group=torch.zeros(count, dtype=torch.long, device=device),
        loss_mask=~clean,
        keyframe=first,
        geometry=geometry,
        fps=rate,
    )


def append_reference(
    tokens: Tokens,
    latent: Tensor,
    downscale: int = 1,
    temporal_scale: int = 1,
    strength: float | Tensor = 1.0,
    attention_strength: float | Tensor = 1.0,
    attention_mask: Tensor | None = None,
    frame: int | Tensor = 0,
    clip: bool | None = None,
    number: int | None = None,
) -> Tokens:
    """Append the tokens of a reference (B,C,f,h,w).

    latent: clean, or for strength < 1 already noised by the caller to level (1 - strength) sigma. strength: of all
    clips, or (B,).
    downscale: the reference has this factor fewer pixels per side than the target. Its spatial positions are multiplied
    by it.
    temporal_scale: the reference has this factor S fewer frames per second. Its times follow its own fps, shifted back
    by (S - 1) target frames and clamped at 0 (Lightricks' trainer).
    attention_strength, of all clips or (B,), and attention_mask on reference pixels (`mask_to_grid`): their product is
    the weight w of a reference token. It enters the attention logits as log(w) (`ltx2.model.weighted_attention`).
    frame: target frame at which the reference begins (`snap_frame`). A clip that begins after frame 0 does not have a
    separate first frame: each of its latent frames holds `temporal` frames. (B,): of pictures, one for each clip.
    clip: whether it is a clip; None: if it has several latent frames. False: a picture, which holds one frame.
    number: of the reference in its task, 0 for the first; None: it follows the reference before it.
    """
    batch, _, *size = latent.shape
    f, h, w = size
    count, device = f * h * w, latent.device
    assert f == 1 or not isinstance(frame, Tensor), "only a picture has a place of its own in each clip"
    causal = isinstance(frame, Tensor) or frame == 0 or not (f > 1 if clip is None else clip)
    position = grid_position((f, h, w), tokens.geometry, device, causal).repeat(batch, 1, 1, 1)  # (B,3,n,2)
    shift = temporal_scale - 1 if causal else 0
    begin = frame.to(device)[:, None, None] if isinstance(frame, Tensor) else frame
    position[:, 0] = ((position[:, 0] * temporal_scale - shift).clamp(min=0) + begin) / tokens.fps[:, None, None]
    position[:, 1:] *= downscale
    sigma, row = _append_level(tokens.sigma, strength)
    group = tokens.group[-1:] + 1 if number is None else torch.full_like(tokens.group[-1:], number + 1)

    def zeros(dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, count, dtype=dtype, device=device)

    return replace(
        tokens,
        latent=torch.cat([tokens.latent, to_tokens(latent).to(tokens.latent)], dim=1),
        sigma=sigma,
        level=torch.cat([tokens.level, zeros(torch.long) + row], dim=1),
        position=torch.cat([tokens.position, position], dim=2),
        group=torch.cat([tokens.group, group.expand(count)]),
        loss_mask=torch.cat([tokens.loss_mask, zeros(torch.bool)], dim=1),
        keyframe=torch.cat([tokens.keyframe, zeros(torch.bool)], dim=1),
        weight=_append_weight(tokens, (f, h, w), batch, attention_strength, attention_mask),
    )


def latent_frame_start(frame: int, temporal: int) -> int:
    """The first frame of the latent frame that holds `frame`: 0, 1, 1 + temporal, ...; likewise before frame 0."""
    return 0 if frame == 0 else (frame - 1) // temporal * temporal + 1


def snap_frame(
    frame: int, length: int, frames: int, temporal: int, clip: bool | None = None, key: str = "reference_frame"
) -> int:
    """Snap `frame` to a target frame at which a reference of `length` latent frames can begin.

    frames: latent frames of the target. A negative `frame` counts from the target's end. A clip begins where a latent
    frame begins: 0, 1, 1 + temporal, ... (ComfyUI's LTXVAddGuide). clip: whether it is one; None: if `length` is above
    1. ConfigError, which names `key`, when the reference would begin or end outside the target.
    """
    start = frame_from_start(key, frame, (frames - 1) * temporal + 1)
    if length > 1 if clip is None else clip:
        start = latent_frame_start(start, temporal)
    first = -(-start // temporal)  # latent frame of the target
    require(
        first + length <= frames,
        f"{key}={frame}: a reference of {length} latent frames at frame {start} ends after the target's {frames} "
        "latent frames",
    )
    return start


def _append_level(sigma: Tensor, strength: float | Tensor) -> tuple[Tensor, int]:
    """The noise levels (B,K) with one more row if the reference is not fully clean, and the index of its row.

    strength (B,) always gets a row, so that the shapes of a step do not depend on values that are drawn.
    """
    if isinstance(strength, Tensor):
        strength = strength.to(sigma)[:, None]
    elif strength == 1:
        return sigma, CLEAN_ROW
    return torch.cat([sigma, (1 - strength) * sigma[:, :1]], dim=1), sigma.shape[1]


def _append_weight(
    tokens: Tokens, size: tuple[int, int, int], batch: int, strength: float | Tensor, mask: Tensor | None
) -> Tensor | None:
    """Attention weights (B,N) of the tokens, and of one more reference after them; None while every weight is 1."""
    if not isinstance(strength, Tensor) and strength == 1 and mask is None and tokens.weight is None:
        return None
    device, shape = tokens.latent.device, tokens.latent.shape[:2]
    weight = tokens.weight if tokens.weight is not None else torch.ones(shape, device=device)
    strengths = torch.as_tensor(strength, dtype=torch.float32, device=device).expand(batch)
    new_weight = strengths[:, None].expand(batch, size[0] * size[1] * size[2])
    if mask is not None:
        new_weight = new_weight * mask_to_grid(mask, size).flatten(1).to(device)
    return torch.cat([weight, new_weight], dim=1)


def mask_to_grid(mask: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Average a pixel mask (B,F,H,W), (F,H,W) or (H,W) by area onto a latent grid, as ComfyUI does: (B,f,h,w).

    The grid is the reference's, whatever its downscale. In space it is the plain area average. In time pixel frame 0
    stands alone, then follow means of groups of t = (F-1) // (f-1) frames, grouped as by the causal VAE. Frames left
    over at the end are dropped; too few frames are repeated (nearest); a still mask (F=1) holds for the whole clip.
    Values are not clamped: above 1 they strengthen attention, 0 and below switch it off.
    """
    if not 2 <= mask.ndim <= 4:
        raise ValueError(f"attention_mask must be (B,F,H,W), (F,H,W) or (H,W), not {tuple(mask.shape)}")
    f, h, w = size
    small = F.interpolate(mask[(None,) * (4 - mask.ndim)].float(), size=(h, w), mode="area")  # (B,F,h,w)
    first, later = small[:, :1], small[:, 1:]
    if f == 1:
        return first
    if later.shape[1] == 0:
        return first.expand(-1, f, -1, -1)
    group = later.shape[1] // (f - 1)
    if group == 0:
        later = F.interpolate(later[:, None], size=(f - 1, h, w), mode="nearest")[:, 0]
    else:
        later = later[:, : (f - 1) * group].unflatten(1, (f - 1, group)).mean(2)
    return torch.cat([first, later], dim=1)

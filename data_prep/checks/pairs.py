"""Checks of one pair, before it is written to a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.checks import measures
from data_prep.checks.base import Finding, Report, judge
from data_prep.checks.captions import check_caption
from data_prep.checks.offset import find_offset
from iclora_train.config import Config, Task
from iclora_train.config.checks import Checks
from iclora_train.config.places import is_drawn
from iclora_train.core.types import Pair
from iclora_train.data.controls import reference_records
from iclora_train.media.frame_times import temporal_subsample
from iclora_train.media.pixels import to_uint8


def check_pair(pair: Pair, clip: str, split: str, config: Config, reference_fps: float | None = None) -> Report:
    """All findings about a pair of `clip`. reference_fps: frame rate of the file of a supplied reference."""
    task, checks = config.task, config.checks
    findings = list(check_caption(pair.caption, task, checks, needed=config.model.checkpoint != "nano"))
    findings += reference_findings(pair, task, checks, reference_fps)
    return Report(pair.key, clip, split, pair.caption, tuple(findings))


def reference_findings(pair: Pair, task: Task, checks: Checks, reference_fps: float | None = None) -> list[Finding]:
    """The findings about the references of a pair of a task. reference_fps: see `check_pair`."""
    findings: list[Finding] = []
    for number, (reference, part) in enumerate(zip(pair.references, task.for_references(), strict=True), start=1):
        findings.append(_shape(pair, reference, reference_fps if number == 1 else None, part, checks, number))
        place = reference_records(pair.record)[number - 1].get("place") if is_drawn(part.reference_frame) else None
        shown = replace(part, reference_frame=place) if place is not None else part
        findings += _picture_findings(pair, reference, shown, checks, number)
    coverages = list(_coverages([record.get("drawn") for record in reference_records(pair.record)]))
    if coverages:
        detail = "share of frames that show a person or a track"
        findings.append(judge("coverage", min(coverages), checks.coverage, detail))
    return findings


def _shape(pair: Pair, reference: np.ndarray, fps: float | None, task: Task, checks: Checks, number: int) -> Finding:
    """Count the mismatches in frames, height, width and fps between a reference and the declared factors."""
    downscale, temporal_scale = task.reference_downscale, task.reference_temporal_scale
    frames, height, width = pair.target.shape[:3]
    # Training takes a clip at frame 0 and a picture at any other (`training_inputs.reference_start`).
    of_place = len(reference) if task.reference_frame == 0 else 1
    expected = {
        "frames": (frames - 1) / temporal_scale + 1 if task.reference_frame is None else of_place,
        "height": height / downscale,
        "width": width / downscale,
    }
    actual: dict[str, float] = dict(zip(expected, reference.shape[:3], strict=True))
    wrong = [f"{key} {actual[key]} instead of {value:g}" for key, value in expected.items() if actual[key] != value]
    if fps is not None and abs(fps * temporal_scale / pair.fps - 1) > 0.01:
        wrong.append(f"fps {fps:g} instead of {pair.fps / temporal_scale:g}")
    return judge("shape", len(wrong), checks.shape, ", ".join(wrong), number)


def _picture_findings(pair: Pair, reference: np.ndarray, task: Task, checks: Checks, number: int) -> Iterator[Finding]:
    """Findings about the pictures of a reference and about their agreement with the target."""
    temporal_scale = task.reference_temporal_scale
    size = measures.comparison_size(pair.target, reference)
    target_luma = measures.downscaled_luma(pair.target, size)  # (F,h,w)
    reference_luma = measures.downscaled_luma(reference, size)  # (F',h,w)
    if task.reference_frame is not None:  # it shows the target at this frame
        target_luma = target_luma[task.reference_frame :]
    yield _offset(reference_luma, target_luma, checks, temporal_scale, number)
    target_luma = temporal_subsample(target_luma, temporal_scale)
    frames = min(len(reference_luma), len(target_luma))
    reference_luma, target_luma = reference_luma[:frames], target_luma[:frames]
    detail = "levels between the darkest and the brightest pixel"
    yield judge("blank", measures.blank(reference_luma), checks.blank, detail, number)
    share = measures.static(reference_luma, target_luma)
    detail = "the target is still" if share is None else "share of moving frames in which the reference is still"
    yield judge("static", share, checks.static, detail, number)
    if task.family != "structure":
        share = measures.clipped(reference_luma, target_luma)
        yield judge("clipped", share, checks.clipped, "share of pixels that became black or white", number)
        return
    detail = "levels between the darkest and the brightest pixel, exceeded in nine of ten frames"
    yield judge("contrast", measures.contrast(reference_luma), checks.contrast, detail, number)
    ratio = measures.flicker(reference_luma, target_luma)
    yield judge("flicker", ratio, checks.flicker, "times the target's warping error", number)


def _offset(reference: np.ndarray, target: np.ndarray, checks: Checks, temporal_scale: int, number: int) -> Finding:
    if temporal_scale > 1:  # after frame 0 the frames of the reference are evenly spaced
        reference, target = reference[1:], target[1:]
    offset = find_offset(reference, target, checks.search, temporal_scale)
    if offset.frames is None:
        return judge("offset", None, checks.offset, "too few frames with motion", number)
    if offset.frames == 0:
        return judge("offset", 0, checks.offset, "", number)
    when = "early" if offset.frames > 0 else "late"
    detail = f"the reference is {abs(offset.frames)} frames {when} (gain {offset.gain:.2f})"
    return judge("offset", abs(offset.frames), checks.offset, detail, number)


def _coverages(params: Any) -> Iterator[float]:
    """Every number named `coverage` in the recorded parameters; makers may contain makers."""
    if isinstance(params, list):
        for value in params:
            yield from _coverages(value)
    elif isinstance(params, dict):
        for name, value in params.items():
            if name == "coverage":
                yield float(value)
            else:
                yield from _coverages(value)


def check_vae(
    pair: Pair, latents: Sequence[Tensor], decode: Callable[[Tensor], Tensor], checks: Checks
) -> list[Finding]:
    """PSNR of target (reference 0) and references after the VAE. Detail that the VAE loses cannot guide an adapter.

    latents: of the target and of each reference, (C,f,h,w). decode: latents (1,C,f,h,w) -> video (1,3,F,H,W) in
    [-1, 1].
    """
    findings = []
    for number, (clip, latent) in enumerate(zip((pair.target, *pair.references), latents, strict=True)):
        with torch.inference_mode():
            pixels = to_uint8(decode(latent[None]))[0].cpu().numpy()
        subject = "the target" if number == 0 else "the reference"
        findings.append(judge("vae", measures.psnr(clip, pixels), checks.vae, f"dB of {subject}", number))
    return findings


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Up to `limit` indices below `count`, evenly spaced: the pairs for `check_vae`."""
    total = min(count, limit)
    return [int((i + 0.5) * count / total) for i in range(total)]

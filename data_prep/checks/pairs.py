"""The checks of one pair: made when the pair is made, before it goes into a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from iclora_train.core.types import Pair
from iclora_train.data.pixels import from_uint8, to_uint8


def check_pair(pair: Pair, clip: str, split: str, config: Config, reference_fps: float | None = None) -> Report:
    """All findings about a pair of `clip`. reference_fps: of the file that a supplied reference was read from."""
    task, checks = config.task, config.checks
    findings = list(check_caption(pair.caption, task, checks, needed=config.model.checkpoint != "nano"))
    for number, reference in enumerate(pair.references, start=1):
        findings.append(_shape(pair, reference, reference_fps, task, checks, number))
        findings += _pictures(pair, reference, task, checks, number)
    covered = list(_coverages(pair.record.get("drawn")))
    if covered:
        findings.append(judge("coverage", min(covered), checks.coverage, "share of frames that show what is followed"))
    return Report(pair.key, clip, split, pair.caption, tuple(findings))


def _shape(pair: Pair, reference: np.ndarray, fps: float | None, task: Task, checks: Checks, number: int) -> Finding:
    """In how many of frames, height, width and fps a reference is not what the declared factors make of the target."""
    down, slow = task.reference_downscale, task.reference_temporal_scale
    frames, height, width = pair.target.shape[:3]
    wanted: dict[str, float] = {"frames": (frames - 1) / slow + 1, "height": height / down, "width": width / down}
    given: dict[str, float] = dict(zip(wanted, reference.shape[:3], strict=True))
    wrong = [f"{name} {given[name]} instead of {value:g}" for name, value in wanted.items() if given[name] != value]
    if fps is not None and abs(fps * slow / pair.fps - 1) > 0.01:
        wrong.append(f"fps {fps:g} instead of {pair.fps / slow:g}")
    return judge("shape", len(wrong), checks.shape, ", ".join(wrong), number)


def _pictures(pair: Pair, reference: np.ndarray, task: Task, checks: Checks, number: int) -> Iterator[Finding]:
    """What is seen in a reference and in how it goes with its target."""
    slow = task.reference_temporal_scale
    size = measures.comparison_size(pair.target, reference)
    real, made = (
        measures.downscaled_luma(pair.target, size),
        measures.downscaled_luma(reference, size),
    )  # (F,h,w), (F',h,w)
    yield _offset(made, real, checks, slow, number)
    both = min(len(made), len(real[::slow]))
    made, real = made[:both], real[::slow][:both]
    yield judge(
        "blank", measures.blank(made), checks.blank, "levels between the darkest and the brightest place", number
    )
    share = measures.static(made, real)
    detail = (
        "share of moving frames in which the reference stands still" if share is not None else "the target is still"
    )
    yield judge("static", share, checks.static, detail, number)
    if task.family != "structure":
        share = measures.clipped(made, real)
        yield judge("clipped", share, checks.clipped, "share of pixels that became black or white", number)
        return
    yield judge(
        "contrast",
        measures.contrast(made),
        checks.contrast,
        "levels between darkest and brightest in the tenth of frames that show least",
        number,
    )
    worse = measures.flicker(made, real)
    yield judge("flicker", worse, checks.flicker, "times the target's warping error", number)


def _offset(made: np.ndarray, real: np.ndarray, checks: Checks, slow: int, number: int) -> Finding:
    found = find_offset(made, real, checks.search, slow)
    if found.frames is None:
        return judge("offset", None, checks.offset, "too few frames that move", number)
    if found.frames == 0:
        return judge("offset", 0, checks.offset, "", number)
    when = "early" if found.frames > 0 else "late"
    detail = f"the reference is {abs(found.frames)} frames {when} (gain {found.gain:.2f})"
    return judge("offset", abs(found.frames), checks.offset, detail, number)


def _coverages(drawn: Any) -> Iterator[float]:
    """Every number called `coverage` in what makers say they drew; makers may hold makers."""
    if isinstance(drawn, list):
        for value in drawn:
            yield from _coverages(value)
    elif isinstance(drawn, dict):
        for name, value in drawn.items():
            if name == "coverage":
                yield float(value)
            else:
                yield from _coverages(value)


def check_vae(
    pair: Pair,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    checks: Checks,
    device: torch.device | str = "cpu",
) -> list[Finding]:
    """How well target (reference 0) and references come back from the VAE: what it loses, no adapter can follow.

    encode: video (1,3,F,H,W) in [-1, 1] -> latents; decode: the way back. They decide about their precision.
    """
    findings = []
    for number, clip in enumerate((pair.target, *pair.references)):
        video = from_uint8(torch.from_numpy(clip).to(device)[None])
        with torch.inference_mode():
            pixels = to_uint8(decode(encode(video)))[0].cpu().numpy()
        which = "the target" if number == 0 else "the reference"
        findings.append(judge("vae", measures.psnr(clip, pixels), checks.vae, f"dB of {which}", number))
    return findings


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Up to `wanted` numbers below `count`, evenly spread: which pairs `check_vae` sees."""
    chosen = min(count, wanted)
    return [int((i + 0.5) * count / chosen) for i in range(chosen)]

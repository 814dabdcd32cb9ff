"""Pixel differences between conditions under the same noise: masks, null test, adapter drift, seed diversity."""

from __future__ import annotations

from collections.abc import Container, Sequence

from eval.clips.attention_masks import half_columns
from eval.clips.clip_source import ClipSource
from eval.clips.conditions import (
    ADAPTER_ONLY,
    ADAPTER_REFERENCE,
    BASE,
    HALF_MASK,
    VIDEO_ALONE,
    Item,
    at_strength,
    judged_row,
)
from eval.metrics import change, diversity
from eval.metrics.picture import psnr

MASKED = (ADAPTER_REFERENCE, at_strength(0).name, HALF_MASK)  # conditions that the half mask is compared with
NULL = (ADAPTER_ONLY, at_strength(0).name)  # compared where strength is that of a reference
DRIFT = (ADAPTER_ONLY, BASE)
AUDIO_PSNR = "audio_psnr"  # key of per_window.changes
DIVERSITY_CONDITIONS = (ADAPTER_REFERENCE, at_strength(0).name, ADAPTER_ONLY, BASE)


def has_changes(source: ClipSource) -> bool:
    """Whether the conditions of the source include all of a comparison."""
    names = {condition.name for condition in source.conditions}
    return any(names.issuperset(compared) for compared in _compared(names))


def _compared(names: Container[str]) -> tuple[tuple[str, ...], ...]:
    """The comparisons of a task with references (masks, null test, drift, audio) or without them (drift, audio)."""
    audio = (judged_row(names), VIDEO_ALONE)
    return (MASKED, NULL, DRIFT, audio) if ADAPTER_REFERENCE in names else (DRIFT, audio)


def condition_changes(source: ClipSource, batch: Sequence[Item], i: int) -> dict[str, float]:
    """Mean absolute differences (levels) between conditions for one item, keyed as `mask` and `control` in scores.json,
    and the PSNR (dB) between the output with and without the audio stream.

    Inside and outside are the two halves of the half mask, without the transition band. Comparisons with a condition
    that is not sampled are left out.
    """
    by_name = {condition.name: condition for condition in source.conditions}
    possible = [compared for compared in _compared(by_name) if by_name.keys() >= set(compared)]
    needed = {name for compared in possible for name in compared}
    clips = {name: source.clip(by_name[name], batch, i) for name in sorted(needed)}
    changes = {}
    if clips.keys() >= set(MASKED):
        full, strength_0, masked = (clips[name] for name in MASKED)
        inside, outside = half_columns(full.shape[2], source.band_pixels, batch[i].window.mask_left)
        changes = {
            "inside": change(masked, strength_0, inside),
            "outside": change(masked, strength_0, outside),
            "kept": change(masked, full, inside),
            "dropped": change(masked, full, outside),
            "full_inside": change(full, strength_0, inside),
            "full_outside": change(full, strength_0, outside),
        }
    for key, compared in (("null", NULL), ("drift", DRIFT)):
        if compared in possible:
            first, second = (clips[name] for name in compared)
            changes[key] = change(first, second, slice(0, first.shape[2]))
    if VIDEO_ALONE in clips:
        changes[AUDIO_PSNR] = float(psnr(clips[judged_row(by_name)], clips[VIDEO_ALONE]).mean())
    return changes


def seed_diversity(source: ClipSource, batches: Sequence[Sequence[Item]], number: int) -> dict[str, float]:
    """Diversity over the seeds of window `number`, with and without a reference."""
    seeds = [(batch, i) for batch in batches for i, item in enumerate(batch) if item.window.number == number]
    return {
        condition.name: diversity([source.clip(condition, batch, i) for batch, i in seeds])
        for condition in source.conditions
        if condition.name in DIVERSITY_CONDITIONS
    }

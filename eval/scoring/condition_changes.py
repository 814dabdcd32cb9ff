"""Pixel differences between conditions under the same noise: masks, null test, adapter drift, seed diversity."""

from __future__ import annotations

from collections.abc import Sequence

from eval.clips.attention_masks import half_columns
from eval.clips.clip_source import ClipSource
from eval.clips.conditions import ADAPTER_ONLY, ADAPTER_REFERENCE, BASE, HALF_MASK, Item, at_strength
from eval.metrics import change, diversity

COMPARED = (ADAPTER_REFERENCE, at_strength(0).name, ADAPTER_ONLY, BASE, HALF_MASK)
DIVERSITY_CONDITIONS = (ADAPTER_REFERENCE, at_strength(0).name, ADAPTER_ONLY, BASE)


def condition_changes(source: ClipSource, batch: Sequence[Item], i: int) -> dict[str, float]:
    """Mean absolute differences (levels) between conditions for one item, keyed as `mask` and `control` in scores.json.

    Inside and outside are the two halves of the half mask, without the transition band.
    """
    by_name = {condition.name: condition for condition in source.conditions}
    full, strength_0, no_reference, base, masked = (source.clip(by_name[name], batch, i) for name in COMPARED)
    width = strength_0.shape[2]
    inside, outside = half_columns(width, source.band_pixels, batch[i].window.mask_left)
    all_columns = slice(0, width)
    return {
        "inside": change(masked, strength_0, inside),
        "outside": change(masked, strength_0, outside),
        "kept": change(masked, full, inside),
        "dropped": change(masked, full, outside),
        "full_inside": change(full, strength_0, inside),
        "full_outside": change(full, strength_0, outside),
        "null": change(no_reference, strength_0, all_columns),
        "drift": change(no_reference, base, all_columns),
    }


def seed_diversity(source: ClipSource, batches: Sequence[Sequence[Item]], number: int) -> dict[str, float]:
    """Diversity over the seeds of window `number`, with and without a reference."""
    seeds = [(batch, i) for batch in batches for i, item in enumerate(batch) if item.window.number == number]
    return {
        condition.name: diversity([source.clip(condition, batch, i) for batch, i in seeds])
        for condition in source.conditions
        if condition.name in DIVERSITY_CONDITIONS
    }

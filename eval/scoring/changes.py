"""What conditions change in the picture under the same noise: masks, the null test, the adapter's drift, seeds."""

from __future__ import annotations

from collections.abc import Sequence

from eval.clips.attention_masks import half_columns
from eval.clips.clip_source import ClipSource
from eval.clips.conditions import ADAPTER_ONLY, ADAPTER_REFERENCE, BASE, HALF_MASK, Item, at_strength
from eval.metrics import change, diversity

COMPARED = (ADAPTER_REFERENCE, at_strength(0).name, ADAPTER_ONLY, BASE, HALF_MASK)
OF_SEEDS = (ADAPTER_REFERENCE, at_strength(0).name, ADAPTER_ONLY, BASE)


def changes(source: ClipSource, batch: Sequence[Item], i: int) -> dict[str, float]:
    """Mean absolute changes (levels) between the cells of one item, with the names of scores.json's `mask` and
    `control`.

    Inside and outside are the halves of the half mask without the transition band.
    """
    made = {cell.name: cell for cell in source.cells}
    full, none, absent, base, masked = (source.clip(made[name], batch, i) for name in COMPARED)
    width = none.shape[2]
    inside, outside = half_columns(width, source.band, batch[i].window.mask_left)
    whole = slice(0, width)
    return {
        "inside": change(masked, none, inside),
        "outside": change(masked, none, outside),
        "kept": change(masked, full, inside),
        "dropped": change(masked, full, outside),
        "full_inside": change(full, none, inside),
        "full_outside": change(full, none, outside),
        "null": change(absent, none, whole),
        "drift": change(absent, base, whole),
    }


def over_seeds(source: ClipSource, batches: Sequence[Sequence[Item]], number: int) -> dict[str, float]:
    """Diversity over the seeds of window `number` in the cells that tell whether a reference makes clips alike."""
    places = [(batch, i) for batch in batches for i, item in enumerate(batch) if item.window.number == number]
    return {
        cell.name: diversity([source.clip(cell, batch, i) for batch, i in places])
        for cell in source.cells
        if cell.name in OF_SEEDS
    }

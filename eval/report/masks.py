"""The mask page: what the half-frame mask and the fade-in mask changed, where, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.clips.conditions import ADAPTER_REFERENCE, FADE_MASK, HALF_MASK, at_strength
from eval.report import tables
from eval.report.charts import bars, block_curve
from eval.report.exhibits import Exhibit
from eval.report.media import CHANGE_FULL, Media, change_clip
from eval.report.players import figure, player, timing, video

NONE = at_strength(0).name
MEANING = {
    "inside": "change inside, levels",
    "outside": "change outside, levels",
    "leakage": "leakage: outside / inside",
    "kept": "change against the full reference where the mask keeps it, levels",
    "dropped": "change against the full reference where the mask drops it, levels",
    "disturbance": "disturbance: kept / dropped (0: the mask acts only where it is)",
    "effect_kept": "inside / the full reference's change there (1: nothing lost)",
    "leakage_of_full": "outside / the full reference's change there (0: nothing leaks)",
    "null_change": "strength 0 against no reference at all, levels (0: the strength path is sound)",
}


def half(mask: Mapping[str, Any], tiles: Sequence[str]) -> str:
    """The half-frame mask: figures, bars, examples."""
    found = mask["half"]
    rows = [(text, [tables.interval(found[key], 3)]) for key, text in MEANING.items() if key in found]
    caption = (
        "Change against strength 0 where nothing else is said, under the same noise, without the transition band of "
        f"{mask['band_pixels']} px on either side of the edge."
    )
    change = [(key, found[key]) for key in ("inside", "outside", "kept", "dropped")]
    return (
        f'<h3>Half a frame</h3><div class="beside">{tables.table(caption, ["half-frame mask", "mean"], rows)}'
        f"<figure>{bars('mean change, levels', change)}<figcaption>inside and outside: against strength 0; kept and "
        f"dropped: against the full reference</figcaption></figure></div>"
        f'<label class="toggle" hidden><input type="checkbox" id="overlay" checked> show the mask: dark where the '
        f"reference is dropped, dashed the transition band</label><div class='tiles wide'>{''.join(tiles)}</div>"
    )


def fade(mask: Mapping[str, Any], tiles: Sequence[str]) -> str:
    """The fade-in mask: the weight rises from 0 to 1 over the clip."""
    found = mask["fade"]
    blocks = [(block["weight"], block["effect"]) for block in found["blocks"]]
    rows = [
        (f"block {i}: weight {weight:.2f}", [tables.interval(effect, 3)]) for i, (weight, effect) in enumerate(blocks)
    ]
    rows = [("correlation of weight and effect", [tables.interval(found["correlation"], 3)]), *rows]
    caption = f"Effect of a block of {mask['band_frames']} frames: 1 is that of the full reference."
    return (
        f'<h3>Fade-in</h3><div class="beside">{tables.table(caption, ["fade-in mask", "mean"], rows)}'
        f"<figure>{block_curve(blocks)}<figcaption>dashed: the weight; line: the effect, with its 95 % band"
        f"</figcaption></figure></div><div class='tiles wide'>{''.join(tiles)}</div>"
    )


def half_tile(media: Media, exhibit: Exhibit, band: int) -> str:
    """An example of the half-frame mask, with the mask drawn over it."""
    side = "left" if exhibit.window.mask_left else "right"
    width = exhibit.clips[HALF_MASK].shape[2]
    overlay = _overlay(exhibit.window.mask_left, 100 * band / width)
    return _tile(media, exhibit, HALF_MASK, f"half mask, {side} kept", overlay)


def fade_tile(media: Media, exhibit: Exhibit) -> str:
    """An example of the fade-in mask."""
    return _tile(media, exhibit, FADE_MASK, "fade-in mask", "")


def _tile(media: Media, exhibit: Exhibit, cell: str, title: str, overlay: str) -> str:
    """Without, with the masked, with the full reference, and where and when the masked one changed something."""
    clips, number = exhibit.clips, exhibit.window.number
    name = f"{number:03d}-{cell.replace(' ', '-')}-change"
    heat = media.clip(name, change_clip(clips[cell], clips[NONE]), exhibit.fps)
    figures = [
        figure(video(media, exhibit, NONE, "strength 0"), "strength 0"),
        figure(video(media, exhibit, cell, title) + overlay, f"<b>{title}</b>"),
        figure(video(media, exhibit, ADAPTER_REFERENCE, "full reference"), "full reference"),
        figure(
            player(heat, f"change by the {cell}, {exhibit.window.key}") + overlay,
            f"change by the mask: black 0, bright {CHANGE_FULL} levels",
        ),
    ]
    return (
        f'<div class="tile" {timing(exhibit)}><h3>{escape(exhibit.window.key)}</h3>'
        f'<div class="players">{"".join(figures)}</div></div>'
    )


def _overlay(keep_left: bool, band: float) -> str:
    """The half that is dropped and the transition band (percent of the width on either side), drawn over a player."""
    dropped = 50 if keep_left else 0
    return (
        '<svg class="overlay" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="dropped" x="{dropped}" y="0" width="50" height="100"/>'
        f'<rect class="transition" x="{50 - band:g}" y="0" width="{2 * band:g}" height="100"/></svg>'
    )

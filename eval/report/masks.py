"""The mask section: where and by how much the half-frame mask and the fade-in mask change the clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.clips.conditions import ADAPTER_REFERENCE, FADE_MASK, HALF_MASK, at_strength
from eval.report import tables
from eval.report.charts import bars, latent_frame_curve
from eval.report.exhibits import Exhibit
from eval.report.media import CHANGE_FULL, Media, change_clip
from eval.report.players import figure, player, timing, video

NONE = at_strength(0).name
MEANING = {  # key of `mask.half` -> label and definition
    "inside": ("inside", "change against strength 0, levels"),
    "outside": ("outside", "change against strength 0, levels"),
    "leakage": ("leakage", "outside / inside"),
    "kept": ("kept", "inside, change against the full reference, levels"),
    "dropped": ("dropped", "outside, change against the full reference, levels"),
    "disturbance": ("disturbance", "kept / dropped; 0: the mask changes only the half without reference"),
    "effect_kept": ("effect kept", "inside / change by the full reference in the same half; 1: nothing is lost"),
    "leakage_of_full": ("leakage of full", "outside / change by the full reference in the same half; 0: no leakage"),
    "null_change": ("null change", "strength 0 against no reference, levels; 0: the strength path is correct"),
}


def half(mask: Mapping[str, Any], tiles: Sequence[str]) -> str:
    """The half-frame mask: table, bars, examples."""
    values = mask["half"]
    rows = [
        (f"{label}<small>{definition}</small>", [tables.interval(values[key], 3)])
        for key, (label, definition) in MEANING.items()
        if key in values
    ]
    caption = (
        "Inside: the half of the frame that keeps the reference. All changes are under the same noise, without the "
        f"transition band of {mask['band_pixels']} px on either side of the edge."
    )
    change = [(key, values[key]) for key in ("inside", "outside", "kept", "dropped")]
    return (
        f'<h3>Half-frame mask</h3><div class="beside">{tables.table(caption, ["half-frame mask", "mean"], rows)}'
        f"<figure>{bars('mean change, levels', change)}<figcaption>inside, outside: against strength 0; kept (inside), "
        f"dropped (outside): against the full reference</figcaption></figure></div>"
        f'<label class="toggle" hidden><input type="checkbox" id="overlay" checked> show the mask (dark: no '
        f"reference; dashed: transition band)</label><div class='tiles wide'>{''.join(tiles)}</div>"
    )


def fade(mask: Mapping[str, Any], tiles: Sequence[str]) -> str:
    """The fade-in mask, whose weight rises from 0 to 1 over the clip."""
    values = mask["fade"]
    blocks = [(block["weight"], block["effect"]) for block in values["blocks"]]
    rows = [
        (f"latent frame {i}: weight {weight:.2f}", [tables.interval(effect, 3)])
        for i, (weight, effect) in enumerate(blocks)
    ]
    rows = [("correlation of weight and effect", [tables.interval(values["correlation"], 3)]), *rows]
    caption = f"Effect in each latent frame ({mask['band_frames']} frames): 1 is the effect of the full reference."
    return (
        f'<h3>Fade-in mask</h3><div class="beside">{tables.table(caption, ["fade-in mask", "mean"], rows)}'
        f"<figure>{latent_frame_curve(blocks)}<figcaption>dashed: the weight; line: the effect, with its 95 % band"
        f"</figcaption></figure></div><div class='tiles wide'>{''.join(tiles)}</div>"
    )


def half_tile(media: Media, exhibit: Exhibit, band: int) -> str:
    """An example of the half-frame mask, with the mask drawn over it."""
    side = "left" if exhibit.window.mask_left else "right"
    width = exhibit.clips[HALF_MASK].shape[2]
    overlay = _overlay(exhibit.window.mask_left, 100 * band / width)
    return _tile(media, exhibit, HALF_MASK, f"half mask, {side} half has the reference", overlay)


def fade_tile(media: Media, exhibit: Exhibit) -> str:
    """An example of the fade-in mask."""
    return _tile(media, exhibit, FADE_MASK, "fade-in mask", "")


def _tile(media: Media, exhibit: Exhibit, condition: str, title: str, overlay: str) -> str:
    """Four players: strength 0, masked reference, full reference, and a heat map of the change by the mask."""
    clips, number = exhibit.clips, exhibit.window.number
    name = f"{number:03d}-{condition.replace(' ', '-')}-change"
    heat = media.clip(name, change_clip(clips[condition], clips[NONE]), exhibit.fps)
    figures = [
        figure(video(media, exhibit, NONE, "strength 0"), "strength 0"),
        figure(video(media, exhibit, condition, title) + overlay, f"<b>{title}</b>"),
        figure(video(media, exhibit, ADAPTER_REFERENCE, "full reference"), "full reference"),
        figure(
            player(heat, f"change by the {condition}, {exhibit.window.key}", clips[condition].shape) + overlay,
            f"change by the mask: black 0, bright {CHANGE_FULL} levels",
        ),
    ]
    return (
        f'<div class="tile" {timing(exhibit)}><h3>{escape(exhibit.window.key)}</h3>'
        f'<div class="players">{"".join(figures)}</div></div>'
    )


def _overlay(keep_left: bool, band: float) -> str:
    """SVG over a player: the half without reference, and the transition band (percent of the width on either side)."""
    dropped = 50 if keep_left else 0
    return (
        '<svg class="overlay" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="dropped" x="{dropped}" y="0" width="50" height="100"/>'
        f'<rect class="transition" x="{50 - band:g}" y="0" width="{2 * band:g}" height="100"/></svg>'
    )

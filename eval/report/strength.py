"""The strength section: curves with marks, one slider for all examples, a film strip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.clips.conditions import ADAPTER_REFERENCE, BASE_REFERENCE, INPUT, at_strength
from eval.report import tables
from eval.report.charts import strength_curve
from eval.report.exhibits import REFERENCE, TARGET, Exhibit
from eval.report.media import Media, thumbnail
from eval.report.players import figure, timing, video

Scores = Mapping[str, Any]
MARKS = {"dead_zone": "dead zone", "s50": "half", "saturation": "saturated"}  # key of `curve` -> label


def levels(scores: Scores) -> list[float]:
    """The sampled strengths in rising order."""
    return sorted(entry["s"] for entry in scores["strength"])


def curves(scores: Scores) -> str:
    """Two curves over strength: the adherence metric with marks, and PSNR (or SSIM if adherence is PSNR)."""
    figures = []
    measured = scores["strength"][0]["metrics"]
    marks = {text: curve[key] for key, text in MARKS.items() if (curve := _curve(scores)).get(key) is not None}
    for metric in [m for m in dict.fromkeys((scores["adherence"], "psnr", "ssim")) if m in measured][:2]:
        points = [(entry["s"], entry["metrics"][metric]) for entry in scores["strength"] if metric in entry["metrics"]]
        rows = [(name, scores["cells"].get(name, {}).get(metric)) for name in (INPUT, BASE_REFERENCE)]
        lines = [(name, value) for name, value in rows if value is not None]
        label = tables.metric_name(scores, metric)
        chart = strength_curve(label, points, lines, marks if metric == scores["adherence"] else {})
        figures.append(f"<figure>{chart}<figcaption>{label}; band: 95 % interval</figcaption></figure>")
    return f'<div class="charts">{"".join(figures)}</div>'


def _curve(scores: Scores) -> Mapping[str, Any]:
    curve: Mapping[str, Any] = (scores["control"] or {}).get("curve") or {}
    return curve


def response(scores: Scores) -> str:
    """Table of the strength curve."""
    curve = _curve(scores)
    meaning = {
        "dead_zone": "dead zone: largest strength below 10 % of the effect",
        "s50": "half: strength of 50 % of the effect",
        "saturation": "saturation: smallest strength above 90 % of the effect",
        "largest_step": "largest share of the effect between neighbouring strengths",
    }
    rows = [(text, [tables.number(curve.get(key), 3)]) for key, text in meaning.items()]
    rows.append(("p of Page's trend test", [tables.probability(curve.get("page_p"))]))
    rows += [
        (text, [tables.interval(curve.get(key), 3)])
        for key, text in (
            ("spearman", "Spearman correlation of strength and adherence, per window"),
            ("isotonic_r2", "R² of the best monotone curve, per window"),
        )
    ]
    return tables.table("Strength curve.", ["", "value"], rows) if curve else ""


def slider(scores: Scores) -> str:
    """The strength slider; its positions are the sampled strengths."""
    steps, metric = levels(scores), scores["adherence"]
    data = " ".join(f"{s:g}" for s in steps)
    return (
        f'<div class="scrubber" hidden><label for="strength-level">strength</label>'
        f'<input type="range" id="strength-level" min="0" max="{len(steps) - 1}" step="1" value="{len(steps) - 1}" '
        f'data-levels="{data}" data-metric="{metric}" data-name="{tables.metric_name(scores, metric)}">'
        '<output id="strength-figure" for="strength-level"></output></div>'
    )


def _name(exhibit: Exhibit, strength: float) -> str:
    """The name of the clip at a strength: of the reference's attention, or of an adapter without a reference."""
    return at_strength(strength, reference=ADAPTER_REFERENCE in exhibit.clips).name


def tile(media: Media, exhibit: Exhibit, steps: Sequence[float]) -> str:
    """An example: the reference, the clip at the strength of the slider, and the target."""
    screens = []
    for s in steps:
        extra = f' data-level="{s:g}"{"" if s == steps[-1] else " hidden"}'
        screens.append(video(media, exhibit, _name(exhibit, s), f"strength {s:g}", extra))
    shown = [name for name in (REFERENCE, TARGET) if name in exhibit.clips]
    sides = {name: figure(video(media, exhibit, name, name), name) for name in shown}
    middle = figure("".join(screens), '<b class="level"></b>')
    return (
        f'<div class="tile" {timing(exhibit)}><h3>{escape(exhibit.window.key)}</h3>'
        f'<div class="players">{sides.get(REFERENCE, "")}{middle}{sides[TARGET]}</div></div>'
    )


def strip(media: Media, exhibit: Exhibit, steps: Sequence[float]) -> str:
    """A row of the film strip: the middle frame at every strength."""
    number, pictures = exhibit.window.number, []
    for s in steps:
        clip = exhibit.clips[_name(exhibit, s)]
        source = media.picture(f"{number:03d}-strength-{s:g}-still", thumbnail(clip[len(clip) // 2]))
        pictures.append(f'<td><img src="{source}" loading="lazy" alt="strength {s:g}"></td>')
    return f'<tr><th scope="row">{escape(exhibit.window.key)}</th>{"".join(pictures)}</tr>'


def film(rows: Sequence[str], steps: Sequence[float]) -> str:
    """The film strip."""
    head = "".join(f'<th scope="col">strength {s:g}</th>' for s in steps)
    return (
        '<div class="scroll" role="group" tabindex="0" aria-label="film strip">'
        '<table class="strip"><caption>Middle frames, same noise.</caption><thead><tr>'
        f'<th scope="col">window</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )

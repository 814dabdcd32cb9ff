"""The first page: simple signals, whose truth is known exactly, judged without any held-out clip."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from eval.report import tables
from eval.report.charts import probe_curve
from eval.report.media import Media
from eval.report.players import figure, player
from eval.scoring.ground_truth import fit_to_shape
from eval.synthetic.run import ProbeClips

TITLES = {"requested": "asked for", "reference": "reference given", "found": "output", "floor": "other reference"}


def section(found: Mapping[str, Any], shown: Mapping[str, ProbeClips], fps: float, media: Media) -> str:
    """A line per signal, and per signal what was asked for and what came of it, as curves and as clips."""
    rows = [
        (
            f"{escape(signal['name'])}<small>{escape(signal['claim'])}</small>",
            [
                tables.badge(signal["passed"]),
                f"{signal['value']:.3g}",
                f"≤ {signal['threshold']:.3g}",
                f"{signal['floor']:.3g}",
            ],
        )
        for signal in found["signals"]
    ]
    head = ["signal", "", "error", "wanted", "with another signal's reference"]
    caption = (
        f"{found['passed']} of {found['of']} signals pass; drawn, sampled and measured in {found['seconds']:.0f} s."
    )
    absent = [(escape(entry["signal"]), [escape(entry["reason"])]) for entry in found["not_run"]]
    details = "".join(_signal(signal, shown.get(signal["name"]), fps, media) for signal in found["signals"])
    return (
        f"{tables.table(caption, head, rows)}{tables.table('Not run.', ['signal', 'why'], absent) if absent else ''}"
        f'<div class="signals">{details}</div>'
    )


def _signal(signal: Mapping[str, Any], shown: ProbeClips | None, fps: float, media: Media) -> str:
    """A signal's curve, and its players where clips are given."""
    name = signal["name"]
    if len(signal["requested"]) > 1:
        chart = probe_curve(name, signal["requested"], signal["found"])
        of = "x and y" if isinstance(signal["requested"][0], list) else "position"
        curve = f"<figure>{chart}<figcaption>{of} asked for (dashed), found in the output (line)</figcaption></figure>"
    else:
        curve = f"<p>asked for {signal['requested'][0]:.3g}, found {signal['found'][0]:.3g}</p>"
    if shown is None:
        return f'<div class="signal"><h3>{escape(name)}</h3>{curve}</div>'
    size = shown.requested.shape
    screens = []
    for part, title in TITLES.items():
        address = media.clip(f"signal-{name.replace(' ', '-')}-{part}", fit_to_shape(getattr(shown, part), size), fps)
        screens.append(figure(player(address, f"{title}, {name}"), title))
    return (
        f'<div class="signal" data-fps="{fps:g}" data-frames="{size[0]}"><h3>{escape(name)}</h3>{curve}'
        f'<div class="players">{"".join(screens)}</div></div>'
    )

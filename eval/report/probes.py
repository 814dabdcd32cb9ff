"""The section of the synthetic probes: requested and measured values as tables, curves and clips."""

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

TITLES = {"requested": "correct output", "reference": "reference", "output": "output", "floor": "other reference"}


def _badge(passed: bool) -> str:
    word = "pass" if passed else "fail"
    return f'<span class="{word}">{word}</span>'


def section(scores: Mapping[str, Any], clips: Mapping[str, ProbeClips], fps: float, media: Media) -> str:
    """A row per probe; then for every probe its curve and clips. scores: `simple` of scores.json."""
    rows = [
        (
            f"{escape(probe['name'])}<small>{escape(probe['claim'])}</small>",
            [
                _badge(probe["passed"]),
                f"{probe['value']:.3g}",
                f"≤ {probe['threshold']:.3g}",
                f"{probe['floor']:.3g}",
            ],
        )
        for probe in scores["signals"]
    ]
    head = ["probe", "", "error", "required", "error with another probe's reference"]
    caption = f"{scores['passed']} of {scores['of']} probes pass; sampled in {scores['seconds']:.0f} s."
    not_run = [(escape(entry["signal"]), [escape(entry["reason"])]) for entry in scores["not_run"]]
    not_run_table = tables.table("Probes that were not run.", ["probe", "reason"], not_run) if not_run else ""
    details = "".join(_probe(probe, clips.get(probe["name"]), fps, media) for probe in scores["signals"])
    return f'{tables.table(caption, head, rows)}{not_run_table}<div class="probes">{details}</div>'


def _probe(scores: Mapping[str, Any], clips: ProbeClips | None, fps: float, media: Media) -> str:
    """The curve of a probe, and its players if clips are given."""
    name = scores["name"]
    if len(scores["requested"]) > 1:
        chart = probe_curve(name, scores["requested"], scores["found"])
        quantity = "x and y" if isinstance(scores["requested"][0], list) else "position"
        curve = f"<figure>{chart}<figcaption>{quantity}: requested (dashed), measured (line)</figcaption></figure>"
    else:
        curve = f"<p>requested {scores['requested'][0]:.3g}, measured {scores['found'][0]:.3g}</p>"
    if clips is None:
        return f'<div class="probe"><h3>{escape(name)}</h3>{curve}</div>'
    size = clips.requested.shape
    screens = []
    for part, title in TITLES.items():
        address = media.clip(f"probe-{name.replace(' ', '-')}-{part}", fit_to_shape(getattr(clips, part), size), fps)
        screens.append(figure(player(address, f"{title}, {name}", size), title))
    return (
        f'<div class="probe" data-fps="{fps:g}" data-frames="{size[0]}"><h3>{escape(name)}</h3>{curve}'
        f'<div class="players">{"".join(screens)}</div></div>'
    )

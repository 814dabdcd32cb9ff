"""Write report.html and scores.json. Styles and scripts are inline; the Content Security Policy allows their hashes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from eval.clips.conditions import ADAPTER_REFERENCE, FADE_MASK, HALF_MASK, judged_row
from eval.judging.ranking import first_examples, ranking
from eval.judging.verdicts import tally
from eval.report import audio, first_screen, masks, players, probes, strength, tables, verdicts
from eval.report.exhibits import Exhibit, examples
from eval.report.media import Media
from eval.synthetic.run import ProbeClips
from iclora_train.core.files_together import write_together
from iclora_train.core.progress import progress_bar
from iclora_train.core.scores import as_json

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = (
    "together.js",
    "clock.js",
    "grid.js",
    "compare.js",
    "strength.js",
    "another.js",
    "download.js",
)  # share one scope, in this order
Scores = Mapping[str, Any]


@dataclass
class PageParts:
    """The HTML of the clips, collected window by window."""

    scores: Scores
    media: Media
    firsts: dict[int, str] = field(default_factory=dict)
    rows: dict[int, str] = field(default_factory=dict)
    tiles: dict[int, str] = field(default_factory=dict)
    strips: dict[int, str] = field(default_factory=dict)
    halves: dict[int, str] = field(default_factory=dict)
    fades: dict[int, str] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)  # names of the available clips
    fps: float = 0.0

    def add(self, exhibit: Exhibit) -> None:
        """Encode the clips of a window and add them to the sections."""
        scores, number = self.scores, exhibit.window.number
        self.fps = exhibit.fps
        self.present |= set(exhibit.clips)
        self.rows[number] = players.row(self.media, exhibit, scores)
        for example in first_examples(scores):
            if example.number == number:
                self.firsts[number] = first_screen.row(self.media, exhibit, scores, example)
        if number not in examples(scores):
            return
        if len(scores["strength"]) > 1:
            steps = strength.levels(scores)
            self.tiles[number] = strength.tile(self.media, exhibit, steps)
            self.strips[number] = strength.strip(self.media, exhibit, steps)
        if HALF_MASK in exhibit.clips:
            self.halves[number] = masks.half_tile(self.media, exhibit, scores["mask"]["band_pixels"])
        if FADE_MASK in exhibit.clips:
            self.fades[number] = masks.fade_tile(self.media, exhibit)

    def ordered(self, html: Mapping[int, str]) -> list[str]:
        """The HTML of the windows, worst window first."""
        return [html[number] for number in ranking(self.scores).worst_first() if number in html]


def write_page(
    media: Media,
    scores: Scores,
    exhibits: Iterable[Exhibit],
    probe_clips: Mapping[str, ProbeClips] | None = None,
    comparison: Mapping[str, Any] | None = None,
) -> Path:
    """Write report.html and scores.json together (`write_together`), after the clips in media/, into the folder of
    `media`. Returns the path of report.html.

    probe_clips: clips of the synthetic probes by name. comparison: result of `eval.compare` with an earlier evaluation.
    """
    parts, folder = PageParts(scores, media), media.folder
    with progress_bar("report", len(scores["clips"]), "clip") as bar:
        for exhibit in bar.track(exhibits):
            parts.add(exhibit)
    page = _page(parts, _sections(parts, probe_clips or {}, comparison))
    report = folder / "report.html"
    write_together([(folder / "scores.json", as_json(scores)), (report, page.encode())])
    media.remove_others()
    return report


def sizes(report: Path, media: Media) -> str:
    """`report.html 0.9 MB, clips and pictures 38.2 MB beside it in media/`: for the console."""
    page = f"{report.stat().st_size / 1e6:.1f} MB"
    if media.single:
        return f"one file of {page}, clips and pictures {media.bytes / 1e6:.1f} MB"
    return f"{page}, clips and pictures {media.bytes / 1e6:.1f} MB beside it in media/; eval.report=single: one file"


Section = tuple[str, str, str]  # id, title, content; sections without content are left out


def _sections(
    parts: PageParts, probe_clips: Mapping[str, ProbeClips], comparison: Mapping[str, Any] | None
) -> list[Section]:
    """The sections in order: what decides, what explains, what shows, and the synthetic probes last."""
    scores = parts.scores
    probe_scores, media = scores["simple"], parts.media
    has_reference = judged_row(scores["windows"]) == ADAPTER_REFERENCE
    sections: list[Section] = [
        ("gates", "Gates", verdicts.gates(scores)),
        ("diagnostics", "Diagnostics", verdicts.diagnostics(scores)),
        ("controls", "Each control", tables.controls(scores)),
        ("symptoms", "Symptoms", tables.symptoms(scores["flags"], has_reference)),
        (
            "conditions",
            f"With and without {'adapter and reference' if has_reference else 'the adapter'}",
            tables.conditions(scores),
        ),
        ("audio", "Audio stream", audio.section(scores)),
        ("harm", "Worse than the input?", tables.harmed(scores)),
        ("sources", "Sources", tables.sources(scores)),
        ("clips", "Clips", _clips(parts)),
        ("strength", "Strength", _strength(parts)),
        ("mask", "Masks", _masks(parts)),
        ("windows", "All windows", tables.windows(scores)),
        ("comparison", "Comparison with another evaluation", tables.comparison(scores, comparison)),
        ("not-run", "Metrics not run", tables.not_run(scores)),
        ("provenance", "Provenance", tables.provenance(scores)),
        (
            "probes",
            "Synthetic probes",
            probes.section(probe_scores, probe_clips, parts.fps, media) if probe_scores else "",
        ),
    ]
    return [section for section in sections if section[2]]


def _clips(parts: PageParts) -> str:
    return Template((ASSETS / "clips.html").read_text(encoding="utf-8")).substitute(
        columns=players.columns(sorted(parts.present)),
        sort_options=players.sort_options(parts.scores),
        rows="".join(parts.ordered(parts.rows)),
    )


def _strength(parts: PageParts) -> str:
    scores = parts.scores
    if not parts.tiles:
        return ""
    return (
        f"{strength.curves(scores)}{strength.slider(scores)}"
        f'<div class="tiles">{"".join(parts.ordered(parts.tiles))}</div>{strength.response(scores)}'
        f"{strength.film(parts.ordered(parts.strips), strength.levels(scores))}"
    )


def _masks(parts: PageParts) -> str:
    mask = parts.scores["mask"]
    half = masks.half(mask, parts.ordered(parts.halves)) if parts.halves else ""
    return half + (masks.fade(mask, parts.ordered(parts.fades)) if parts.fades else "")


def _page(parts: PageParts, sections: list[Section]) -> str:
    scores = parts.scores
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return Template((ASSETS / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{scores['task']}: {tally(scores)}"),
        head=first_screen.head(scores),
        examples=first_screen.rows(parts.firsts, first_examples(scores), scores),
        policy=f"default-src 'none'; img-src 'self' data: file:; media-src 'self' data: file:; "
        f"style-src {policy_hash(style)}; script-src {policy_hash(script)}; base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        nav=" ".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections),
        sections="\n".join(f'<section id="{n}"><h2>{title}</h2>\n{text}</section>' for n, title, text in sections),
        scores=json.dumps(scores, ensure_ascii=False).replace("<", "\\u003c"),
    )


def policy_hash(text: str) -> str:
    """A source expression of the Content Security Policy that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

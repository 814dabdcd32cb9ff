"""The grid of video players: a row per window, a column per condition, and a per-frame line under some players."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from eval.clips.conditions import (
    ADAPTER_ONLY,
    ADAPTER_REFERENCE,
    BASE,
    BASE_REFERENCE,
    CEILING,
    EMPTY_PROMPT,
    INPUT,
    SWAPPED,
    VIDEO_ALONE,
    is_of_one_reference,
    judged_row,
)
from eval.judging.ranking import ranking
from eval.report import tables
from eval.report.charts import frame_line
from eval.report.exhibits import CONTROL, CONTROL_TARGET, REFERENCE, TARGET, Exhibit, reference_titles
from eval.report.media import Media

Scores = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of players: title, clip name, the row of scores.json under each player, whether it starts visible."""

    title: str
    clip: str
    row: str | None = None
    shown: bool = True


# Columns that start visible in a task without references
SHOWN_PLAIN = (BASE, ADAPTER_ONLY, TARGET)
COLUMNS = (  # after those of the references
    Column("control in adapter + reference", CONTROL),
    Column("base + reference", BASE_REFERENCE, BASE_REFERENCE),
    Column("adapter + reference", ADAPTER_REFERENCE, ADAPTER_REFERENCE),
    Column("target", TARGET),
    Column("swapped reference", SWAPPED, SWAPPED),
    Column("control in the target", CONTROL_TARGET, shown=False),
    Column("VAE ceiling", CEILING, CEILING, shown=False),
    Column("base", BASE, BASE, shown=False),
    Column("adapter, no reference", ADAPTER_ONLY, ADAPTER_ONLY, shown=False),
    Column("empty prompt", EMPTY_PROMPT, EMPTY_PROMPT, shown=False),
    Column("video stream alone", VIDEO_ALONE, VIDEO_ALONE, shown=False),
)


def video(media: Media, exhibit: Exhibit, name: str, title: str, extra: str = "") -> str:
    """A player of one clip of an exhibit."""
    shape = exhibit.clips[TARGET].shape
    return player(media.shown(exhibit, name), f"{title}, {exhibit.window.key}", shape, extra)


def player(address: str, label: str, shape: Sequence[int], extra: str = "") -> str:
    """A player, with the browser's own controls if JavaScript is off. Nothing is loaded before it is needed; its place
    is kept by the shape (F,H,W,3) of the clip."""
    _, height, width, _ = shape
    return (
        f'<video src="{address}" width="{width}" height="{height}" muted loop playsinline controls preload="none" '
        f'aria-label="{escape(label)}"{extra}></video>'
    )


def figure(screen: str, caption: str, line: str = "", attributes: str = "") -> str:
    """A player (with overlays), its caption, and its per-frame line."""
    return f'<figure{attributes}><div class="screen">{screen}</div><figcaption>{caption}</figcaption>{line}</figure>'


def timing(exhibit: Exhibit) -> str:
    """Attributes from which clock.js reads frame rate and frame count."""
    return f'data-fps="{exhibit.fps:g}" data-frames="{len(exhibit.clips[TARGET])}"'


def row(media: Media, exhibit: Exhibit, scores: Scores) -> str:
    """A window: its players side by side, and the values by which rows are sorted."""
    window, metrics = exhibit.window, scores["windows"][judged_row(scores["windows"])]
    lines = _lines(scores, window.number)
    players = []
    for column in _present(exhibit.clips):
        screen = video(media, exhibit, column.clip, column.title)
        hidden = "" if column.shown else " hidden"
        caption = f"<b>{column.title}</b><br>{_caption(scores, column.row, window.number)}"
        attributes = f' data-column="{escape(column.title)}"{hidden}'
        players.append(figure(screen, caption, lines.get(column.clip, ""), attributes))
    ranked = ranking(scores)
    gain = ranked.values[window.number]
    order = "" if gain is None or ranked.over is None else f' data-gain="{gain}"'
    order += "".join(f' data-{m}="{v[window.number]}"' for m, v in metrics.items() if v[window.number] is not None)
    return (
        f'<section class="window" id="window-{window.number}" {timing(exhibit)}{order}>'
        f'<h3 data-key="{escape(window.key)}"><span class="rank"></span>{escape(window.key)} '
        f"<small>{escape(window.source)} · {escape(exhibit.caption)}</small>"
        f'<button type="button" class="compare" hidden>Compare</button></h3>'
        f'<div class="players">{"".join(players)}</div></section>'
    )


def _present(clips: Collection[str]) -> list[Column]:
    """The columns of the clips that there are: references first, last the conditions of one of several references."""
    titles = reference_titles(clips)
    references = [Column(escape(titles[name]), name, INPUT if name == REFERENCE else None) for name in titles]
    conditions = [Column(escape(name), name, name, shown=False) for name in clips if is_of_one_reference(name)]
    present = [column for column in (*references, *COLUMNS, *conditions) if column.clip in clips]
    if ADAPTER_REFERENCE in clips:
        return present
    return [replace(c, title=c.title.removesuffix(", no reference"), shown=c.clip in SHOWN_PLAIN) for c in present]


def _caption(scores: Scores, row: str | None, number: int) -> str:
    """The values under a player: the primary metric, and PSNR or SSIM."""
    measured = scores["windows"].get(row, {})
    metrics = [m for m in dict.fromkeys((scores["primary"], "psnr", "ssim")) if m in measured][:2]
    return "<br>".join(tables.metric_value(scores, metric, measured[metric][number]) for metric in metrics) or "&nbsp;"


def _lines(scores: Scores, number: int) -> dict[str, str]:
    """Clip name -> per-frame line of the primary metric (else PSNR); all lines of a window share one scale."""
    by_frame = scores["frames"]
    metric = scores["primary"] if all(scores["primary"] in row for row in by_frame.values()) else "psnr"
    series = {name: row[metric][number] for name, row in by_frame.items()}
    values = [value for line in series.values() for value in line or ()]
    label = tables.metric_name(scores, metric)
    return {name: frame_line(label, line, min(values), max(values)) for name, line in series.items() if line}


def columns(present: Sequence[str]) -> str:
    """Checkboxes that show and hide columns. present: names of the available clips."""
    boxes = [
        f'<label><input type="checkbox" name="column" value="{escape(column.title)}"'
        f"{' checked' if column.shown else ''}> {column.title}</label>"
        for column in _present(present)
    ]
    return f"<fieldset><legend>columns</legend>{''.join(boxes)}</fieldset>"


def sort_options(scores: Scores) -> str:
    """Options of the sort menu, the first selected: the gain (`ranking`) if it was measured, or the primary metric.

    data-worst: whether low or high values are worst.
    """
    ranked, options = ranking(scores), list[str]()
    if ranked.over is not None:
        text = f"gain over the {ranked.over}: {tables.metric_name(scores, ranked.metric)}"
        options.append(f'<option value="gain" data-worst="low" selected>{text}</option>')
    for metric in scores["windows"][judged_row(scores["windows"])]:
        better = scores["metrics"][metric]["better"]
        if better is not None:
            selected = " selected" if metric == scores["primary"] and ranked.over is None else ""
            worst = "low" if better == "high" else "high"
            text = tables.metric_name(scores, metric)
            options.append(f'<option value="{metric}" data-worst="{worst}"{selected}>{text}</option>')
    return f'{"".join(options)}<option value="">order of evaluation</option>'

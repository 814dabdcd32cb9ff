"""The first screen of the report: the answer in one sentence, and the windows of worst, median and best gain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any

from eval.clips.conditions import ADAPTER_ONLY, ADAPTER_REFERENCE, BASE, BASE_REFERENCE, INPUT, judged_row
from eval.judging.answer import answer
from eval.judging.ranking import Example, Ranking, ranking
from eval.report import tables
from eval.report.audio import judged_streams
from eval.report.exhibits import REFERENCE, TARGET, Exhibit, reference_titles
from eval.report.media import Media
from eval.report.players import figure, player, timing
from eval.report.verdicts import CLASSES

Scores = Mapping[str, Any]
COLUMNS = {  # clip -> its title, after the references; clips of another program have no base
    BASE_REFERENCE: "without adapter",
    ADAPTER_REFERENCE: "with adapter",
    TARGET: "target",
}
COLUMNS_PLAIN = {BASE: "without adapter", ADAPTER_ONLY: "with adapter", TARGET: "target"}  # without a reference
OTHERS = {"fails": "fail", "inconclusive": "not decided"}  # outcome of a gate that does not hold -> word


def head(scores: Scores) -> str:
    """The task, the outcome of its gates, the answer, and what it rests on."""
    style = CLASSES[scores["gates"]["outcome"]]
    return (
        f'<h1>{escape(scores["task"])} <span class="{style}">{_gates(scores)}</span></h1>'
        f'<p class="answer">{escape(answer(scores))}</p><p class="basis">{_basis(scores)}</p>'
    )


def _gates(scores: Scores) -> str:
    """`3 of 4 gates hold, 1 not decided`."""
    outcomes = Counter(verdict["outcome"] for verdict in scores["verdicts"] if verdict["kind"] == "gate")
    unmeasured = len(scores["gates"]["not_measured"])
    other = [f"{outcomes[outcome]} {word}" for outcome, word in OTHERS.items() if outcomes[outcome]]
    other += [f"{unmeasured} not measured"] if unmeasured else []
    return ", ".join([f"{outcomes['holds']} of {outcomes.total() + unmeasured} gates hold", *other])


def _basis(scores: Scores) -> str:
    """What was evaluated on how many windows; and the synthetic probes in numbers."""
    recordings, probes = {clip["source"] for clip in scores["clips"]}, scores["simple"]
    seeds = f"{len(scores['seeds'])} seed{'s' if len(scores['seeds']) > 1 else ''}"
    base, streams = f"{scores['base']['name']} {scores['base']['version']}", judged_streams(scores)
    text = escape(
        f"{len(scores['clips'])} held-out windows of {len(recordings)} recordings, {seeds} each; "
        f"base {base}{f', {streams}' if streams else ''}; {scores['adapter']['path']}"
    )
    if not probes:
        return text
    passed = f"{probes['passed']} of {probes['of']} pass" if probes["of"] else "not run"
    return f'{text}; <a href="#probes">synthetic probes: {passed}</a>'


def row(media: Media, exhibit: Exhibit, scores: Scores, example: Example) -> str:
    """A window: references, without the adapter, with it, target."""
    window, figures = exhibit.window, []
    has_reference = judged_row(scores["windows"]) == ADAPTER_REFERENCE
    columns = {**reference_titles(exhibit.clips), **COLUMNS} if has_reference else COLUMNS_PLAIN
    for condition in (name for name in columns if name in exhibit.clips):
        clip, title = exhibit.clips[condition], columns[condition]
        poster = f' poster="{media.poster(clip[0])}"'
        screen = player(media.preview(exhibit, condition), f"{title}, {window.key}", clip.shape, poster)
        figures.append(figure(screen, f"<b>{escape(title)}</b>{_value(scores, condition, window.number)}"))
    return (
        f'<div class="example" {timing(exhibit)}><h3>{example.title}{_gain(scores, window.number)} '
        f'<small><a href="#window-{window.number}">{escape(window.key)}</a>, place {example.rank} of {example.of} from '
        f"the worst</small></h3>"
        f'<div class="players">{"".join(figures)}</div></div>'
    )


def rows(html: Mapping[int, str], chosen: list[Example], scores: Scores) -> str:
    """The rows from worst to best, and what they are ordered by."""
    ranked: Ranking = ranking(scores)
    has_reference = judged_row(scores["windows"]) == ADAPTER_REFERENCE
    base = "the base without reference" if has_reference else "the base"
    rival = {INPUT: "the input", BASE: base}.get(ranked.over or "")
    by = f"{f'the gain over {rival} in ' if rival else ''}{tables.metric_name(scores, ranked.metric)}"
    shown = "".join(html[example.number] for example in chosen if example.number in html)
    if not shown:
        return ""
    note = f"Ordered by {by}, mean over seeds. Each row is of another recording where there are enough. First seed."
    return f'{shown}<p class="basis">{note}</p>'


def _value(scores: Scores, condition: str, number: int) -> str:
    metric = ranking(scores).metric
    measured = scores["windows"].get(INPUT if condition == REFERENCE else condition, {})
    if metric not in measured or measured[metric][number] is None:
        return ""
    return f" <span>{tables.metric_value(scores, metric, measured[metric][number])}</span>"


def _gain(scores: Scores, number: int) -> str:
    ranked = ranking(scores)
    value = ranked.values[number]
    if value is None or ranked.over is None:
        return ""
    decimals, unit = tables.digits(scores, ranked.metric), scores["metrics"][ranked.metric]["unit"]
    return f": {value:+.{decimals}f} {escape(unit)}".rstrip()

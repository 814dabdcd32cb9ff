"""The tables of the report, as HTML that reads without JavaScript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.cells import OURS
from eval.metrics import DIRECTIONS
from eval.statistics import Estimate
from eval.verdicts import Verdict

TITLES = {
    "psnr": "PSNR",
    "psnr_y": "PSNR-Y",
    "ssim": "SSIM",
    "edge_f1": "edge F1 (1 px)",
    "edge_f1_strict": "edge F1 (strict)",
    "edge_f1_shuffled": "edge F1 shuffled",
    "edge_gap": "edge gap",
    "chroma_error": "chroma error",
    "colourfulness": "colourfulness",
    "sharpness": "sharpness",
    "flicker": "flicker",
}


def title(metric: str) -> str:
    """What a reader calls a metric."""
    return TITLES[metric]


def unit(metric: str) -> str:
    """`, dB`, or nothing."""
    name = DIRECTIONS[metric][0]
    return f", {name}" if name else ""


def _digits(metric: str) -> int:
    return 2 if DIRECTIONS[metric][0] else 3


def interval(figure: Estimate, digits: int = 2) -> str:
    """Mean, and under it the 95 % interval."""
    low, high = figure["low"], figure["high"]
    span = "no interval" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"
    return f"{figure['mean']:.{digits}f}<small>{span}</small>"


def _table(caption: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], marked: str = "") -> str:
    """A table with a caption, column and row headers; the row named `marked` stands out. Cells are HTML already."""
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(
        f'<tr{" class=ours" if name == marked else ""}><th scope="row">{name}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows
    )
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def verdicts(judged: Sequence[Verdict]) -> str:
    """One row per claim."""
    rows = []
    for verdict in judged:
        word = "pass" if verdict["passed"] else "fail"
        sources = verdict["by_source"]
        rows.append(
            (
                escape(verdict["claim"]),
                [
                    f'<span class="{word}">{word}</span>',
                    interval(verdict["value"], 3),
                    escape(verdict["threshold"]),
                    f"{interval(sources, 3)}",
                    str(sources["n"]),
                ],
            )
        )
    count = judged[0]["value"]["n"]
    head = ["claim", "", f"mean, 95 % interval over {count} windows", "wanted", "over recordings", "recordings"]
    return _table("Each figure is paired within a window; seeds are averaged first.", head, rows)


def cells(measured: Mapping[str, Mapping[str, Estimate]], primary: str) -> str:
    """Every cell and row against every metric."""
    head = ["cell", *(f"{'★ ' if m == primary else ''}{title(m)}{unit(m)}" for m in DIRECTIONS)]
    rows = [(escape(name), [interval(row[m], _digits(m)) for m in DIRECTIONS]) for name, row in measured.items()]
    return _table("Mean and 95 % interval over windows; ★ the primary metric of this task.", head, rows, marked=OURS)


def mask(figures: Mapping[str, Any]) -> str:
    """What the half-frame mask changed, inside and outside."""
    meaning = {
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
    rows = [(text, [interval(figures[key], 3)]) for key, text in meaning.items()]
    band = figures["band_pixels"]
    caption = (
        f"Change (against strength 0 where nothing else is said) under the same noise, without {band} px at the edge."
    )
    return _table(caption, ["half-frame mask", "mean, 95 % interval"], rows)


def brief(row: Mapping[str, Sequence[float]], number: int, primary: str) -> str:
    """The two figures under a player: PSNR and the primary metric (SSIM where that is PSNR)."""
    shown = list(dict.fromkeys(("psnr", primary, "ssim")))[:2]
    return "<br>".join(f"{title(m)} {row[m][number]:.{_digits(m)}f}" for m in shown)


def windows(scores: Mapping[str, Any]) -> str:
    """Adapter + reference on every window: nothing is left out."""
    head = ["window", "recording", *(f"{title(m)}{unit(m)}" for m in DIRECTIONS)]
    row = scores["windows"][OURS]
    rows = [
        (escape(clip["key"]), [escape(clip["source"]), *(f"{row[m][i]:.{_digits(m)}f}" for m in DIRECTIONS)])
        for i, clip in enumerate(scores["clips"])
    ]
    return _table("Adapter + reference, mean over seeds.", head, rows)


def provenance(scores: Mapping[str, Any]) -> str:
    """Where the figures come from, key by key."""
    facts = {"base": scores["base"], "adapter": scores["adapter"], "seeds": scores["seeds"]}
    facts |= {"timings": scores["timings"], **scores["provenance"]}
    rows = [(escape(key), [escape(text)]) for name, value in facts.items() for key, text in _leaves(name, value)]
    return _table("What was run, on what, with what.", ["key", "value"], rows)


def _leaves(name: str, value: Any) -> list[tuple[str, str]]:
    """`a.b` and its value as text, for every leaf of a JSON value (lists count as leaves)."""
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in _leaves(f"{name}.{key}", inner)]
    return [(name, json_text(value))]


def json_text(value: Any) -> str:
    """A leaf as people write it."""
    return (
        ", ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in value)
        if isinstance(value, list)
        else str(value)
    )

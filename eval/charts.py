"""Inline SVG for the report: a curve with its interval band. Colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from eval.statistics import Estimate

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40


def ends(figure: Estimate) -> tuple[float, float]:
    """The ends of an interval; the mean twice where there is none."""
    low, high = figure["low"], figure["high"]
    return (figure["mean"] if low is None else low, figure["mean"] if high is None else high)


def strength_curve(
    label: str, points: Sequence[tuple[float, Estimate]], levels: Sequence[tuple[str, Estimate]] = ()
) -> str:
    """A metric over attention strength (0 to 1) with its 95 % band; `levels` are named horizontal lines."""
    ordered = sorted(points, key=lambda point: point[0])
    values = [value for _, figure in points for value in ends(figure)] + [figure["mean"] for _, figure in levels]
    ticks = _ticks(min(values), max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)

    def x(s: float) -> float:
        return LEFT + s * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    upper = [f"{x(s):.1f},{y(ends(figure)[1]):.1f}" for s, figure in ordered]
    lower = [f"{x(s):.1f},{y(ends(figure)[0]):.1f}" for s, figure in reversed(ordered)]
    line = " ".join(f"{x(s):.1f},{y(figure['mean']):.1f}" for s, figure in ordered)
    dots = [
        f'<circle cx="{x(s):.1f}" cy="{y(figure["mean"]):.1f}" r="4"><title>strength {s:g}: {figure["mean"]:.3f}'
        f"</title></circle>"
        for s, figure in ordered
    ]
    return "".join(
        [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)} over strength">',
            *(_grid_line(y(tick), f"{tick:g}") for tick in ticks),
            *(_level_line(i, y(figure["mean"]), name) for i, (name, figure) in enumerate(levels)),
            f'<polygon class="band" points="{" ".join(upper + lower)}"/>',
            f'<polyline class="line" points="{line}"/><g class="dots">{"".join(dots)}</g>',
            *(_x_tick(x(s), f"{s:g}") for s, _ in ordered),
            f'<text x="{x(0.5):.0f}" y="{HEIGHT - 4}" text-anchor="middle">attention strength</text></svg>',
        ]
    )


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that span [low, high] (at least a small range)."""
    span = max(high - low, 1e-3)
    step = 10.0
    while step > span / 3:
        step /= 2 if f"{step:e}"[0] in "12" else 2.5
    first, last = int(low // step), int(-(-high // step))
    return [round(i * step, 9) for i in range(first, max(last, first + 1) + 1)]


def _grid_line(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _level_line(number: int, y: float, name: str) -> str:
    """A dashed line named at its right end; even ones above the line, odd ones below, so that neighbours stay apart."""
    text_y = y - 4 if number % 2 == 0 else y + 12
    return (
        f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{WIDTH - RIGHT}" y="{text_y:.1f}" text-anchor="end">{escape(name)}</text>'
    )


def _x_tick(x: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text}</text>'

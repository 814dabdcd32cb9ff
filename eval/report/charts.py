"""Inline SVG charts for the report: curves with intervals, bars, lines per frame. Colours come from report.css."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from eval.statistics.estimates import Estimate

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 40
LINE_WIDTH, LINE_HEIGHT = 192, 44  # of the per-frame line under a player

PointOrValue = float | Sequence[float]


@dataclass(frozen=True)
class Axes:
    """Axes of a chart of WIDTH x HEIGHT pixels. x covers `span`, y covers all `values`, with round ticks."""

    span: tuple[float, float]
    values: Sequence[float]

    @property
    def ticks(self) -> list[float]:
        """Four to eight round numbers that span the values."""
        return _ticks(min(self.values), max(self.values))

    def x(self, value: float) -> float:
        """Pixel column of a value."""
        left, right = self.span
        return LEFT + (value - left) / max(right - left, 1e-9) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Pixel row of a value."""
        low, high = min(self.ticks[0], *self.values), max(self.ticks[-1], *self.values)
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def frame(self, label: str, x_label: str, x_ticks: Sequence[float], inner: Sequence[str], name: str = "") -> str:
        """The complete SVG: grid, ticks, `inner` elements and the label of the x axis."""
        rows = [_grid_line(self.y(tick), f"{tick:g}") for tick in self.ticks]
        columns = [_x_tick(self.x(tick), f"{tick:g}") for tick in _without_overlap([(self.x(t), t) for t in x_ticks])]
        middle = f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">'
        return (
            f'<svg class="chart {name}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
            f"{''.join([*rows, *inner, *columns])}{middle}{escape(x_label)}</text></svg>"
        )


def ends(value: Estimate) -> tuple[float, float]:
    """The ends of the interval; the mean twice without an interval."""
    low, high = value["low"], value["high"]
    return (value["mean"] if low is None else low, value["mean"] if high is None else high)


def strength_curve(
    label: str,
    points: Sequence[tuple[float, Estimate]],
    levels: Sequence[tuple[str, Estimate]] = (),
    marks: Mapping[str, float] | None = None,
) -> str:
    """A metric over attention strength (0 to 1) with its 95 % band.

    levels: named horizontal lines. marks: named strengths, drawn as vertical lines.
    """
    ordered = sorted(points, key=lambda point: point[0])
    values = [value for _, estimate in points for value in ends(estimate)] + [
        estimate["mean"] for _, estimate in levels
    ]
    axes = Axes((0.0, 1.0), values)
    inner = [
        *(_mark(i, axes.x(s), name) for i, (name, s) in enumerate((marks or {}).items())),
        *(_level_line(i, axes.y(estimate["mean"]), name) for i, (name, estimate) in enumerate(levels)),
        _band(axes, ordered),
        _polyline(axes, [(s, estimate["mean"]) for s, estimate in ordered], "line"),
        f'<g class="dots">{"".join(_dot(axes, s, estimate) for s, estimate in ordered)}</g>',
        f'<line class="cursor" x1="{axes.x(1):.1f}" x2="{axes.x(1):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>',
    ]
    return axes.frame(
        f"{label} over attention strength", "attention strength", [s for s, _ in ordered], inner, "strength"
    )


def latent_frame_curve(blocks: Sequence[tuple[float, Estimate | None]]) -> str:
    """Mask weight and effect of each latent frame. Effect 1: the effect of the full reference; None: not measured."""
    points = [(float(i), estimate) for i, (_, estimate) in enumerate(blocks) if estimate is not None]
    values = [value for _, estimate in points for value in ends(estimate)] + [weight for weight, _ in blocks]
    axes = Axes((0.0, float(max(len(blocks) - 1, 1))), values)
    inner = [
        _band(axes, points),
        _polyline(axes, [(float(i), weight) for i, (weight, _) in enumerate(blocks)], "requested"),
        _polyline(axes, [(i, estimate["mean"]) for i, estimate in points], "line"),
        f'<g class="dots">{"".join(_dot(axes, i, estimate) for i, estimate in points)}</g>',
    ]
    numbers = [float(i) for i in range(len(blocks))]
    return axes.frame("effect per latent frame", "latent frame", numbers, inner)


def probe_curve(label: str, requested: Sequence[PointOrValue], measured: Sequence[PointOrValue]) -> str:
    """Requested (dashed) and measured values of a probe, frame by frame; x and y for points."""
    dashed, solid = (_coordinates(values) for values in (requested, measured))
    axes = Axes((0.0, float(max(len(requested), 2) - 1)), [value for line in dashed + solid for value in line])
    lines = [(line, "requested") for line in dashed] + [(line, "line") for line in solid]
    inner = [_polyline(axes, [(float(i), v) for i, v in enumerate(line)], style) for line, style in lines]
    return axes.frame(label, "frame", [float(i) for i in range(len(requested))], inner)


def _coordinates(values: Sequence[PointOrValue]) -> list[list[float]]:
    """One value or one point per frame -> one line per coordinate."""
    points = [[value] if isinstance(value, float | int) else list(value) for value in values]
    return [list(line) for line in zip(*points, strict=True)]


def bars(label: str, estimates: Sequence[tuple[str, Estimate]]) -> str:
    """Means as bars from 0, with intervals."""
    axes = Axes((0.0, float(len(estimates))), [0.0, *(value for _, estimate in estimates for value in ends(estimate))])
    inner = []
    for i, (name, estimate) in enumerate(estimates):
        left, middle = axes.x(i + 0.2), axes.x(i + 0.5)
        high, low = sorted(axes.y(end) for end in ends(estimate))
        top, zero = sorted((axes.y(estimate["mean"]), axes.y(0)))
        inner.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{2 * (middle - left):.1f}" '
            f'height="{zero - top:.1f}"><title>{escape(name)}: {estimate["mean"]:.3g}</title></rect>'
            f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
            f"{_x_tick(middle, escape(name))}"
        )
    return axes.frame(label, label, [], inner)


def frame_line(label: str, values: Sequence[float], low: float, high: float) -> str:
    """The small line under a player: a value per frame, scaled from `low` to `high`, with the playback cursor."""
    span = max(high - low, 1e-9)
    points = " ".join(
        f"{(i + 0.5) / len(values) * LINE_WIDTH:.1f},{3 + (high - value) / span * (LINE_HEIGHT - 6):.1f}"
        for i, value in enumerate(values)
    )
    text = f"{label} per frame: {min(values):.2f} to {max(values):.2f}"
    return (
        f'<svg class="frames" viewBox="0 0 {LINE_WIDTH} {LINE_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'data-values="{" ".join(f"{value:.4g}" for value in values)}" data-label="{escape(label)}" '
        f'aria-label="{escape(text)}"><title>{escape(text)}; click to seek</title>'
        f'<polyline class="line" points="{points}"/>'
        f'<line class="cursor" x1="0" x2="0" y1="0" y2="{LINE_HEIGHT}"/></svg>'
    )


def _band(axes: Axes, points: Sequence[tuple[float, Estimate]]) -> str:
    upper = [f"{axes.x(at):.1f},{axes.y(ends(estimate)[1]):.1f}" for at, estimate in points]
    lower = [f"{axes.x(at):.1f},{axes.y(ends(estimate)[0]):.1f}" for at, estimate in reversed(points)]
    return f'<polygon class="band" points="{" ".join(upper + lower)}"/>'


def _polyline(axes: Axes, points: Sequence[tuple[float, float]], name: str) -> str:
    return f'<polyline class="{name}" points="{" ".join(f"{axes.x(a):.1f},{axes.y(b):.1f}" for a, b in points)}"/>'


def _dot(axes: Axes, at: float, estimate: Estimate) -> str:
    text = f"{at:g}: {estimate['mean']:.3f}"
    return f'<circle cx="{axes.x(at):.1f}" cy="{axes.y(estimate["mean"]):.1f}" r="4"><title>{text}</title></circle>'


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that span [low, high]."""
    span = max(high - low, 1e-3)
    step = 10.0 ** len(str(int(span)))
    while step > span / 3:
        step /= 2 if f"{step:e}"[0] in "12" else 2.5
    first, last = int(low // step), int(-(-high // step))
    return [round(i * step, 9) for i in range(first, max(last, first + 1) + 1)]


def _without_overlap(ticks: Sequence[tuple[float, float]], gap: float = 24.0) -> list[float]:
    """Values of the ticks (column, value) whose labels do not overlap; the last tick is always included."""
    selected: list[tuple[float, float]] = []
    for column, value in reversed(ticks):
        if not selected or selected[-1][0] - column >= gap:
            selected.append((column, value))
    return [value for _, value in selected]


def _grid_line(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _level_line(number: int, y: float, name: str) -> str:
    """A dashed horizontal line with its name at the right; odd names go below the line to avoid overlaps."""
    text_y = y + 12 if number % 2 and y + 12 < HEIGHT - BOTTOM else y - 4
    return (
        f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{WIDTH - RIGHT}" y="{text_y:.1f}" text-anchor="end">{escape(name)}</text>'
    )


def _mark(number: int, x: float, name: str) -> str:
    """A vertical line with its name at the top; neighbours alternate between two text rows."""
    anchor = "end" if x > WIDTH - RIGHT - 60 else "start"
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="name" x="{x:.1f}" y="{11 + 12 * (number % 2)}" text-anchor="{anchor}">{escape(name)}</text>'
    )


def _x_tick(x: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text}</text>'

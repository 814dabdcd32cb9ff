"""From clips to values per window: every cell, the rows that need no model, and what the half-frame mask changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eval.cells import MASKED, NO_REFERENCE, Cell, Item, at_strength
from eval.metrics import DIRECTIONS, Clip, change, measure
from eval.render import Renderer, half_columns
from eval.statistics import Values

INPUT, CEILING, FLOOR = "input", "ceiling", "floor"
Rows = dict[str, dict[str, Values]]


@dataclass
class Measured:
    """Values per window (seeds averaged): of each cell and row, of the mask; and seconds of sampling per cell."""

    cells: Rows = field(default_factory=dict)
    mask: dict[str, Values] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Scorer:
    """Measures clips against the held-out pixels. `seeds` values are gathered per window and averaged."""

    def __init__(self, renderer: Renderer, batches: Sequence[Sequence[Item]]) -> None:
        self.renderer, self.batches = renderer, batches
        self.held = renderer.held
        self.target: Callable[[int], Clip] = lru_cache(maxsize=8)(lambda n: self.held.pair(self.held.windows[n]).target)

    def run(self, grid: Sequence[Cell], progress: Progress) -> Measured:
        """Sample (or read back) and measure every cell, then the rows without a model, then the mask."""
        measured = Measured()
        task = progress.add_task("", total=len(grid) * len(self.batches))
        for cell in grid:
            progress.update(task, description=cell.name)
            seconds = 0.0
            values: list[tuple[Item, dict[str, float]]] = []
            for batch in self.batches:
                clips, spent = self.renderer.clips(cell, batch)
                seconds += spent
                values += [(item, self._measure(item, clip)) for item, clip in zip(batch, clips, strict=True)]
                progress.advance(task)
            measured.cells[cell.name] = self._per_window(values)
            measured.seconds[cell.name] = round(seconds, 3)
            say(progress.console, f"  {cell.name:18} {seconds:7.1f} s   {_line(measured.cells[cell.name])}")
        measured.cells |= self._still_rows()
        measured.mask = self._mask()
        return measured

    def _measure(self, item: Item, clip: Clip) -> dict[str, float]:
        return measure(clip, self.target(item.window.number), self.target(item.window.partner))

    def _per_window(self, values: Sequence[tuple[Item, Mapping[str, float]]]) -> dict[str, Values]:
        """(item, name -> value) of all items -> name -> values (windows,), the mean over seeds."""
        count = len(self.held.windows)
        number = np.array([item.window.number for item, _ in values])
        seeds = np.bincount(number, minlength=count)
        return {name: np.bincount(number, [value[name] for _, value in values], count) / seeds for name in values[0][1]}

    def _still_rows(self) -> Rows:
        """The degraded input, the VAE round trip of the target, another source's target: measured as if outputs."""
        rows: Rows = {}
        for name, clip_of in ((INPUT, self.input), (CEILING, self.ceiling), (FLOOR, self.floor)):
            items = [Item(window, 0) for window in self.held.windows]
            rows[name] = self._per_window([(i, self._measure(i, clip_of(i.window.number))) for i in items])
        return rows

    def input(self, number: int) -> Clip:
        """The first reference as it stands, brought to the target's size (cubic) and frame count (frames repeated)."""
        pair = self.held.pair(self.held.windows[number])
        frames, height, width = pair.target.shape[:3]
        given = pair.references[0]
        which = np.arange(frames) * len(given) // frames
        if given.shape[1:3] == (height, width):
            return given[which]
        return np.stack([cv2.resize(given[i], (width, height), interpolation=cv2.INTER_CUBIC) for i in which]).astype(
            np.uint8
        )

    def ceiling(self, number: int) -> Clip:
        """The target after the VAE."""
        return self.renderer.round_trip(self.held.windows[number])

    def floor(self, number: int) -> Clip:
        """The target of another source."""
        return self.target(self.held.windows[number].partner)

    def _mask(self) -> dict[str, Values]:
        """Mean changes (levels) inside and outside the half-frame mask, without the transition band: of the masked run
        against strength 0 and against the full one, of the full one against strength 0; and `null`: strength 0 against
        the adapter without reference."""
        values = []
        cells = {
            "masked": Cell(MASKED, True, "own", half_mask=True),
            "full": at_strength(1),
            "none": at_strength(0),
            "absent": Cell(NO_REFERENCE, True, "none"),
        }
        for batch in self.batches:
            made = {name: self.renderer.clips(cell, batch)[0] for name, cell in cells.items()}
            for i, item in enumerate(batch):
                masked, full, none, absent = (made[name][i] for name in cells)
                width = none.shape[2]
                inside, outside = half_columns(width, self.renderer.band, item.window.mask_left)
                values.append(
                    (
                        item,
                        {
                            "inside": change(masked, none, inside),
                            "outside": change(masked, none, outside),
                            "kept": change(masked, full, inside),
                            "dropped": change(masked, full, outside),
                            "full_inside": change(full, none, inside),
                            "full_outside": change(full, none, outside),
                            "null": change(absent, none, slice(0, width)),
                        },
                    )
                )
        return self._per_window(values)


def _line(row: Mapping[str, Values]) -> str:
    """The metrics of a finished cell that tell most, for the console."""
    shown = ("psnr", "ssim", "edge_f1", "chroma_error")
    return "  ".join(f"{name} {row[name].mean():.3f} {DIRECTIONS[name][0]}".rstrip() for name in shown)


def say(console: Console, *lines: str) -> None:
    """Print lines as they are: not wrapped, and without reading [...] as markup."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def progress_bar(console: Console) -> Progress:
    """Batches done, time spent, time left."""
    return Progress(
        TextColumn("[bold]{task.description:18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("batches, spent"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )

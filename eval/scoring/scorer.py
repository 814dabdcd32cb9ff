"""From clips to values per window: every cell, the rows that need no model, and what conditions change.

Clips are measured by a few threads while the next batch is sampled; no more than a batch waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from eval.clips.alignment import require_aligned
from eval.clips.attention_masks import latent_frame_slices
from eval.clips.clip_source import ClipSource
from eval.clips.conditions import (
    ADAPTER_REFERENCE,
    BASE_REFERENCE,
    FADE_MASK,
    HALF_MASK,
    SWAPPED,
    Condition,
    Item,
    at_strength,
)
from eval.metrics import Clip, Measurement, Suite, offset
from eval.scoring.changes import changes, over_seeds
from eval.scoring.ground_truth import GroundTruths
from eval.statistics.estimates import Values, drop_nan
from iclora_train.core.progress import progress_bar

INPUT, CEILING, FLOOR = "input", "ceiling", "floor"
BY_BLOCK = (ADAPTER_REFERENCE, at_strength(0).name, FADE_MASK)  # cells of which it is kept how latent frames follow
BY_FRAME = (ADAPTER_REFERENCE, BASE_REFERENCE)  # rows whose values are kept frame by frame, first seed
Row = dict[str, Values]
Frames = dict[str, list[list[float] | None]]  # metric -> window -> frame


@dataclass
class Results:
    """Values per window, seeds averaged; NaN where a metric could not be measured.

    cells: of each cell and row; giver: of swapped, against the window whose reference it was given; changed: as
    `changes`; by_block: adherence (windows, latent frames) in the cells that a fade is seen from; diversity: cell ->
    values; frames: row -> values by frame; seconds: of each cell; clips: in each cell.
    """

    cells: dict[str, Row] = field(default_factory=dict)
    giver: Row = field(default_factory=dict)
    changed: Row = field(default_factory=dict)
    by_block: dict[str, Values] = field(default_factory=dict)
    diversity: Row = field(default_factory=dict)
    frames: dict[str, Frames] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    clips: int = 0


class Scorer:
    """Measures the clips of a source against the held-out pixels."""

    def __init__(self, source: ClipSource, batches: Sequence[Sequence[Item]], suite: Suite) -> None:
        self.renderer, self.batches, self.suite = source, batches, suite
        self.held = source.held
        self.truths = GroundTruths(source.held, source.config.task, source.token)
        self.target = self.truths.target

    def run(self, console: Console) -> Results:
        """Sample (or read back) and measure every cell, then the rows without a model, then what conditions change.

        ConfigError when outputs and targets are not aligned in time.
        """
        results = Results(clips=sum(map(len, self.batches)))
        stages = len(self.renderer.cells) + 1 + (HALF_MASK in self._names)
        total = stages * len(self.batches)
        with (
            progress_bar("without a model", total, "batch", console=console) as bar,
            threads(self.renderer.config.eval.workers) as pool,
        ):
            self._still_rows(results, pool)
            bar.advance(len(self.batches))
            for cell in self.renderer.cells:
                bar.update(description=cell.name)
                self._cell(cell, results, pool, bar.advance)
                say(console, self._line(cell.name, results))
            if HALF_MASK in self._names:
                bar.update(description="changes")
                self._changes(results, pool, bar.advance)
        return results

    @property
    def _names(self) -> set[str]:
        return {cell.name for cell in self.renderer.cells}

    def _cell(self, cell: Condition, results: Results, pool: Executor, done: Callable[[], None]) -> None:
        """One cell into `results`."""
        seconds, running = 0.0, list[Future[Measurement]]()
        own: list[tuple[Item, Future[Measurement]]] = []
        giver: list[tuple[Item, Future[Measurement]]] = []
        for batch in self.batches:
            clips, spent = self.renderer.clips(cell, batch)
            seconds += spent
            wait(running)  # for the batch before this one
            running = [pool.submit(self._measure, i.window.number, clip) for i, clip in zip(batch, clips, strict=True)]
            own += zip(batch, running, strict=True)
            if cell.name == SWAPPED:
                to = [pool.submit(self._measure, i.window.partner, clip) for i, clip in zip(batch, clips, strict=True)]
                giver += zip(batch, to, strict=True)
                running = running + to
            done()
        measured = [(item, future.result()) for item, future in own]
        results.cells[cell.name] = self._per_window([(item, found.values) for item, found in measured])
        results.seconds[cell.name] = round(seconds, 3)
        if cell.name in BY_BLOCK:
            results.by_block[cell.name] = self._by_block(measured)
        if cell.name in BY_FRAME:
            results.frames[cell.name] = self._by_frame(measured)
        if giver:
            results.giver = self._per_window([(item, future.result().values) for item, future in giver])

    def _measure(self, number: int, clip: Clip) -> Measurement:
        return self.suite.measure(clip, self.truths.of(number))

    def _per_window(self, values: Sequence[tuple[Item, Mapping[str, float]]]) -> Row:
        """(item, name -> value) of all items -> name -> values (windows,): the mean over the seeds that have one."""
        names = dict.fromkeys(name for _, value in values for name in value)
        row = {}
        for name in names:
            total, count = np.zeros((2, len(self.held.windows)))
            for item, value in values:
                if not np.isnan(value.get(name, np.nan)):
                    total[item.window.number] += value[name]
                    count[item.window.number] += 1
            row[name] = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        return row

    def _by_frame(self, measured: Sequence[tuple[Item, Measurement]]) -> Frames:
        """Series of the first seed: metric -> window -> values by frame, None where it could not be measured."""
        first = measured[0][0].seed
        of_window = {item.window.number: found.frames for item, found in measured if item.seed == first}
        names = dict.fromkeys(name for frames in of_window.values() for name in frames)
        return {name: [of_window[n].get(name) for n in range(len(self.held.windows))] for name in names}

    def _by_block(self, measured: Sequence[tuple[Item, Measurement]]) -> Values:
        """Adherence in each latent frame, (windows, latent frames): the primary metric of structure where it is known
        by frame, elsewhere PSNR."""
        structure = self.renderer.config.task.family == "structure"
        led = structure and any(self.suite.primary in found.frames for _, found in measured)
        name = self.suite.primary if led else "psnr"
        places = list(enumerate(latent_frame_slices(len(self.target(0)), self.renderer.base.geometry.temporal)))
        series = [(item, found.frames[name]) for item, found in measured if name in found.frames]
        row = self._per_window([(item, {str(k): float(np.mean(x[at])) for k, at in places}) for item, x in series])
        return np.stack(list(row.values()), axis=1)

    def _still_rows(self, results: Results, pool: Executor) -> None:
        """The degraded input, the VAE round trip of the target, another recording's target: measured as if outputs."""
        items = [Item(window, 0) for window in self.held.windows]
        numbers = {f"the VAE round trip of {item.window.key}": item.window.number for item in items}
        require_aligned({name: offset(self.ceiling(n), self.target(n)) for name, n in numbers.items()})
        for name, clip_of in ((INPUT, self.input), (CEILING, self.ceiling), (FLOOR, self.floor)):
            found = pool.map(lambda n, clip_of=clip_of: self._measure(n, clip_of(n)), range(len(items)))
            results.cells[name] = self._per_window([(i, f.values) for i, f in zip(items, found, strict=True)])

    def input(self, number: int) -> Clip:
        """The first reference as it stands, brought to the target's size and frame count."""
        return self.truths.of(number).reference

    def ceiling(self, number: int) -> Clip:
        """The target after the VAE."""
        return self.renderer.round_trip(self.held.windows[number])

    def floor(self, number: int) -> Clip:
        """The target of another recording."""
        return self.target(self.held.windows[number].partner)

    def _changes(self, results: Results, pool: Executor, done: Callable[[], None]) -> None:
        """What masks, strength 0 and seeds change, into `results`."""
        found: list[tuple[Item, Mapping[str, float]]] = []
        for batch in self.batches:
            of_batch = pool.map(lambda i, batch=batch: changes(self.renderer, batch, i), range(len(batch)))
            found += zip(batch, of_batch, strict=True)
            done()
        results.changed = self._per_window(found)
        if len({item.seed for item, _ in found}) > 1:
            windows = [Item(window, 0) for window in self.held.windows]
            seeds = pool.map(lambda n: over_seeds(self.renderer, self.batches, n), range(len(windows)))
            results.diversity = self._per_window(list(zip(windows, seeds, strict=True)))

    def _line(self, name: str, results: Results) -> str:
        """A finished cell for the console: its time, and the metrics that lead the report."""
        row, units = results.cells[name], {metric.key: metric.unit for metric in self.suite.metrics}
        means = {key: drop_nan(row[key]) for key in (self.suite.primary, "psnr", "ssim") if key in row}
        figures = "  ".join(f"{key} {x.mean():.3f} {units[key]}".rstrip() for key, x in means.items() if len(x))
        return f"  {name:18} {results.seconds[name]:7.1f} s   {figures}"


@contextmanager
def threads(count: int) -> Iterator[Executor]:
    """A pool whose work that has not begun is dropped when the block is left, also by an interruption."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="measure")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def say(console: Console, *lines: str) -> None:
    """Print lines as they are: not wrapped, and without reading [...] as markup."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

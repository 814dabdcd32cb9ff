"""Score clips against the held-out pixels: every condition, the model-free rows, and changes between conditions.

A model-free row is measured without a model: the reference itself, the reference after a classic filter, the target
after the VAE, another clip's target.

A thread pool measures one batch while the next batch is sampled. At most one batch waits to be measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import numpy as np
from rich.console import Console

from eval.clips.alignment import require_aligned
from eval.clips.attention_masks import latent_frame_slices
from eval.clips.clip_source import ClipSource
from eval.clips.conditions import (
    ADAPTER_REFERENCE,
    BASE_REFERENCE,
    CEILING,
    CLASSIC,
    FADE_MASK,
    FLOOR,
    INPUT,
    SWAPPED,
    Condition,
    Item,
    at_strength,
)
from eval.clips.cost import Forecast
from eval.clips.sampled import SampledClips
from eval.metrics import Clip, Measurement, Suite, offset
from eval.metrics.extra import ClipFeatures
from eval.metrics.held_out_loss import VELOCITY_LOSS
from eval.metrics.picture import PSNR_CAP
from eval.metrics.structure import AGREEMENT
from eval.scoring.classic_row import ClassicRow
from eval.scoring.clip_sets import TARGETS, ClipSets
from eval.scoring.common_scale import ControlScale, agreement_by_frame, control_scales, with_agreement
from eval.scoring.condition_changes import condition_changes, has_changes, seed_diversity
from eval.scoring.ground_truth import GroundTruths
from eval.scoring.likeness import likeness
from eval.scoring.results import Frames, Results, Row
from eval.scoring.sound_scores import SoundScores
from eval.statistics.estimates import Values
from iclora_train.core.progress import ProgressBar, progress_bar

BY_LATENT_FRAME = (ADAPTER_REFERENCE, at_strength(0).name, FADE_MASK)  # scored per latent frame, for the fade mask
MODEL_FREE = (INPUT, CLASSIC, CEILING, FLOOR)
BY_FRAME = (ADAPTER_REFERENCE, BASE_REFERENCE)  # conditions with per-frame values in scores.json, first seed only


class Scorer:
    """Measures the clips of a source against the held-out pixels."""

    def __init__(
        self,
        source: ClipSource,
        batches: Sequence[Sequence[Item]],
        suite: Suite,
        features: ClipFeatures | None = None,
    ) -> None:
        """features: the network of FVD, if that is measured too."""
        self.source, self.batches, self.suite = source, batches, suite
        self.held_out = source.held_out
        self.ground_truths = GroundTruths(
            source.held_out, source.config.task, source.base.geometry, source.token_pixels
        )
        self.target = self.ground_truths.target
        self.clip_sets = ClipSets(features, [window.source for window in source.held_out.windows])
        self.sounds = SoundScores(source) if suite.with_sound and isinstance(source, SampledClips) else None
        self.classic_row = ClassicRow(self.held_out, self.ground_truths, source.config.task, source.device)

    def run(self, console: Console, forecast: Forecast | None = None, known: Results | None = None) -> Results:
        """Sample (or read from the cache) and measure every condition, the model-free rows and the changes.

        forecast: of the batches (name of the condition, number of the batch); the progress bar shows when they end.
        known: results on the same windows, of which the model-free rows are taken.
        Raises ConfigError if outputs and targets are not aligned in time.
        """
        results = Results(clips=sum(map(len, self.batches)))
        with_changes = has_changes(self.source)
        total = (len(self.source.conditions) + 1 + with_changes) * len(self.batches)
        with (
            progress_bar("without a model", total, "batch", console=console) as bar,
            thread_pool(self.source.config.eval.workers) as pool,
        ):
            self.clip_sets.submit(pool, TARGETS, range(len(self.held_out.windows)), self.target)
            if known is None:
                self._score_model_free_rows(results, pool)
            else:
                results.rows |= {name: row for name, row in known.rows.items() if name in MODEL_FREE}
                results.equal_frames |= {name: of for name, of in known.equal_frames.items() if name in MODEL_FREE}
                results.classic = known.classic
            self._put_on_common_scale(results)
            bar.advance(len(self.batches))
            for condition in self.source.conditions:
                bar.update(description=condition.name)
                self._score_condition(condition, results, pool, self._counter(condition, bar, forecast))
                print_lines(console, results.summary_line(condition.name, self.suite))
            if with_changes:
                bar.update(description="changes")
                self._score_changes(results, pool, bar.advance)
            if len(self.source.seeds) > 1 and with_changes:
                self._score_diversity(results, pool)
            results.likeness = likeness(self.source, self.batches, self.target)
            self.clip_sets.finish()
        results.sets = self.clip_sets.compared(console)
        return results

    def _counter(self, condition: Condition, bar: ProgressBar, forecast: Forecast | None) -> Callable[[], None]:
        """A function that counts the next batch of a condition as done."""
        number, last = 0, time.perf_counter()

        def count() -> None:
            nonlocal number, last
            now = time.perf_counter()
            if forecast is not None:
                forecast.finish((condition.name, number), now - last)
                bar.update(note=forecast.note)
            number, last = number + 1, now
            bar.advance()

        return count

    def _score_condition(
        self, condition: Condition, results: Results, pool: Executor, on_batch: Callable[[], None]
    ) -> None:
        """Sample and measure one condition; write it into `results`."""
        seconds, running = 0.0, list[Future[Measurement]]()
        futures: list[tuple[Item, Future[Measurement]]] = []
        donor_futures: list[tuple[Item, Future[Measurement]]] = []
        more: dict[Item, dict[str, float]] = {}  # the loss, of a task that is judged by it, or metrics of the sound
        for batch in self.batches:
            clips, batch_seconds = self.source.clips(condition, batch)
            seconds += batch_seconds
            wait(running)  # at most one batch waits to be measured
            running = [pool.submit(self._measure, i.window.number, clip) for i, clip in zip(batch, clips, strict=True)]
            futures += zip(batch, running, strict=True)
            if condition.name == SWAPPED:
                donor = [
                    pool.submit(self._measure, i.window.partner, clip) for i, clip in zip(batch, clips, strict=True)
                ]
                donor_futures += zip(batch, donor, strict=True)
                running = running + donor
            if VELOCITY_LOSS in self.suite.metrics and condition.audio:  # that loss is of the video stream in any case
                values_of_batch = self.source.velocity_losses(condition, batch)
                more |= {i: {VELOCITY_LOSS.key: loss} for i, loss in zip(batch, values_of_batch, strict=True)}
            if self.sounds is not None:
                of_sound = self.sounds.of_batch(condition, batch)
                more |= {item: {**more.get(item, {}), **values} for item, values in of_sound.items()}
            numbers = [item.window.number for item in batch]
            running = running + self.clip_sets.submit(pool, condition.name, numbers, clips.__getitem__)
            on_batch()
        measured = [(item, future.result()) for item, future in futures]
        values = [(item, {**result.values, **more.get(item, {})}) for item, result in measured]
        results.rows[condition.name] = with_agreement(self._per_window(values), results.scales)
        results.equal_frames[condition.name] = self._equal_frames(measured)
        results.by_seed[condition.name] = with_agreement(self._per_seed(values), results.scales)
        results.seconds[condition.name] = round(seconds, 3)
        if condition.name in BY_LATENT_FRAME:
            results.by_latent_frame[condition.name] = self._by_latent_frame(measured)
        if condition.name in BY_FRAME:
            results.frames[condition.name] = self._by_frame(measured, results.scales)
        if donor_futures:
            donated = self._per_window([(item, future.result().values) for item, future in donor_futures])
            results.donor = with_agreement(donated, results.scales)

    def _measure(self, number: int, clip: Clip) -> Measurement:
        return self.suite.measure(clip, self.ground_truths.of(number))

    def _per_window(self, values: Sequence[tuple[Item, Mapping[str, float]]]) -> Row:
        """Metric -> values (windows,): per window the mean over the seeds for which the metric was measured."""
        names = dict.fromkeys(name for _, value in values for name in value)
        row = {}
        for name in names:
            total, count = np.zeros((2, len(self.held_out.windows)))
            for item, value in values:
                if not np.isnan(value.get(name, np.nan)):
                    total[item.window.number] += value[name]
                    count[item.window.number] += 1
            row[name] = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        return row

    def _per_seed(self, values: Sequence[tuple[Item, Mapping[str, float]]]) -> Row:
        """Metric -> values (windows, seeds)."""
        seeds, windows = self.source.seeds, len(self.held_out.windows)
        row = {name: np.full((windows, len(seeds)), np.nan) for name in dict.fromkeys(n for _, v in values for n in v)}
        for item, measured in values:
            for name, value in measured.items():
                row[name][item.window.number, seeds.index(item.seed)] = value
        return row

    def _by_frame(self, measured: Sequence[tuple[Item, Measurement]], scales: Mapping[str, ControlScale]) -> Frames:
        """Per-frame values of the first seed: metric -> window -> values, None where not measured.

        Of a set with several controls: PSNR and `agreement`.
        """
        first_seed = measured[0][0].seed
        by_window = {item.window.number: result.frames for item, result in measured if item.seed == first_seed}
        names = dict.fromkeys(name for frames in by_window.values() for name in frames)
        frames = {name: [by_window[n].get(name) for n in range(len(self.held_out.windows))] for name in names}
        return {"psnr": frames["psnr"], AGREEMENT.key: agreement_by_frame(frames, scales)} if scales else frames

    def _equal_frames(self, measured: Sequence[tuple[Item, Measurement]]) -> Values:
        """Share of the frames of each window, over its seeds, whose PSNR is the cap: they equal their target."""
        shares = [(item, {"share": float(np.mean(np.array(m.frames["psnr"]) >= PSNR_CAP))}) for item, m in measured]
        return self._per_window(shares)["share"]

    def _by_latent_frame(self, measured: Sequence[tuple[Item, Measurement]]) -> Values:
        """Adherence (windows, latent frames): for structure tasks the metric of the window's control if it is per
        frame, else PSNR."""
        by_frame = {name for _, result in measured for name in result.frames}
        structure = self.source.config.task.family == "structure"

        def metric(item: Item) -> str:
            controls = [c.name for c in self.held_out.controls[item.window.key] if c.name in self.suite.controls]
            adherence = self.suite.controls[controls[0]].primary if controls else self.suite.primary
            return adherence if structure and adherence in by_frame else "psnr"

        slices = list(enumerate(latent_frame_slices(len(self.target(0)), self.source.base.geometry.temporal)))
        series = [(item, result.frames[metric(item)]) for item, result in measured if metric(item) in result.frames]
        row = self._per_window([(item, {str(k): float(np.mean(x[at])) for k, at in slices}) for item, x in series])
        return np.stack(list(row.values()), axis=1)

    def _score_model_free_rows(self, results: Results, pool: Executor) -> None:
        """Measure like outputs: the input, also filtered, the target after the VAE, another recording's target."""
        items = [Item(window, 0) for window in self.held_out.windows]
        numbers = {f"the VAE round trip of {item.window.key}": item.window.number for item in items}
        require_aligned({name: offset(self.ceiling(n), self.target(n)) for name, n in numbers.items()})
        rows: dict[str, Callable[[int], Clip]] = {CEILING: self.ceiling, FLOOR: self.floor}
        if self.source.config.task.has_reference:
            rows = {INPUT: self.input, **rows}
        results.classic = self.classic_row.choose(pool)
        if (classic := results.classic.chosen) is not None:
            rows[CLASSIC] = lambda n: classic.apply(self.classic_row.window(n))
        for name, clip_of in rows.items():
            measured = pool.map(lambda n, clip_of=clip_of: self._measure(n, clip_of(n)), range(len(items)))
            of_items = list(zip(items, measured, strict=True))
            of_sound = {} if self.sounds is None else self.sounds.of_row(name)
            values = [(item, {**m.values, **of_sound.get(item.window.number, {})}) for item, m in of_items]
            results.rows[name] = self._per_window(values)
            results.equal_frames[name] = self._equal_frames(of_items)
            self.clip_sets.submit(pool, name, range(len(items)), clip_of)

    def _put_on_common_scale(self, results: Results) -> None:
        """Of a set with several controls, compute the scales from the rows without a model, and these rows on them."""
        windows = self.held_out.windows
        controls, recordings = [self.held_out.controls[w.key] for w in windows], [w.source for w in windows]
        results.scales = control_scales(results.rows, self.suite, controls, recordings)
        results.rows = {name: with_agreement(row, results.scales) for name, row in results.rows.items()}

    def input(self, number: int) -> Clip:
        """The first reference, resized to the size and frame count of the target."""
        return self.ground_truths.of(number).cached_reference.clip

    def ceiling(self, number: int) -> Clip:
        """The target after the VAE."""
        return self.source.round_trip(self.held_out.windows[number])

    def floor(self, number: int) -> Clip:
        """The target of another recording."""
        return self.target(self.held_out.windows[number].partner)

    def _score_changes(self, results: Results, pool: Executor, on_batch: Callable[[], None]) -> None:
        """Measure how masks, strength 0 and the adapter change the clips."""
        changes: list[tuple[Item, Mapping[str, float]]] = []
        for batch in self.batches:
            per_item = pool.map(lambda i, batch=batch: condition_changes(self.source, batch, i), range(len(batch)))
            changes += zip(batch, per_item, strict=True)
            on_batch()
        results.changes = self._per_window(changes)

    def _score_diversity(self, results: Results, pool: Executor) -> None:
        """Measure how the seeds of a window differ."""
        windows = [Item(window, 0) for window in self.held_out.windows]
        diversity = pool.map(lambda n: seed_diversity(self.source, self.batches, n), range(len(windows)))
        results.diversity = self._per_window(list(zip(windows, diversity, strict=True)))


@contextmanager
def thread_pool(count: int) -> Iterator[Executor]:
    """A thread pool that drops queued work when the block is left, also on an interruption."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="measure")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def print_lines(console: Console, *lines: str) -> None:
    """Print lines unwrapped, without interpreting [...] as markup."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

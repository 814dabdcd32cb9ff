"""The clips that the report shows per window: every condition, first seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from eval.clips.conditions import CEILING, Item, judged_row
from eval.clips.windows import Window
from eval.judging.ranking import ranking
from eval.metrics import Clip, GroundTruth
from eval.scoring.scorer import Scorer
from iclora_train.config.references import FIRST

REFERENCE, TARGET = "reference", "target"
REFERENCE_PREFIX = "reference "  # of a further one of several references; then its name
CONTROL, CONTROL_TARGET = "control in the output", "control in the target"
EXAMPLES = 6  # windows in the strength and mask sections
# Extracts and draws the control signal of a clip; None if the task has no control
Control = Callable[[Clip, GroundTruth], Clip | None]


class Clips(Mapping[str, Clip]):
    """Clips by name, each sampled or read on access: all clips of a window together may not fit in memory."""

    def __init__(self, loaders: Mapping[str, Callable[[], Clip]]) -> None:
        self._loaders = loaders

    def __getitem__(self, name: str) -> Clip:
        return self._loaders[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._loaders

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)


@dataclass(frozen=True)
class Exhibit:
    """A window and its clips of the first seed, named after conditions, rows and the constants above."""

    window: Window
    fps: float
    caption: str
    clips: Mapping[str, Clip]


def exhibits(scorer: Scorer, control: Control) -> Iterator[Exhibit]:
    """Every window with its clips of all conditions, and the control extracted from output and target."""
    first = scorer.batches[0][0].seed
    for batch in scorer.batches:
        for i, item in enumerate(batch):
            if item.seed == first:
                pair = scorer.held_out.pair(item.window)
                clips = _clips(scorer, control, batch, i)
                yield Exhibit(item.window, pair.fps, pair.caption, Clips(clips))


def reference_titles(clips: Iterable[str]) -> dict[str, str]:
    """Clip -> title of each reference: `reference`, or of several `reference first`, `reference still`."""
    further = [name for name in clips if name.startswith(REFERENCE_PREFIX)]
    return {REFERENCE: f"{REFERENCE_PREFIX}{FIRST}" if further else REFERENCE, **{name: name for name in further}}


def _clips(scorer: Scorer, control: Control, batch: Sequence[Item], i: int) -> dict[str, Callable[[], Clip]]:
    """Clip name -> function that returns the clip, for the i-th item of a batch."""
    number, conditions = batch[i].window.number, scorer.source.conditions
    truth = scorer.ground_truths.of(number)
    clips: dict[str, Callable[[], Clip]] = {
        condition.name: partial(scorer.source.clip, condition, batch, i) for condition in conditions
    }
    if truth.reference is not None:
        clips[REFERENCE] = lambda: truth.cached_reference.clip
    for further, name in enumerate(scorer.source.config.task.reference_names[1:], start=1):
        clips[f"{REFERENCE_PREFIX}{name}"] = partial(scorer.ground_truths.reference, number, further)
    clips |= {
        TARGET: lambda: truth.target,
        CEILING: partial(scorer.ceiling, number),
    }
    in_target, in_output = control(truth.target, truth), control(clips[judged_row(clips)](), truth)
    if in_target is not None and in_output is not None:
        clips |= {CONTROL_TARGET: lambda: in_target, CONTROL: lambda: in_output}
    return clips


def examples(scores: Mapping[str, Any]) -> list[int]:
    """Up to EXAMPLES window numbers at equal steps from the worst to the best gain."""
    order = ranking(scores).worst_first()
    indices = np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int)
    return [order[i] for i in indices]

"""Is every output most like its own target? One that is more like the target of another recording is a wrong file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval.clips.clip_source import ClipSource
from eval.clips.conditions import ADAPTER_REFERENCE, Item
from eval.metrics import Clip
from eval.metrics.likeness import layout

DIGITS = 4


def likeness(
    source: ClipSource, batches: Sequence[Sequence[Item]], target: Callable[[int], Clip]
) -> dict[str, list[Any]]:
    """`likeness` of scores.json, of adapter+reference: own: the likeness of each window's output to its own target;
    other: to the most similar target of another recording; nearest: the key of that. Of several seeds, the one that is
    least like its own target. Empty without this condition, or with windows of a single recording.

    target: number of a window -> its target.
    """
    condition = next((of for of in source.conditions if of.name == ADAPTER_REFERENCE), None)
    windows = source.held_out.windows
    if condition is None or len({window.source for window in windows}) < 2:
        return {}
    targets = np.stack([layout(target(window.number)) for window in windows])  # (windows, cells)
    recordings = np.array([window.source for window in windows])
    worst: dict[int, tuple[float, float, int]] = {}  # window -> own, other, number of the other
    for batch in batches:
        for i, item in enumerate(batch):
            alike = targets @ layout(source.clip(condition, batch, i))
            number = item.window.number
            others = np.where(recordings == recordings[number], -np.inf, alike)
            of_clip = float(alike[number]), float(others.max()), int(others.argmax())
            worst[number] = min(worst.get(number, of_clip), of_clip, key=lambda of: of[0] - of[1])
    of_windows = [worst[window.number] for window in windows]
    return {
        "own": [round(own, DIGITS) for own, _, _ in of_windows],
        "other": [round(other, DIGITS) for _, other, _ in of_windows],
        "nearest": [windows[number].key for _, _, number in of_windows],
    }

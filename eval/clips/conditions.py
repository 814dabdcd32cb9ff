"""The grid: under which conditions an adapter is sampled, on which items, in which batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from eval.clips.windows import Window

OURS, BASE_REFERENCE, BASE, NO_REFERENCE, SWAPPED = "adapter+reference", "base+reference", "base", "adapter", "swapped"
EMPTY_PROMPT, MASKED, FADED = "empty prompt", "half mask", "fade mask"


@dataclass(frozen=True)
class Cell:
    """One condition. reference: "own", "other" (the partner's) or "none"; mask: "" (none), "half" (keeps one half of
    the frame) or "fade" (weight 0 at the first latent frame, 1 at the last); empty_prompt: the empty caption's text."""

    name: str
    adapter: bool
    reference: str
    strength: float = 1.0
    mask: str = ""
    empty_prompt: bool = False


@dataclass(frozen=True)
class Item:
    """One clip to make. Its noise is the same in every cell."""

    window: Window
    seed: int

    @property
    def noise_seed(self) -> int:
        """Seed of the noise: windows differ under the same seed, cells do not."""
        return int.from_bytes(hashlib.sha256(f"{self.window.key}/{self.seed}".encode()).digest()[:6])


def at_strength(strength: float) -> Cell:
    """The adapter with its reference at an attention strength; at 1 the plain adapter+reference."""
    return Cell(OURS if strength == 1 else f"strength {strength:g}", True, "own", float(strength))


def sweep(strengths: Iterable[float]) -> list[float]:
    """The strengths that are measured, falling. 1 and 0 always are: the masks and the null test need both."""
    return sorted({1.0, 0.0, *strengths}, reverse=True)


def grid(strengths: Iterable[float], fade: bool = True) -> list[Cell]:
    """All cells: with/without adapter x with/without reference, the wrong reference, no prompt, strengths below 1,
    masks. fade=False where a clip has one latent frame, in which nothing can fade."""
    return [
        at_strength(1),
        Cell(BASE_REFERENCE, False, "own"),
        Cell(BASE, False, "none"),
        Cell(NO_REFERENCE, True, "none"),
        Cell(SWAPPED, True, "other"),
        Cell(EMPTY_PROMPT, True, "own", empty_prompt=True),
        *(at_strength(s) for s in sweep(strengths) if s < 1),
        Cell(MASKED, True, "own", mask="half"),
        *([Cell(FADED, True, "own", mask="fade")] if fade else []),
    ]


def batches(windows: Sequence[Window], seeds: Sequence[int], size: int) -> list[tuple[Item, ...]]:
    """All windows x seeds in batches of at most `size`; a batch has one bucket."""
    items = [Item(window, seed) for window in sorted(windows, key=lambda w: (w.bucket, w.number)) for seed in seeds]
    result = []
    for _, group in groupby(items, key=lambda item: item.window.bucket):
        alike = list(group)
        result += [tuple(alike[i : i + size]) for i in range(0, len(alike), size)]
    return result

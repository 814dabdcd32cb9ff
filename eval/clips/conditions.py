"""The grid: under which conditions an adapter is sampled, on which items, in which batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from eval.clips.windows import Window

ADAPTER_REFERENCE, BASE_REFERENCE, BASE, ADAPTER_ONLY, SWAPPED = (
    "adapter+reference",
    "base+reference",
    "base",
    "adapter",
    "swapped",
)
EMPTY_PROMPT, HALF_MASK, FADE_MASK = "empty prompt", "half mask", "fade mask"


@dataclass(frozen=True)
class Condition:
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


def at_strength(strength: float) -> Condition:
    """The adapter with its reference at an attention strength; at 1 the plain adapter+reference."""
    return Condition(ADAPTER_REFERENCE if strength == 1 else f"strength {strength:g}", True, "own", float(strength))


def strength_sweep(strengths: Iterable[float]) -> list[float]:
    """The strengths that are measured, falling. 1 and 0 always are: the masks and the null test need both."""
    return sorted({1.0, 0.0, *strengths}, reverse=True)


def all_conditions(strengths: Iterable[float], fade: bool = True) -> list[Condition]:
    """All cells: with/without adapter x with/without reference, the wrong reference, no prompt, strengths below 1,
    masks. fade=False where a clip has one latent frame, in which nothing can fade."""
    return [
        at_strength(1),
        Condition(BASE_REFERENCE, False, "own"),
        Condition(BASE, False, "none"),
        Condition(ADAPTER_ONLY, True, "none"),
        Condition(SWAPPED, True, "other"),
        Condition(EMPTY_PROMPT, True, "own", empty_prompt=True),
        *(at_strength(s) for s in strength_sweep(strengths) if s < 1),
        Condition(HALF_MASK, True, "own", mask="half"),
        *([Condition(FADE_MASK, True, "own", mask="fade")] if fade else []),
    ]


def batches(windows: Sequence[Window], seeds: Sequence[int], size: int) -> list[tuple[Item, ...]]:
    """All windows x seeds in batches of at most `size`; a batch has one bucket."""
    items = [Item(window, seed) for window in sorted(windows, key=lambda w: (w.bucket, w.number)) for seed in seeds]
    result = []
    for _, group in groupby(items, key=lambda item: item.window.bucket):
        alike = list(group)
        result += [tuple(alike[i : i + size]) for i in range(0, len(alike), size)]
    return result

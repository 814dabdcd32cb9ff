"""The conditions under which an adapter is sampled, and the clips of each condition in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from eval.clips.windows import Window

# Names of the conditions, as in scores.json
ADAPTER_REFERENCE = "adapter+reference"
BASE_REFERENCE = "base+reference"
BASE = "base"
ADAPTER_ONLY = "adapter"
SWAPPED = "swapped"
EMPTY_PROMPT = "empty prompt"
STRENGTH_PREFIX = "strength "  # of a condition with a strength below 1
SWAPPED_PREFIX = "swapped "  # of a condition in which one of several references is the partner's; then its name
WITHOUT_PREFIX = "without "  # of a condition without one of several references
WEAKENED_PREFIX = "weakened "  # of one in which one of several references has less attention; then name and strength
HALF_MASK = "half mask"
FADE_MASK = "fade mask"
VIDEO_ALONE = "video stream alone"  # the judged condition without the audio stream, where the others have it
# Names of the rows that are measured without a model
INPUT = "input"  # the reference itself
CLASSIC = "classic filter"  # the reference after the best filter without a model
CEILING = "ceiling"  # the target after the VAE
FLOOR = "floor"  # the target of another recording


@dataclass(frozen=True)
class Condition:
    """One condition of the protocol.

    reference: "own", "other" (the partner's) or "none". only: number of the reference that `reference` and `strength`
    speak of, while the others are the window's own at strength 1; None: they speak of all. strength: attention strength
    of the references; without any, the strength of the adapter. mask: "" (no mask), "half" (keeps the reference in one
    half of the frame) or "fade" (weight 0 at the first latent frame, 1 at the last). empty_prompt: use the features of
    the empty caption. audio: with the audio stream, where that is sampled (`audio_stream.AudioChoice`).
    """

    name: str
    adapter: bool
    reference: str
    strength: float = 1.0
    mask: str = ""
    empty_prompt: bool = False
    only: int | None = None
    audio: bool = True

    @property
    def has_reference(self) -> bool:
        """Whether the sample has a reference."""
        return self.reference != "none" or self.only is not None

    def reference_of(self, number: int) -> str:
        """As `reference`, of the reference with this number."""
        return self.reference if self.only in (None, number) else "own"

    def strength_of(self, number: int) -> float:
        """As `strength`, of the reference with this number."""
        return self.strength if self.only in (None, number) else 1.0


@dataclass(frozen=True)
class Item:
    """One clip to sample: a window and a seed. Its noise is the same under every condition."""

    window: Window
    seed: int

    @property
    def noise_seed(self) -> int:
        """Seed of the noise: a function of the window and the seed, not of the condition."""
        return self._hashed("")

    @property
    def sound_seed(self) -> int:
        """Seed of the noise of the sound, which does not depend on the condition either."""
        return self._hashed("/sound")

    def _hashed(self, purpose: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.window.key}/{self.seed}{purpose}".encode()).digest()[:6])


def at_strength(strength: float, reference: bool = True) -> Condition:
    """Adapter and reference at an attention strength; strength 1 is `adapter+reference` itself.

    reference=False: the adapter alone, at a strength of its own; strength 1 is `adapter`, strength 0 the base.
    """
    if not reference:
        name = ADAPTER_ONLY if strength == 1 else f"{STRENGTH_PREFIX}{strength:g}"
        return Condition(name, strength != 0, "none", float(strength) or 1.0)
    return Condition(
        ADAPTER_REFERENCE if strength == 1 else f"{STRENGTH_PREFIX}{strength:g}", True, "own", float(strength)
    )


def strength_sweep(strengths: Iterable[float]) -> list[float]:
    """The strengths to measure, in falling order. 1 and 0 are always included: masks and the null test need them."""
    return sorted({1.0, 0.0, *strengths}, reverse=True)


def judged_row(rows: Container[str]) -> str:
    """The row that is judged: adapter and reference; in a task without references, the adapter."""
    return ADAPTER_REFERENCE if ADAPTER_REFERENCE in rows else ADAPTER_ONLY


def without_references(strengths: Iterable[float], audio: bool = False) -> list[Condition]:
    """All conditions of a task without references: adapter, base, empty prompt, strengths of the adapter below 1.

    audio: the audio stream is sampled, and one condition leaves it out.
    """
    return [
        at_strength(1, reference=False),
        Condition(BASE, False, "none"),
        Condition(EMPTY_PROMPT, True, "none", empty_prompt=True),
        *(at_strength(s, reference=False) for s in strength_sweep(strengths) if s < 1),
        *([Condition(VIDEO_ALONE, True, "none", audio=False)] if audio else []),
    ]


def swapped(name: str) -> str:
    """The name of the condition in which only this one of several references is the partner's."""
    return f"{SWAPPED_PREFIX}{name}"


def without(name: str) -> str:
    """The name of the condition in which only this one of several references is left out."""
    return f"{WITHOUT_PREFIX}{name}"


def weakened(name: str, strength: float) -> str:
    """The name of the condition in which only this one of several references has an attention strength below 1."""
    return f"{WEAKENED_PREFIX}{name} {strength:g}"


def is_of_one_reference(name: str) -> bool:
    """Whether a condition, by name, swaps, leaves out or weakens one of several references."""
    return name.startswith((SWAPPED_PREFIX, WITHOUT_PREFIX, WEAKENED_PREFIX))


def of_each_reference(names: Sequence[str], strengths: Iterable[float] = ()) -> list[Condition]:
    """The conditions that swap, that leave out and that weaken each of several references; none for a single one.

    strengths: attention strengths below 1 of the weakened one.
    """
    if len(names) < 2:
        return []
    numbered = list(enumerate(names))
    return [
        *(Condition(swapped(name), True, "other", only=number) for number, name in numbered),
        *(Condition(without(name), True, "none", only=number) for number, name in numbered),
        *(
            Condition(weakened(name, strength), True, "own", strength, only=number)
            for number, name in numbered
            for strength in sorted(set(strengths), reverse=True)
        ),
    ]


def all_conditions(
    strengths: Iterable[float],
    fade: bool = True,
    references: Sequence[str] = (),
    reference_strengths: Iterable[float] = (),
    audio: bool = False,
) -> list[Condition]:
    """All conditions: adapter on/off x reference on/off, swapped reference, empty prompt, strengths below 1, masks.

    fade=False for clips of a single latent frame, where a fade is impossible. references: names of several references,
    of which each is swapped, left out, and given with each of `reference_strengths`, too. audio: as for
    `without_references`.
    """
    return [
        at_strength(1),
        Condition(BASE_REFERENCE, False, "own"),
        Condition(BASE, False, "none"),
        Condition(ADAPTER_ONLY, True, "none"),
        Condition(SWAPPED, True, "other"),
        *of_each_reference(references, reference_strengths),
        Condition(EMPTY_PROMPT, True, "own", empty_prompt=True),
        *(at_strength(s) for s in strength_sweep(strengths) if s < 1),
        Condition(HALF_MASK, True, "own", mask="half"),
        *([Condition(FADE_MASK, True, "own", mask="fade")] if fade else []),
        *([Condition(VIDEO_ALONE, True, "own", audio=False)] if audio else []),
    ]


def batches(windows: Sequence[Window], seeds: Sequence[int], size: int) -> list[tuple[Item, ...]]:
    """All windows x seeds in batches of at most `size`; all clips of a batch are of one bucket."""
    items = [Item(window, seed) for window in sorted(windows, key=lambda w: (w.bucket, w.number)) for seed in seeds]
    result: list[tuple[Item, ...]] = []
    for _, group in groupby(items, key=lambda item: item.window.bucket):
        same_bucket = list(group)
        result += [tuple(same_bucket[i : i + size]) for i in range(0, len(same_bucket), size)]
    return result

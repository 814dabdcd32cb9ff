"""The preference that the answers of several people give, with its interval and a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np

from eval.statistics.estimates import Values
from eval.study.pairs import StudyPair
from iclora_train.core.records import NonNegative, Text

MIN_CLIPS = 5  # fewer give no interval
RESAMPLES = 4000
CHECKS_TO_PASS = 0.75  # share of the attention checks that a person must answer correctly


@dataclass(frozen=True)
class Answer:
    """One choice. pair: its id."""

    pair: Text
    choice: Literal["left", "same", "right"]
    seconds: NonNegative = 0.0


@dataclass(frozen=True)
class Answers:
    """The file that a page saves: all choices of one person."""

    study: Text
    rater: Text
    answers: list[Answer]


@dataclass(frozen=True)
class Preference:
    """How often B is preferred to A; a tie counts half.

    raters: people who count, and `left_out`: those who failed attention checks. clips: by name, the mean over people.
    mean: over clips. low, high: 95 % interval, None for fewer than MIN_CLIPS clips. p: two-sided, by the sign test over
    clips.
    """

    mean: float
    low: float | None
    high: float | None
    p: float
    clips: dict[str, float]
    raters: list[str]
    left_out: list[str]


def preference(pairs: Sequence[StudyPair], people: Sequence[Answers], seed: int = 0) -> Preference | None:
    """The preference over all people who pass the attention checks. None if nobody does."""
    counted = [person for person in people if _passes(pairs, person)]
    left_out = [person.rater or "anonymous" for person in people if person not in counted]
    if not counted:
        return None
    names = [pair.name for pair in pairs if not pair.check]
    votes = np.array([[_votes(pairs, person).get(name, np.nan) for name in names] for person in counted])
    seen = ~np.isnan(votes).all(axis=0)
    votes, names = votes[:, seen], [name for name, is_seen in zip(names, seen, strict=True) if is_seen]
    of_clips = np.nanmean(votes, axis=0)
    low, high = _interval(votes, seed) if len(names) >= MIN_CLIPS else (None, None)
    return Preference(
        float(of_clips.mean()),
        low,
        high,
        sign_test(of_clips),
        dict(zip(names, of_clips.tolist(), strict=True)),
        [person.rater or "anonymous" for person in counted],
        left_out,
    )


def _choices(person: Answers) -> dict[str, str]:
    return {answer.pair: answer.choice for answer in person.answers}


def _passes(pairs: Sequence[StudyPair], person: Answers) -> bool:
    """Whether a person chose the clip without blocks in enough attention checks, and answered any pair."""
    choices = _choices(person)
    checks = [pair for pair in pairs if pair.check]
    right = [choices.get(pair.id) == ("left" if pair.b_is_left else "right") for pair in checks]
    return bool(choices) and (not checks or float(np.mean(right)) >= CHECKS_TO_PASS)


def _votes(pairs: Sequence[StudyPair], person: Answers) -> Mapping[str, float]:
    """By clip: 1 for B, 0 for A, 0.5 for a tie."""
    choices = _choices(person)
    values = {}
    for pair in pairs:
        if not pair.check and pair.id in choices:
            b_side = "left" if pair.b_is_left else "right"
            values[pair.name] = 0.5 if choices[pair.id] == "same" else float(choices[pair.id] == b_side)
    return values


def _interval(votes: Values, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of votes (people, clips): people and clips are drawn again independently
    (the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1(2)). One person: clips only."""
    rng = np.random.default_rng(seed)
    people, clips = votes.shape
    of_people = rng.multinomial(people, np.full(people, 1 / people), RESAMPLES).astype(float)  # (R,people)
    of_clips = rng.multinomial(clips, np.full(clips, 1 / clips), RESAMPLES).astype(float)  # (R,clips)
    present = (~np.isnan(votes)).astype(float)
    total = np.einsum("rp,pc,rc->r", of_people, np.nan_to_num(votes), of_clips)
    weight = np.einsum("rp,pc,rc->r", of_people, present, of_clips)
    low, high = np.quantile(total[weight > 0] / weight[weight > 0], (0.025, 0.975))
    return float(low), float(high)


def sign_test(values: Values) -> float:
    """Two-sided p that clips lie above and below 0.5 equally often; ties are dropped."""
    above, below = int((values > 0.5).sum()), int((values < 0.5).sum())
    n, most = above + below, max(above, below)
    tail = sum(comb(n, k) for k in range(most, n + 1)) / 2**n
    return float(min(1.0, 2 * tail))

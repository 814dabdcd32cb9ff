"""The preference that the answers of several people give, with its interval and a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np

from eval.statistics.estimates import COVERAGE, Values, recording_means
from eval.statistics.student_t import two_sided_quantile
from eval.study.pairs import StudyPair
from iclora_train.core.records import NonNegative, Text

MIN_RECORDINGS = 5  # fewer give no interval
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

    raters: people who count, and `left_out`: those who failed attention checks or answered nothing. clips: by name, the
    mean over people. recordings: number of recordings of these clips. mean: over clips. low, high: 95 % interval, None
    for fewer than MIN_RECORDINGS. p: two-sided, by the sign test over recordings.
    """

    mean: float
    low: float | None
    high: float | None
    p: float
    clips: dict[str, float]
    recordings: int
    raters: list[str]
    left_out: list[str]


def preference(
    pairs: Sequence[StudyPair], people: Sequence[Answers], seed: int = 0, recordings: Mapping[str, str] | None = None
) -> Preference | None:
    """The preference over all people who pass the attention checks. None if nobody does.

    recordings: the recording of each clip. A clip that is not listed is a recording of its own.
    """
    counted = [person for person in people if _passes(pairs, person)]
    left_out = [person.rater or "anonymous" for person in people if person not in counted]
    if not counted:
        return None
    names = [pair.name for pair in pairs if not pair.check]
    votes = np.array([[_votes(pairs, person).get(name, np.nan) for name in names] for person in counted])
    seen = ~np.isnan(votes).all(axis=0)
    votes, names = votes[:, seen], [name for name, is_seen in zip(names, seen, strict=True) if is_seen]
    sources = [(recordings or {}).get(name, name) for name in names]
    of_clips = np.nanmean(votes, axis=0)
    of_recordings = recording_means(of_clips, sources)
    low, high = _interval(votes, sources, seed) if len(of_recordings) >= MIN_RECORDINGS else (None, None)
    return Preference(
        float(of_clips.mean()),
        low,
        high,
        sign_test(of_recordings),
        dict(zip(names, of_clips.tolist(), strict=True)),
        len(of_recordings),
        [person.rater or "anonymous" for person in counted],
        left_out,
    )


def _choices(person: Answers) -> dict[str, str]:
    return {answer.pair: answer.choice for answer in person.answers}


def _passes(pairs: Sequence[StudyPair], person: Answers) -> bool:
    """Whether a person chose the clip without blocks in enough attention checks, and compared any two clips."""
    choices = _choices(person)
    checks = [pair for pair in pairs if pair.check]
    right = [choices.get(pair.id) == ("left" if pair.b_is_left else "right") for pair in checks]
    return bool(_votes(pairs, person)) and (not checks or float(np.mean(right)) >= CHECKS_TO_PASS)


def _votes(pairs: Sequence[StudyPair], person: Answers) -> Mapping[str, float]:
    """By clip: 1 for B, 0 for A, 0.5 for a tie."""
    choices = _choices(person)
    values = {}
    for pair in pairs:
        if not pair.check and pair.id in choices:
            b_side = "left" if pair.b_is_left else "right"
            values[pair.name] = 0.5 if choices[pair.id] == "same" else float(choices[pair.id] == b_side)
    return values


def _interval(votes: Values, sources: Sequence[str], seed: int) -> tuple[float, float]:
    """95 % interval of the mean of votes (people, clips), within [0, 1]. sources: the recording of each clip.

    The mean +- Student's t, with one degree of freedom less than recordings, times the standard error of the pigeonhole
    bootstrap (Owen 2007, Annals of Applied Statistics 1(2)): people and recordings are drawn again independently; of
    one person, recordings only. Percentiles of the bootstrap would be too narrow for few recordings. If all votes are
    equal the bootstrap has no spread, and the interval is that of Clopper and Pearson (1934) for n equal recordings.
    """
    mean, measured = float(np.nanmean(np.nanmean(votes, axis=0))), votes[~np.isnan(votes)]
    names, number = np.unique(sources, return_inverse=True)  # number: (clips,)
    if (measured == measured[0]).all() and mean in (0.0, 1.0):
        least = ((1 - COVERAGE) / 2) ** (1 / len(names))
        return (least, 1.0) if mean == 1 else (0.0, 1 - least)
    rng = np.random.default_rng(seed)
    people = len(votes)
    of_people = rng.multinomial(people, np.full(people, 1 / people), RESAMPLES).astype(float)  # (R,people)
    of_recordings = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    of_clips = of_recordings[:, number].astype(float)  # (R,clips)
    present = (~np.isnan(votes)).astype(float)
    total = np.einsum("rp,pc,rc->r", of_people, np.nan_to_num(votes), of_clips)
    weight = np.einsum("rp,pc,rc->r", of_people, present, of_clips)
    error = float(np.std(total[weight > 0] / weight[weight > 0]))
    half = two_sided_quantile(COVERAGE, len(names) - 1) * error
    return max(0.0, mean - half), min(1.0, mean + half)


def sign_test(values: Values) -> float:
    """Two-sided p that clips lie above and below 0.5 equally often; ties are dropped."""
    above, below = int((values > 0.5).sum()), int((values < 0.5).sum())
    n, most = above + below, max(above, below)
    tail = sum(comb(n, k) for k in range(most, n + 1)) / 2**n
    return float(min(1.0, 2 * tail))

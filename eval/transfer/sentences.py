"""Sentences of advice about IC-LoRAs that are claims: each has a line with what was measured and whether it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from eval.clips.conditions import ADAPTER_REFERENCE, BASE_REFERENCE, at_strength
from eval.judging.claims import Bound
from eval.statistics.estimates import (
    Estimate,
    Values,
    drop_nan,
    estimate_or_none,
    format_estimate,
    ratio_per_unit,
    recording_means,
)
from eval.transfer.comparison import better, judged, kept_share, recordings, row
from eval.transfer.variants import REFERENCE, Variant

MOST_COMPUTE = 0.1  # "less than 10 %"
BALANCED = (0.25, 0.75)  # the middle half of the way from strength 0 to strength 1
FEW_STEPS, MANY_STEPS = 30, (40, 50)
Scores = Mapping[str, Any]
Judgement = Literal["holds", "fails", "inconclusive", "not measured here"]


class Line(TypedDict):
    """One sentence. measured: what was measured, in words. required: the bound. note: numbers beside, or the reason."""

    name: str
    sentence: str
    measured: str
    value: Estimate | None
    required: str
    p: float | None
    outcome: Judgement
    note: str


@dataclass(frozen=True)
class Evidence:
    """What the sentences are judged from.

    scores: by name of the choice, those that were measured. variants: all choices. reference_tokens: reference tokens
    per target token. distilled: transfer.distilled, a checkpoint that is distilled whatever its name. tolerance:
    transfer.tolerance.
    """

    scores: Mapping[str, Scores]
    variants: Sequence[Variant]
    reference_tokens: float
    distilled: str | None
    tolerance: float

    @property
    def reference(self) -> Scores:
        """The scores under the task's own settings."""
        return self.scores[REFERENCE]

    def with_steps(self, steps: int) -> Scores | None:
        """The scores with this number of steps and otherwise the task's settings."""
        schedule = self.variants[0].sample.schedule
        measured = (v for v in self.variants if v.axis in ("reference", "steps") and v.name in self.scores)
        same_steps = (v for v in measured if v.sample.steps == steps and v.sample.schedule == schedule)
        return next((self.scores[variant.name] for variant in same_steps), None)

    @property
    def distilled_variant(self) -> Variant | None:
        """The measured choice with the distilled schedule; the task's own settings only if no other checkpoint was
        chosen for that schedule."""
        distilled = [v for v in self.variants if v.sample.schedule == "distilled" and not v.two_stage]
        chosen = next((v for v in distilled if v.axis == "schedule"), None)
        if chosen is None or chosen.same_as(self.variants[0]):
            chosen = next(iter(distilled), None)
        return chosen if chosen is not None and chosen.name in self.scores else None

    def is_distilled(self, variant: Variant) -> bool:
        """Whether a choice was sampled on a distilled model."""
        return variant.checkpoint == self.distilled or "distilled" in Path(variant.checkpoint).name

    def obstacle(self, axis: str, name: str) -> str:
        """Why a choice was not measured."""
        known = {variant.name: variant.obstacle for variant in self.variants if variant.axis == axis}
        return known.get(name) or f"{name} is not among the choices"


def lines(e: Evidence) -> list[Line]:
    """All sentences, judged."""
    return [_compute(e), _blend(e), *_steps(e), _fp8(e), _distilled(e)]


def _line(
    name: str, sentence: str, measured: str, bound: Bound, values: Values, recording_of: list[str], note: str = ""
) -> Line:
    """A sentence that `values`, one per unit, decide; not measured if all of them are NaN."""
    value = estimate_or_none(values, recording_of)
    if value is None:
        return _missing(name, sentence, measured, "it was not measured on any window")
    outcome, p = judged(values, recording_of, bound)
    return Line(
        name=name,
        sentence=sentence,
        measured=measured,
        value=value,
        required=str(bound),
        p=p,
        outcome=outcome,
        note=note,
    )


def _missing(name: str, sentence: str, measured: str, reason: str) -> Line:
    outcome: Judgement = "not measured here"
    return Line(
        name=name, sentence=sentence, measured=measured, value=None, required="", p=None, outcome=outcome, note=reason
    )


def _compute(e: Evidence) -> Line:
    """The unit is a pair of timed passes; a pass is repeated, windows are not."""
    extra = np.array(
        [with_reference / without - 1 for with_reference, without in e.reference["timings"]["step_seconds"]]
    )
    return _line(
        "compute",
        "less than 10 % compute",
        "extra time of a sampling step with the reference, as a share of a step without it",
        Bound(high=MOST_COMPUTE, strict=True),
        extra,
        [str(i) for i in range(len(extra))],
        f"the reference adds {e.reference_tokens:.0%} to the tokens of the clip; {len(extra)} pairs of steps timed",
    )


def _blend(e: Evidence) -> Line:
    sentence, measured = "0.5: balanced blend", "share of the reference's effect on adherence at attention strength 0.5"
    metric, recording_of = e.reference["adherence"], recordings(e.reference)
    none, half, full = (row(e.reference, at_strength(s).name, metric) for s in (0, 0.5, 1))
    if none is None or half is None or full is None:
        return _missing("blend", sentence, measured, "0.5 is not among transfer.attention_strengths")
    effect = better(e.reference, metric, full - none)
    if len(drop_nan(effect)) and recording_means(effect, recording_of).mean() <= 0:
        return _missing("blend", sentence, measured, "the reference has no effect at strength 1")
    share = ratio_per_unit(better(e.reference, metric, half - none), effect, recording_of)
    note = ""
    weak = e.scores.get("adapter 0.5")
    kept = None if weak is None else estimate_or_none(kept_share(e.reference, weak), recording_of)
    if kept is not None:
        note = f"with the adapter's weights at 0.5: {format_estimate(kept)} of its gain is kept"
    return _line("blend", sentence, measured, Bound(*BALANCED), share, recording_of, note)


def _steps(e: Evidence) -> list[Line]:
    """Control and picture are judged apart: more steps may help one and cost the other."""
    picture = "ssim" if e.reference["adherence"] != "ssim" else "psnr"
    return [
        _steps_line(e, "steps_control", e.reference["adherence"], "control"),
        _steps_line(e, "steps_picture", picture, "picture"),
    ]


def _steps_line(e: Evidence, name: str, metric: str, subject: str) -> Line:
    sentence = "40-50 instead of 30 steps"
    few = e.with_steps(FEW_STEPS)
    many = {steps: scores for steps in MANY_STEPS if (scores := e.with_steps(steps)) is not None}
    title = e.reference["metrics"].get(metric, {}).get("title", metric)
    measured = f"{subject}: gain in {title} of {' and '.join(map(str, many or MANY_STEPS))} steps over {FEW_STEPS}"
    if few is None or not many:
        return _missing(name, sentence, measured, e.obstacle("steps", f"{FEW_STEPS if few is None else 40} steps"))
    before = row(few, ADAPTER_REFERENCE, metric)
    after = [row(scores, ADAPTER_REFERENCE, metric) for scores in many.values()]
    if before is None or any(values is None for values in after):
        return _missing(name, sentence, measured, f"{title} was not measured")
    difference = np.mean([values - before for values in after if values is not None], axis=0)
    unit = e.reference["metrics"][metric]["unit"]
    bound = Bound(0.0, strict=True, unit=unit)
    return _line(name, sentence, measured, bound, better(few, metric, difference), recordings(few))


def _fp8(e: Evidence) -> Line:
    sentence = "works with FP8"
    measured = "share of the adapter's gain over base + reference that fp8 weights keep (two one-sided tests)"
    scores = e.scores.get("fp8")
    precision = e.variants[0].precision
    if precision == "fp8":
        return _missing("fp8", sentence, measured, "the task's own settings use fp8: compare with model.precision=bf16")
    if scores is None:
        return _missing("fp8", sentence, measured, e.obstacle("precision", "fp8"))
    share = kept_share(e.reference, scores)
    if share is None:
        return _missing(
            "fp8", sentence, measured, "the adapter gains nothing over base + reference, so nothing can be kept"
        )
    bound = Bound(1 - e.tolerance, 1 + e.tolerance)
    outcomes = [each["gates"]["outcome"] for each in (scores, e.reference)]
    note = f"compared with {precision}; gates in fp8: {outcomes[0]}, in {precision}: {outcomes[1]}"
    return _line("fp8", sentence, measured, bound, share, recordings(e.reference), note)


def _distilled(e: Evidence) -> Line:
    sentence, measured = "compatible with distilled models", "whether the gates hold with the distilled schedule"
    variant = e.distilled_variant
    if variant is None:
        return _missing("distilled", sentence, measured, e.obstacle("schedule", "distilled"))
    scores = e.scores[variant.name]
    value = estimate_or_none(kept_share(e.reference, scores), recordings(e.reference))
    gates = [f"{v['name']} {v['outcome']}" for v in scores["verdicts"] if v["kind"] == "gate"]
    note = "; ".join([*([", ".join(gates)] if gates else []), "value: share of the gain that is kept"])
    outcome: Judgement = scores["gates"]["outcome"]
    if outcome != "fails" and (unmeasured := scores["gates"]["not_measured"]):
        outcome = "not measured here"
        hint = "" if BASE_REFERENCE in scores["windows"] else " (transfer.gates=false)"
        note = f"gates that were not measured: {', '.join(unmeasured)}{hint}. {note}"
    if not e.is_distilled(variant):
        outcome = "not measured here"
        note = f"no distilled model was given (transfer.distilled): only its noise levels were sampled. {note}"
    return Line(
        name="distilled",
        sentence=sentence,
        measured=measured,
        value=value,
        required="every gate holds",
        p=None,
        outcome=outcome,
        note=note,
    )


def reference_share(target: tuple[int, ...], references: Sequence[tuple[int, ...]]) -> float:
    """Reference tokens per target token, from latent shapes (C,f,h,w)."""
    return sum(prod(shape[1:]) for shape in references) / prod(target[1:])

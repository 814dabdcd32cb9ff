"""Symptoms of single windows, which a mean hides: windows that lose against their input, and outliers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.clips.conditions import FLOOR, INPUT, judged_row
from eval.judging.equal_frames import of_others
from eval.judging.finding import Finding, Level, Scores, level_if_above, listed_keys, mean, worst
from eval.judging.harm import GAIN_SPREAD, gain_metric, gains, outliers
from eval.metrics.picture import PSNR_CAP

HARM_WARN, HARM_BAD = 0.1, 0.25  # share of the windows that are worse than their input


def worse_than_input(scores: Scores) -> Finding | None:
    """Judged by the share of windows that lose against their input (`harm` of scores.json)."""
    harm = scores.get("harm")
    if harm is None:
        return None
    reason = f"{harm['share']:.0%} of {harm['n']} windows lose more than {harm['limit']:g} dB against their input"
    if harm["windows"]:
        reason += f", {harm['mean_loss']:.1f} dB on average, {harm['worst_loss']:.1f} dB at worst"
        reason += f" ({listed_keys(harm['windows'])})"
    if undamaged := _with_undamaged_input(scores, harm["windows"]):
        reason += f"; in {len(undamaged)} of them frames of the input equal the target (black, or without damage)"
    return (
        level_if_above(harm["share"], HARM_WARN, HARM_BAD),
        reason,
        "Order the clips by gain and look for what the worst have in common (flat areas, drawings, text, an input that "
        "needs no repair), and train on such footage too. For such clips use a lower strength.",
    )


def _with_undamaged_input(scores: Scores, windows: Sequence[str]) -> list[str]:
    """Those of the windows whose input has frames that equal the target: 100 dB, which no decoded clip can reach."""
    shares = scores.get("equal_frames", {"rows": {}})["rows"].get(INPUT, ())
    equal = {clip["key"] for clip, share in zip(scores["clips"], shares, strict=False) if share > 0}
    return [key for key in windows if key in equal]


def unlike_the_others(scores: Scores) -> Finding | None:
    """Names the windows that are far worse than the rest, or equal to their target, which no output of a VAE is."""
    primary = scores["primary"]
    values = scores["windows"].get(judged_row(scores["windows"]), {}).get(primary)
    if values is None:
        return None
    keys = [clip["key"] for clip in scores["clips"]]
    sign = -1 if scores["metrics"][primary]["better"] == "low" else 1
    groups = [control["windows"] for control in scores.get("controls", {}).values()] or [range(len(values))]
    far = {
        group[i] for group in groups for i in outliers([values[n] for n in group], sign)
    }  # controls differ in spread
    numbers = {*far, *(outliers(gains(scores), least=GAIN_SPREAD) if gain_metric(scores) else ())}
    copies = _equal_to_target(scores)
    if copies:
        names = listed_keys([keys[i] for i in copies])
        reason = f"{len(copies)} of {len(keys)} windows equal their target exactly ({names})"
        reason += f", which no output of a VAE does; the mean is meaningless. {_outlier_reason(scores, numbers)}"
        return "bad", reason, "Check that the clips are outputs of the model, and not the targets."
    broken = [i for i in numbers if _is_like_another_clip(scores, values[i], sign)]
    level: Level = "bad" if broken else "warn" if numbers else "ok"
    equal_level, equal_reason = _equal_frames(scores)
    return (
        worst(level, equal_level),
        "; ".join(reason for reason in (_outlier_reason(scores, numbers), equal_reason) if reason),
        "Look at these clips first: a wrong or damaged file, a wrong caption, or footage unlike the training clips. "
        "Frames that equal their target are black or still footage, or copies of the target.",
    )


def _equal_frames(scores: Scores) -> tuple[Level, str]:
    """Names the windows of which some frames equal their target, where outputs have such frames or claims depend on
    them. Bad if a claim holds only with them."""
    entry = scores.get("equal_frames", {"rows": {}, "changed": {}})
    changed = [
        f"{v['name']}: {v['outcome']}, without them {entry['changed'][v['name']] or 'not measured'}"
        for v in scores["verdicts"]
        if v["name"] in entry["changed"]
    ]
    of_output = judged_row(scores["windows"]) in entry["rows"]
    if not of_output and not changed:
        return "ok", ""
    parts = [_equal_frames_of(scores, row, shares) for row, shares in entry["rows"].items() if row in scores["windows"]]
    lost = any(v["outcome"] == "holds" and v["name"] in entry["changed"] for v in scores["verdicts"])
    reason = f"frames equal their target, {PSNR_CAP:g} dB each: {', '.join(parts)}"
    return "bad" if lost else "warn", "; ".join([reason, *changed])


def _equal_frames_of(scores: Scores, row: str, shares: Sequence[float]) -> str:
    """The windows of a row with such frames, most first, and the mean PSNR of the windows with and without them."""
    keys, values = [clip["key"] for clip in scores["clips"]], scores["windows"][row]["psnr"]
    order = sorted((i for i, share in enumerate(shares) if share), key=lambda i: -shares[i])
    names = listed_keys([f"{keys[i]} {shares[i]:.0%}" for i in order])
    others = [value for value in of_others(values, shares) if value is not None]
    without = f", {np.mean(others):.2f} without them" if others else ""
    with_them = np.mean([value for value in values if value is not None])
    return f"{row} in {len(order)} of {len(keys)} windows ({names}; mean PSNR {with_them:.2f}{without})"


def _outlier_reason(scores: Scores, numbers: set[int]) -> str:
    """The windows with their values and gains, worst first, and the medians."""
    primary, keys = scores["primary"], [clip["key"] for clip in scores["clips"]]
    values, gained = scores["windows"][judged_row(scores["windows"])][primary], gains(scores)
    if not numbers:
        return "no window is more than 3.5 robust standard deviations worse than the median"
    sign = -1 if scores["metrics"][primary]["better"] == "low" else 1
    order = sorted(numbers, key=lambda i: sign * (values[i] if values[i] is not None else 0.0))
    names = listed_keys([f"{keys[i]} {_text(values[i], gained[i])}" for i in order])
    middle = _text(_median(values), _median(gained))
    return f"{len(numbers)} of {len(keys)} windows are far worse: {names}; median {middle}"


def _median(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.median(measured)) if measured else None


def _equal_to_target(scores: Scores) -> list[int]:
    """Windows whose every frame and seed has no error: their PSNR is the cap."""
    values = scores["windows"][judged_row(scores["windows"])].get("psnr", ())
    return [i for i, value in enumerate(values) if value is not None and value >= PSNR_CAP]


def _is_like_another_clip(scores: Scores, value: float | None, sign: int) -> bool:
    """Whether a value is no better than halfway between the floor (another clip's target) and the mean."""
    floor, average = (mean(scores, row, scores["primary"]) for row in (FLOOR, judged_row(scores["windows"])))
    if value is None or floor is None or average is None:
        return False
    return sign * value < sign * (floor + average) / 2


def _text(value: float | None, gain: float | None) -> str:
    """A value of the primary metric, and the gain over the input if there is one."""
    text = "not measured" if value is None else f"{value:.2f}"
    return text if gain is None else f"{text} (gain {gain:+.2f} dB)"

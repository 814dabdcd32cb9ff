"""The metrics that decide a comparison of two evaluations: which they are, and whether B lost more than is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from eval.judging.several_controls import own_keys
from eval.statistics.estimates import Values, drop_nan, estimate
from eval.statistics.significance import holm_but, two_sided_p
from iclora_train.config import require

SIGNIFICANCE = 0.05


class Gate(TypedDict):
    """A metric that decides the exit code. allowed: loss of B against A that is accepted, in units of the metric.

    p_holm: two-sided, that the loss differs from the allowed one; after Holm's correction over all gates but the
    primary metric. failed: the loss is significantly larger than allowed.
    """

    allowed: float
    p_holm: float | None
    failed: bool


def always_gates(
    a: Mapping[str, Any], rows: Sequence[Mapping[str, Values]], judged: Sequence[str], strict: bool
) -> list[str]:
    """The metrics that are gates without --allow. rows: metric -> values per window, of A and of B; judged: the metrics
    that can be compared.

    strict: ConfigError for one that cannot, because a gate that nobody looked at must not pass. The metric of a control
    that neither has measured is left out.
    """
    keys = [a["primary"], *(key for key in own_keys(a) if key != a["primary"])]
    for key in keys if strict else ():
        measured = [key in row and len(drop_nan(row[key])) > 0 for row in rows]
        if key != a["primary"] and not any(measured):
            continue
        without = [name for name, has_values in zip("AB", measured, strict=True) if not has_values]
        reason = f"{' and '.join(without)} did not measure it" if without else "they have no window in common for it"
        require(key in judged, f"{key} decides this comparison, and {reason}: evaluate again with the same protocol")
    return [key for key in keys if key in judged]


def measured_once(gates: Mapping[str, Gate], rows: Sequence[Mapping[str, Values]]) -> list[str]:
    """A line for each gate of which A or B has measured windows that the other has not; these do not count."""
    lines = []
    for key in gates:
        in_a, in_b = (~np.isnan(row[key]) for row in rows)
        counts = {"A": int((in_a & ~in_b).sum()), "B": int((in_b & ~in_a).sum())}
        lines += [f"{key}: windows left out that only {name} has measured: {n}" for name, n in counts.items() if n]
    return lines


def judge_gates(
    paired: Mapping[str, Values],
    better: Mapping[str, str | None],
    sources: Sequence[str],
    primary: str,
    limits: Mapping[str, float],
) -> dict[str, Gate]:
    """The gates by metric. paired: metric -> B - A per window; better: metric -> "high" or "low"; limits: metric ->
    loss that is accepted."""
    excess = {key: (-paired[key] if better[key] == "high" else paired[key]) - limit for key, limit in limits.items()}
    p_values = {key: p for key, values in excess.items() if (p := two_sided_p(values, sources)) is not None}
    corrected = holm_but(p_values, primary)
    return {
        key: Gate(
            allowed=limit,
            p_holm=corrected.get(key),
            failed=estimate(excess[key], sources)["mean"] > 0 and corrected.get(key, 1.0) < SIGNIFICANCE,
        )
        for key, limit in limits.items()
    }

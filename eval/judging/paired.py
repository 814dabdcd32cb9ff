"""What the adapter changes in every metric: differences of conditions, paired window by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.clips.conditions import (
    ADAPTER_REFERENCE,
    BASE,
    BASE_REFERENCE,
    CLASSIC,
    INPUT,
    VIDEO_ALONE,
    is_of_one_reference,
    judged_row,
)
from eval.statistics.estimates import Estimate, Values, estimate_or_none

COMPARED = (INPUT, CLASSIC, BASE_REFERENCE, VIDEO_ALONE)  # what adapter+reference is compared with
COMPARED_PLAIN = (BASE, VIDEO_ALONE)  # what the adapter is compared with in a task without references


def paired_differences(
    rows: Mapping[str, Mapping[str, Values]], recordings: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """`paired` of scores.json: other row -> metric -> the judged row minus the other row, in units of the metric.

    Of several references, also minus the rows in which one of them is swapped or left out. rows: row -> metric ->
    values per window. A window on which one of the two was not measured is left out.
    """
    judged = judged_row(rows)
    with_adapter = rows.get(judged, {})
    compared = (*COMPARED, *filter(is_of_one_reference, rows)) if judged == ADAPTER_REFERENCE else COMPARED_PLAIN
    return {
        other: {
            metric: value
            for metric in with_adapter
            if metric in rows[other]
            and (value := estimate_or_none(with_adapter[metric] - rows[other][metric], recordings)) is not None
        }
        for other in compared
        if other in rows
    }

"""The values per window as `windows` and `per_window` of scores.json. Every verdict can be computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.clips.conditions import (
    ADAPTER_ONLY,
    ADAPTER_REFERENCE,
    BASE,
    BASE_REFERENCE,
    CEILING,
    CLASSIC,
    EMPTY_PROMPT,
    FLOOR,
    INPUT,
    SWAPPED,
    VIDEO_ALONE,
    is_of_one_reference,
)
from eval.scoring.results import Results, Row
from eval.statistics.estimates import Values

FIRST_ROWS = (ADAPTER_REFERENCE, BASE_REFERENCE, BASE, ADAPTER_ONLY, SWAPPED)
LAST_ROWS = (EMPTY_PROMPT, VIDEO_ALONE, INPUT, CLASSIC, CEILING, FLOOR)
DIGITS = 6


def tables(results: Results) -> dict[str, Any]:
    """`windows` (the rows of `cells`) and `per_window` (everything else that is measured per window)."""
    rows = {name: _lists(row) for name, row in results.rows.items()}
    shown = (*FIRST_ROWS, *(name for name in rows if is_of_one_reference(name)), *LAST_ROWS)
    return {
        "windows": {name: rows[name] for name in shown if name in rows},
        "per_window": {
            "conditions": {name: row for name, row in rows.items() if name not in shown},
            "donor": _lists(results.donor),
            "changes": _lists(results.changes),
            "latent_frames": _lists(results.by_latent_frame),
            "diversity": _lists(results.diversity),
            "seeds": {name: _lists(row) for name, row in results.by_seed.items()},
        },
    }


def looks_of_outputs(results: Results) -> dict[str, Any]:
    """`equal_frames.rows`, the rows with frames that equal their target, and `likeness`, if it was measured."""
    rows = {name: np.round(share, DIGITS).tolist() for name, share in results.equal_frames.items() if share.any()}
    return {"equal_frames": {"rows": rows}, **({"likeness": results.likeness} if results.likeness else {})}


def read_tables(scores: Mapping[str, Any]) -> Results:
    """The results of which `tables` made `windows` and `per_window`, rounded as they are there."""
    others = scores["per_window"]
    return Results(
        rows={name: _arrays(row) for name, row in {**scores["windows"], **others["conditions"]}.items()},
        donor=_arrays(others["donor"]),
        changes=_arrays(others["changes"]),
        by_latent_frame=_arrays(others["latent_frames"]),
        diversity=_arrays(others["diversity"]),
        by_seed={name: _arrays(row) for name, row in others["seeds"].items()},
    )


def _lists(row: Mapping[str, Values]) -> dict[str, list[Any]]:
    """Name -> values per window, rounded, null where not measured. A value may itself be a row of values."""
    lists = {}
    for name, values in row.items():
        rounded = np.round(values, DIGITS).astype(object)
        rounded[np.isnan(values)] = None
        lists[name] = rounded.tolist()
    return lists


def _arrays(row: Mapping[str, list[Any]]) -> Row:
    return {name: np.array(values, np.float64) for name, values in row.items()}

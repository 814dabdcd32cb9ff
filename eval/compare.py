"""`python -m eval.compare A B`: is B better than A? A paired comparison on the same windows and seeds.

A and B are scores.json files, or folders that contain one (the folder of a run or of an evaluation). Exit code 0: B is
not significantly worse; 1: B is significantly worse than A in the primary metric; 2: A and B cannot be compared.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from rich.table import Table

from eval.clips.conditions import ADAPTER_REFERENCE
from eval.statistics.estimates import Estimate, Values, drop_nan, estimate, estimate_by_source
from eval.statistics.significance import holm, two_sided_p
from iclora_train.config import require
from iclora_train.config.endings import one_line_ending
from iclora_train.config.paths import user_path
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.console import make_console
from iclora_train.core.fingerprint import differences
from iclora_train.core.scores import as_json, find_scores, read_comparable_scores

SIGNIFICANCE = 0.05
MUST_MATCH = ("schema", "primary", "clips", "seeds")  # besides the protocol and the targets
REPORTED = ("base", "provenance.settings.sample", "provenance.precision", "provenance.device", "provenance.versions")


class Difference(TypedDict):
    """The comparison of one metric: both means, B - A paired over windows, with intervals over recordings, and p.

    by_source: the same difference, but n counts recordings. p: two-sided, over recordings. p_holm: after Holm's
    correction over all metrics but the primary one, which is not corrected. better: whether B's mean is better; None
    for a metric without a better direction.
    """

    title: str
    unit: str
    a: Estimate
    b: Estimate
    difference: Estimate
    by_source: Estimate
    p: float | None
    p_holm: float | None
    better: bool | None


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two scores.json: {primary, worse, metrics, notes}; worse: exit code 1.

    Raises ConfigError if windows, seeds, targets or protocols differ.
    """
    require_comparable(a, b)
    sources = [clip["source"] for clip in a["clips"]]
    rows = [
        {key: _with_nan(values) for key, values in scores["windows"][ADAPTER_REFERENCE].items()} for scores in (a, b)
    ]
    shared = [key for key in a["metrics"] if key in rows[0] and key in rows[1]]
    paired = {key: rows[1][key] - rows[0][key] for key in shared}  # NaN unless both were measured
    paired = {key: values for key, values in paired.items() if len(drop_nan(values))}
    p_values = {key: p for key, differences in paired.items() if (p := two_sided_p(differences, sources)) is not None}
    primary = a["primary"]  # fixed before anything was measured, so it is not corrected
    corrected = holm({key: p for key, p in p_values.items() if key != primary})
    corrected |= {primary: p_values[primary]} if primary in p_values else {}
    metrics = {
        key: Difference(
            title=a["metrics"][key]["title"],
            unit=a["metrics"][key]["unit"],
            a=estimate(np.where(np.isnan(differences), np.nan, rows[0][key]), sources),
            b=estimate(np.where(np.isnan(differences), np.nan, rows[1][key]), sources),
            difference=estimate(differences, sources),
            by_source=estimate_by_source(differences, sources),
            p=p_values.get(key),
            p_holm=corrected.get(key),
            better=_better(a["metrics"][key]["better"], estimate(differences, sources)["mean"]),
        )
        for key, differences in paired.items()
    }
    worse = primary in metrics and _is_worse(metrics[primary])
    return {"primary": primary, "worse": worse, "metrics": metrics, "notes": _notes(a, b)}


def _with_nan(values: list[float | None]) -> Values:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _better(direction: str | None, mean: float) -> bool | None:
    return None if direction is None or mean == 0 else (mean > 0) == (direction == "high")


def _is_worse(metric: Difference) -> bool:
    return metric["better"] is False and metric["p_holm"] is not None and metric["p_holm"] < SIGNIFICANCE


def require_comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raise ConfigError that names the entries in which the two differ.

    b may be an evaluation that has not sampled yet (`scores.identity`).
    """
    pairs = {
        **{key: (a[key], b[key]) for key in MUST_MATCH},
        "protocol": (a["provenance"]["protocol"], b["provenance"]["protocol"]),
        "targets": (a["provenance"]["shards"]["pairs"], b["provenance"]["shards"]["pairs"]),
    }
    differing = [name for name, (first, second) in pairs.items() if first != second]
    require(
        not differing,
        f"the two cannot be compared: their {', '.join(differing)} differ. Evaluate both with the same task, data, "
        "windows and seeds",
    )


def _notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Other differences between the two evaluations, which may explain the result."""
    return [line for path in REPORTED for line in differences(_lookup(a, path), _lookup(b, path), path)]


def _lookup(scores: Mapping[str, Any], path: str) -> Any:
    """The value at a path such as `provenance.precision`."""
    value: Any = scores
    for key in path.split("."):
        value = value[key]
    return value


def load(path: Path) -> dict[str, Any]:
    """Read scores.json from a file or a folder (`find_scores`). Raises ConfigError if it is damaged."""
    return read_comparable_scores(find_scores(path))


def table(comparison: Mapping[str, Any], a: Path, b: Path) -> Table:
    """The comparison as a console table, the primary metric first."""
    console_table = Table(title=f"paired over windows\nA {a}\nB {b}")
    for column in ("metric", "A", "B", "B - A", "95 %", "p", "better"):
        console_table.add_column(column)
    order = sorted(comparison["metrics"], key=lambda key: key != comparison["primary"])
    for key in order:
        row: Difference = comparison["metrics"][key]
        p = "" if row["p_holm"] is None else f"{row['p_holm']:.2g}"
        better = {True: "B", False: "A", None: ""}[row["better"]]
        means = (f"{row[side]['mean']:.3f}" for side in ("a", "b"))
        name = f"{row['title']} {row['unit']}".strip()
        difference = row["difference"]
        interval = "" if difference["low"] is None else f"{difference['low']:.3f} to {difference['high']:.3f}"
        console_table.add_row(name, *means, f"{difference['mean']:+.3f}", interval, p, better)
    return console_table


def main() -> None:
    """`python -m eval.compare`."""
    parser = argparse.ArgumentParser(prog="eval.compare", description=(__doc__ or "").split(":", 1)[1].strip())
    parser.add_argument("a", type=user_path, metavar="A", help="scores.json, or a folder that contains one")
    parser.add_argument("b", type=user_path, metavar="B", help="the same, for B")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write the comparison to FILE")
    with one_line_ending("nothing was written"):
        arguments = parser.parse_args()
        comparison = compare(load(arguments.a), load(arguments.b))
        if arguments.json is not None:
            with write_atomic(arguments.json) as file:
                file.write(as_json(comparison))
        console = make_console()
        console.print(table(comparison, arguments.a, arguments.b))
        for note in comparison["notes"]:
            console.print(f"also different: {note}", soft_wrap=True, highlight=False)
    raise SystemExit(int(comparison["worse"]))


if __name__ == "__main__":
    main()

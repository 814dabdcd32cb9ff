"""`python -m eval.compare A B`: is B better than A? Paired, on the same windows and seeds.

A and B are scores.json files, or folders that hold one (a run's folder, or the folder of an evaluation). Exit code 0: B
is not worse; 1: in the primary metric B is worse than A, and significantly so; 2: they cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from rich.console import Console
from rich.table import Table

from eval.clips.conditions import ADAPTER_REFERENCE
from eval.scores import write
from eval.statistics.estimates import Estimate, Values, drop_nan, estimate, estimate_by_source
from eval.statistics.significance import holm, signed_rank
from iclora_train.config import ConfigError, require
from iclora_train.core.fingerprint import differences

LEVEL = 0.05  # of significance
SAME = ("schema", "primary", "clips", "seeds")  # what two scores must agree on, beside protocol and targets
NOTED = ("base", "provenance.settings.sample", "provenance.precision", "provenance.device", "provenance.versions")


class Difference(TypedDict):
    """One metric: both means, B - A per window, its two-sided p, and p after Holm over the metrics beside the primary
    one. better: None where it has no good direction, else whether B's mean is the better one."""

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
    """What differs between two scores.json: `primary`, `worse` (see the module), `metrics` and `notes`.

    ConfigError when they are of other windows, seeds, targets or protocols.
    """
    _require_comparable(a, b)
    sources = [clip["source"] for clip in a["clips"]]
    rows = [{key: _units(values) for key, values in scores["windows"][ADAPTER_REFERENCE].items()} for scores in (a, b)]
    shared = [key for key in a["metrics"] if key in rows[0] and key in rows[1]]
    paired = {key: rows[1][key] - rows[0][key] for key in shared if len(drop_nan(rows[1][key] - rows[0][key]))}
    tested = {key: p for key, units in paired.items() if (p := two_sided(units)) is not None}
    primary = a["primary"]  # declared before anything was measured: it stands alone
    corrected = holm({key: p for key, p in tested.items() if key != primary})
    corrected |= {primary: tested[primary]} if primary in tested else {}
    metrics = {
        key: Difference(
            title=a["metrics"][key]["title"],
            unit=a["metrics"][key]["unit"],
            a=estimate(rows[0][key]),
            b=estimate(rows[1][key]),
            difference=estimate(units),
            by_source=estimate_by_source(units, sources),
            p=tested.get(key),
            p_holm=corrected.get(key),
            better=_better(a["metrics"][key]["better"], float(drop_nan(units).mean())),
        )
        for key, units in paired.items()
    }
    worse = primary in metrics and _is_worse(metrics[primary])
    return {"primary": primary, "worse": worse, "metrics": metrics, "notes": _notes(a, b)}


def two_sided(units: Values) -> float | None:
    """Two-sided signed-rank p of paired differences: twice the smaller tail."""
    tails = [p for p in (signed_rank(units), signed_rank(-units)) if p is not None]
    return min(1.0, 2 * min(tails)) if tails else None


def _units(values: list[float | None]) -> Values:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _better(direction: str | None, mean: float) -> bool | None:
    return None if direction is None or mean == 0 else (mean > 0) == (direction == "high")


def _is_worse(found: Difference) -> bool:
    return found["better"] is False and found["p_holm"] is not None and found["p_holm"] < LEVEL


def _require_comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """ConfigError that names what the two do not share."""
    pairs = {
        **{key: (a[key], b[key]) for key in SAME},
        "protocol": (a["provenance"]["protocol"], b["provenance"]["protocol"]),
        "targets": (a["provenance"]["shards"]["pairs"], b["provenance"]["shards"]["pairs"]),
    }
    apart = [name for name, (first, second) in pairs.items() if first != second]
    require(
        not apart,
        f"the two cannot be compared: their {', '.join(apart)} differ. Judge both with the same task, data, windows "
        "and seeds",
    )


def _notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What else differs, and may be the reason."""
    return [line for place in NOTED for line in differences(_at(a, place), _at(b, place), place)]


def _at(scores: Mapping[str, Any], place: str) -> Any:
    found: Any = scores
    for key in place.split("."):
        found = found[key]
    return found


def load(path: Path) -> dict[str, Any]:
    """scores.json at a path, in it or in its `eval`. ConfigError when there is none of this schema."""
    places = (path, path / "scores.json", path / "eval" / "scores.json")
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ConfigError(f"{path} holds no scores.json: give one, or the folder of a run or of an evaluation")
    try:
        scores = dict(json.loads(file.read_text()))
        schema = scores["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not a scores.json of eval") from error
    require(schema == 2, f"{file} has schema {schema}, not 2: run eval again")
    return scores


def table(found: Mapping[str, Any], a: Path, b: Path) -> Table:
    """The differences for the console, the primary metric first."""
    shown = Table(title=f"paired over windows\nA {a}\nB {b}")
    for column in ("metric", "A", "B", "B - A", "95 %", "p", "better"):
        shown.add_column(column)
    order = sorted(found["metrics"], key=lambda key: key != found["primary"])
    for key in order:
        row: Difference = found["metrics"][key]
        p = "" if row["p_holm"] is None else f"{row['p_holm']:.2g}"
        better = {True: "B", False: "A", None: ""}[row["better"]]
        means = (f"{row[side]['mean']:.3f}" for side in ("a", "b"))
        name = f"{row['title']} {row['unit']}".strip()
        apart = row["difference"]
        span = "" if apart["low"] is None else f"{apart['low']:.3f} to {apart['high']:.3f}"
        shown.add_row(name, *means, f"{apart['mean']:+.3f}", span, p, better)
    return shown


def main() -> None:
    """`python -m eval.compare`."""
    parser = argparse.ArgumentParser(prog="eval.compare", description=(__doc__ or "").split(":", 1)[1].strip())
    parser.add_argument("a", type=Path, metavar="A", help="scores.json, or a folder with one")
    parser.add_argument("b", type=Path, metavar="B", help="likewise")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the differences there as well")
    arguments = parser.parse_args()
    try:
        found = compare(load(arguments.a), load(arguments.b))
        if arguments.json is not None:
            write(arguments.json, found)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    console = Console()
    console.print(table(found, arguments.a, arguments.b))
    for note in found["notes"]:
        console.print(f"differs as well: {note}", soft_wrap=True, markup=False, highlight=False)
    raise SystemExit(int(found["worse"]))


if __name__ == "__main__":
    main()

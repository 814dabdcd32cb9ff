"""`python -m eval.compare A B`: is B better than A? A paired comparison on the same windows and seeds.

A and B are scores.json files, or folders that contain one (the folder of a run or of an evaluation). Exit code 0: B is
not significantly worse; 1: B is significantly worse than A in the primary metric, in the metric of one of several
controls, or in a metric of --allow by more than its allowed loss; 2: A and B cannot be compared.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from rich.table import Table

from eval.judging.comparison_gates import always_gates, judge_gates, measured_once
from eval.judging.several_controls import comparable_metrics, comparable_row
from eval.junit import comparison_cases, write_junit
from eval.metrics import MEASURED_BY, REDEFINED
from eval.scoring.common_scale import recorded_scales
from eval.statistics.estimates import Estimate, drop_nan, estimate, estimate_by_source
from eval.statistics.significance import holm_but, two_sided_p
from iclora_train.config import require
from iclora_train.config.conditions import USUAL_P
from iclora_train.config.endings import one_line_ending
from iclora_train.config.paths import user_path
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.console import make_console
from iclora_train.core.fingerprint import differences
from iclora_train.core.scores import as_json, find_scores, read_comparable_scores

MUST_MATCH = ("schema", "primary", "clips", "seeds")  # besides the protocol and the targets
READER_SETTINGS = ("depth_network", "pose_network")  # keys of eval
HASH = re.compile(r" \([0-9a-f]{8}\)$")  # of a network's content, at the end of the name of a reader
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


def compare(
    a: Mapping[str, Any], b: Mapping[str, Any], allowed: Mapping[str, float] | None = None, strict: bool = True
) -> dict[str, Any]:
    """Compare two scores.json: {primary, worse, metrics, gates, notes}; worse: a gate failed, exit code 1.

    allowed: metric -> allowed loss. Always gates, by default with 0, are the primary metric, and in a set with several
    controls the metric of each on its own windows (`edge_f1.canny`). Raises ConfigError if windows, seeds, targets,
    protocols or readers differ, and for a metric that cannot be a gate. strict: also if one that always is a gate
    cannot be compared; otherwise it is left out.
    """
    require_comparable(a, b)
    sources = [clip["source"] for clip in a["clips"]]
    scales, facts = recorded_scales(a), comparable_metrics(a)
    rows = [comparable_row(scores, scales) for scores in (a, b)]
    other = [*_redefined(a, b), *(key for name in _other_weights(a, b) for key in MEASURED_BY.get(name, (name,)))]
    shared = [key for key in facts if key in rows[0] and key in rows[1] and key not in other]
    paired = {key: rows[1][key] - rows[0][key] for key in shared}  # NaN unless both were measured
    paired = {key: values for key, values in paired.items() if len(drop_nan(values))}
    p_values = {key: p for key, differences in paired.items() if (p := two_sided_p(differences, sources)) is not None}
    primary = a["primary"]
    corrected = holm_but(p_values, primary)
    metrics = {
        key: Difference(
            title=facts[key]["title"],
            unit=facts[key]["unit"],
            a=estimate(np.where(np.isnan(differences), np.nan, rows[0][key]), sources),
            b=estimate(np.where(np.isnan(differences), np.nan, rows[1][key]), sources),
            difference=estimate(differences, sources),
            by_source=estimate_by_source(differences, sources),
            p=p_values.get(key),
            p_holm=corrected.get(key),
            better=_better(facts[key]["better"], estimate(differences, sources)["mean"]),
        )
        for key, differences in paired.items()
    }
    judged = [key for key in paired if facts[key]["better"] is not None]
    for key in allowed or {}:
        require(key in judged, f"--allow {key}: not a metric that can be worse; there are {', '.join(judged)}")
    always = always_gates(a, rows, judged, strict)
    limits = {**dict.fromkeys(always, 0.0), **(allowed or {})}
    gates = judge_gates(paired, {key: facts[key]["better"] for key in paired}, sources, primary, limits)
    worse = any(gate["failed"] for gate in gates.values())
    notes = [*_notes(a, b), *measured_once(gates, rows)]
    return {"primary": primary, "worse": worse, "metrics": metrics, "gates": gates, "notes": notes}


def _better(direction: str | None, mean: float) -> bool | None:
    return None if direction is None or mean == 0 else (mean > 0) == (direction == "high")


def require_comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raise ConfigError that names the entries in which the two differ.

    b may be an evaluation that has not sampled yet (`scores.identity`).
    """
    pairs = {
        **{key: (a[key], b[key]) for key in MUST_MATCH},
        "protocol": (a["provenance"]["protocol"], b["provenance"]["protocol"]),
        "readers of the control": _shared_readers(a, b),
        "task.conditions": (_given_parts(a), _given_parts(b)),
        "validation.sigmas": (a["provenance"].get("loss_sigmas"), b["provenance"].get("loss_sigmas")),
        "targets": (a["provenance"]["shards"]["pairs"], b["provenance"]["shards"]["pairs"]),
    }
    differing = [name for name, (first, second) in pairs.items() if first != second]
    require(
        not differing,
        f"the two cannot be compared: their {', '.join(differing)} differ. Evaluate both with the same task, data, "
        "windows, seeds and networks (eval.depth_network, eval.pose_network)",
    )


def _given_parts(scores: Mapping[str, Any]) -> list[Any]:
    """The conditions of the task that were part of the evaluation: they make a clip easier to match."""
    conditions = scores["provenance"].get("settings", {}).get("task", {}).get("conditions", [])
    return [condition for condition in conditions if condition["p"] >= USUAL_P]


def _shared_readers(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Any, Any]:
    """What read the controls from the outputs: values of two networks are no measure of the same thing.

    Earlier versions did not name it and used the network of the references. Such a file equals one that does name it,
    unless READER_SETTINGS chose a network there. A name without a hash equals that name with one.
    """
    if "readers" in a and "readers" in b:
        first, second = a["readers"], b["readers"]
        hashed = {key for key in first if HASH.search(first[key]) and HASH.search(second.get(key, ""))}
        plain = (
            {key: name if key in hashed else HASH.sub("", name) for key, name in readers.items()}
            for readers in (first, second)
        )
        return next(plain), next(plain)
    return _chosen_readers(a), _chosen_readers(b)


def _chosen_readers(scores: Mapping[str, Any]) -> list[str | None]:
    """The values of READER_SETTINGS; None for one that is not set, or that the version did not have."""
    settings = scores["provenance"].get("settings", {}).get("eval", {})
    return [settings.get(key) for key in READER_SETTINGS]


def _redefined(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Metrics whose definition changed between the two evaluations, so that their values cannot be compared."""
    old, new = sorted(scores["provenance"].get("definitions", 1) for scores in (a, b))
    return [key for number, keys in REDEFINED.items() if old < number <= new for key in keys]


def _other_weights(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names in eval.metrics that the two measured with different networks, so that their values cannot be compared."""
    first, second = (scores["provenance"].get("weights", {}) for scores in (a, b))
    return [name for name in first if name in second and first[name] != second[name]]


def _notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Other differences between the two evaluations, which may explain the result."""
    notes = [line for path in REPORTED for line in differences(_lookup(a, path), _lookup(b, path), path)]
    first, second = (scores.get("audio", {}).get("stream", "off") for scores in (a, b))
    if None not in (first, second) and first != second:
        notes.insert(0, f"the judged model: the audio stream is {first} in A and {second} in B (model.audio)")
    notes += [f"the definition of {key}, which is left out" for key in _redefined(a, b)]
    return notes + [f"the weights of {name}, which is left out" for name in _other_weights(a, b)]


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


def allowed_losses(texts: Sequence[str]) -> dict[str, float]:
    """The losses of `--allow METRIC=LOSS`. ConfigError for a text of another form."""
    losses: dict[str, float] = {}
    for text in texts:
        key, _, value = text.partition("=")
        try:
            loss = float(value)
        except ValueError:
            loss = math.nan
        require(0 <= loss < math.inf, f"--allow {text}: write METRIC=LOSS with a loss of at least 0, e.g. psnr=0.2")
        require(key not in losses, f"--allow {text}: {key} is given twice")
        losses[key] = loss
    return losses


def main() -> None:
    """`python -m eval.compare`."""
    parser = argparse.ArgumentParser(prog="eval.compare", description=(__doc__ or "").split(":", 1)[1].strip())
    parser.add_argument("a", type=user_path, metavar="A", help="scores.json, or a folder that contains one")
    parser.add_argument("b", type=user_path, metavar="B", help="the same, for B")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write the comparison to FILE")
    parser.add_argument("--junit", type=user_path, metavar="FILE", help="also write it as JUnit XML, a test per metric")
    allow_help = "loss of B in a metric that is accepted, e.g. psnr=0.2; repeat for several metrics"
    parser.add_argument("--allow", action="append", default=[], metavar="METRIC=LOSS", help=allow_help)
    with one_line_ending("nothing was written"):
        arguments = parser.parse_args()
        comparison = compare(load(arguments.a), load(arguments.b), allowed_losses(arguments.allow))
        if arguments.json is not None:
            with write_atomic(arguments.json) as file:
                file.write(as_json(comparison))
        if arguments.junit is not None:
            properties = {"A": str(arguments.a), "B": str(arguments.b)}
            write_junit(arguments.junit, "eval.compare", comparison_cases(comparison), properties)
        console = make_console()
        console.print(table(comparison, arguments.a, arguments.b))
        for note in comparison["notes"]:
            console.print(f"also different: {note}", soft_wrap=True, highlight=False)
        for key, gate in comparison["gates"].items():
            verdict = "worse than allowed" if gate["failed"] else "ok"
            console.print(f"{key}: allowed loss {gate['allowed']:g}: {verdict}", soft_wrap=True, highlight=False)
    raise SystemExit(int(comparison["worse"]))


if __name__ == "__main__":
    main()

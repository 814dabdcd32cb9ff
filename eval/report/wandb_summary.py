"""The summary of an evaluation's W&B run: values by which runs are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from eval.clips.conditions import judged_row
from eval.judging.answer import answer
from eval.judging.audio_effect import metric_differences
from eval.judging.harm import harm
from eval.judging.ranking import ranking

Scores = Mapping[str, Any]


def summary(scores: Scores) -> dict[str, Any]:
    """`report/...`, the same keys for every task; `<row>/<metric>` -> {mean, low, high, n}; the same of sets of clips
    (`sets/<row>/<metric>`) and of sources (`sources/<source>/<metric>`, adapter+reference); control, claims, probes,
    audio."""
    estimates = {
        f"{row}/{metric}": dict(value) for row, metrics in scores["cells"].items() for metric, value in metrics.items()
    }
    sets, sources = (scores.get("sets") or {}).get("rows", {}), scores.get("sources", {})
    estimates |= {f"sets/{row}/{metric}": dict(value) for row, of in sets.items() for metric, value in of.items()}
    estimates |= {
        f"sources/{source}/{metric}": dict(value)
        for source, cells in sources.items()
        for metric, value in cells[judged_row(cells)].items()
    }
    control_scores = scores["control"] or {}
    control = {f"control/{name}": dict(value) for name, value in control_scores.items() if value and "mean" in value}
    passed = {f"verdict/{verdict['name']}": verdict["passed"] for verdict in scores["verdicts"]}
    probe_scores = scores["simple"]
    probes = {f"simple/{p['name']}": p["value"] for p in probe_scores["signals"]} if probe_scores else {}
    outcomes = {f"outcome/{verdict['name']}": verdict["outcome"] for verdict in scores["verdicts"]}
    counts = {"verdicts/passed": sum(passed.values()), "verdicts/of": len(passed)}
    holding = [verdict["passed"] for verdict in scores["verdicts"] if verdict["kind"] == "gate"]
    gates = {
        "gates/outcome": scores["gates"]["outcome"],
        "gates/passed": sum(holding),
        "gates/of": len(holding) + len(scores["gates"]["not_measured"]),
    }
    return {
        **first_page(scores),
        **estimates,
        **control,
        **passed,
        **outcomes,
        **probes,
        **counts,
        **gates,
        **audio(scores),
    }


def audio(scores: Scores) -> dict[str, Any]:
    """`audio/...` of a base with an audio half: which streams were sampled, the adapter's modules of the audio stream,
    the PSNR between the outputs with and without it, and `audio/difference/<metric>`, with it minus without."""
    facts = scores.get("audio", {})
    if not facts.get("in_checkpoint"):
        return {}
    effect = {name: dict(value) for name, value in scores.get("audio_effect", {}).items()}
    differences = {f"difference/{metric}": dict(value) for metric, value in metric_differences(scores).items()}
    values = {key: facts[key] for key in ("stream", "reason", "used_modules", "unused_modules")}
    return {f"audio/{key}": value for key, value in {**values, **effect, **differences}.items()}


def first_page(scores: Scores) -> dict[str, Any]:
    """What the first screen says, in keys that every run of every task has; None where it was not measured.

    first_gate: the family's first gate, the comparison with the input or, for control tasks, with chance. worst_gain,
    median_gain and best_gain are over the windows (`ranking`), worse_windows those that lose against their input, or
    have less agreement than the base alone.
    """
    gates = [verdict for verdict in scores["verdicts"] if verdict["kind"] == "gate"]
    outcomes = Counter(gate["outcome"] for gate in gates)
    main, ranked, harmed, probes = (gates or [None])[0], ranking(scores), harm(scores), scores["simple"]
    gains = sorted(value for value in ranked.values if value is not None)
    lost = None if ranked.over is None else sum(gain < 0 for gain in gains)
    values = {
        "answer": answer(scores),
        "task": scores["task"],
        "outcome": scores["gates"]["outcome"],
        "gates": len(gates) + len(scores["gates"]["not_measured"]),
        "gates_hold": outcomes["holds"],
        "gates_fail": outcomes["fails"],
        "gates_inconclusive": outcomes["inconclusive"],
        "gates_not_measured": len(scores["gates"]["not_measured"]),
        "first_gate": main and main["name"],
        **{f"first_gate_{key}": main and main["value"][key] for key in ("mean", "low", "high")},
        "gain_metric": ranked.metric,
        "gain_over": ranked.over,
        "worst_gain": gains[0] if gains else None,
        "median_gain": gains[len(gains) // 2] if gains else None,
        "best_gain": gains[-1] if gains else None,
        "worse_windows": lost if harmed is None else len(harmed["windows"]),
        "windows": len(scores["clips"]),
        "recordings": len({clip["source"] for clip in scores["clips"]}),
        "probes_passed": probes["passed"] if probes else None,
        "probes": probes["of"] if probes else None,
    }
    return {f"report/{key}": value for key, value in values.items()}

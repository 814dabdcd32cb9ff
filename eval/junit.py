"""Claims, or a comparison of two evaluations, as JUnit XML, which CI servers show as tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from eval.judging.finding import OF_THE_MACHINE
from eval.statistics.estimates import format_estimate
from iclora_train.core.atomic_files import write_atomic

SYMPTOM_STATES = {"ok": "passed", "warn": "skipped", "bad": "failed"}  # by level


@dataclass(frozen=True)
class Case:
    """One test. state: "passed", "failed" or "skipped". text: the measured values."""

    name: str
    state: str
    text: str


def claim_cases(scores: Mapping[str, Any]) -> list[Case]:
    """A test per claim and per symptom of scores.json. A gate that fails and a bad symptom fail; a claim that is
    inconclusive, a diagnostic that fails, and a symptom that is only a warning, are skipped."""
    symptoms = [
        Case(f"symptom {flag['symptom']}", SYMPTOM_STATES[flag["level"]], f"{flag['level']}: {flag['reason']}")
        for flag in scores.get("flags", ())
        if flag["symptom"] not in OF_THE_MACHINE
    ]
    return [
        Case(
            verdict["name"],
            _state(verdict["outcome"], verdict["kind"]),
            f"{verdict['kind']} {verdict['outcome']}: {verdict['claim']}: {format_estimate(verdict['value'])}, "
            f"required {verdict['threshold']}",
        )
        for verdict in scores["verdicts"]
    ] + symptoms


def _state(outcome: str, kind: str) -> str:
    if outcome == "holds":
        return "passed"
    return "failed" if outcome == "fails" and kind == "gate" else "skipped"


def comparison_cases(comparison: Mapping[str, Any]) -> list[Case]:
    """A test per metric of `eval.compare`; metrics without an allowed loss are skipped."""
    cases = []
    for key, metric in comparison["metrics"].items():
        gate = comparison["gates"].get(key)
        text = f"{metric['title']}: B - A = {format_estimate(metric['difference'])} {metric['unit']}".strip()
        if gate is None:
            cases.append(Case(key, "skipped", f"{text}; no allowed loss is set"))
        else:
            p = "" if gate["p_holm"] is None else f", p {gate['p_holm']:.2g}"
            cases.append(
                Case(key, "failed" if gate["failed"] else "passed", f"{text}, allowed loss {gate['allowed']:g}{p}")
            )
    return cases


def write_junit(path: Path, suite: str, cases: Iterable[Case], properties: Mapping[str, str]) -> None:
    """Write one test suite atomically. Characters that XML cannot hold are left out."""
    cases = list(cases)
    counts = {
        "tests": len(cases),
        "failures": sum(case.state == "failed" for case in cases),
        "errors": 0,
        "skipped": sum(case.state == "skipped" for case in cases),
    }
    numbers = {key: str(count) for key, count in counts.items()}
    root = ElementTree.Element("testsuites", numbers)
    element = ElementTree.SubElement(root, "testsuite", {"name": _printable(suite), **numbers})
    listed = ElementTree.SubElement(element, "properties")
    for name, value in properties.items():
        ElementTree.SubElement(listed, "property", {"name": name, "value": _printable(value)})
    for case in cases:
        test = ElementTree.SubElement(element, "testcase", {"classname": _printable(suite), "name": case.name})
        if case.state == "passed":
            ElementTree.SubElement(test, "system-out").text = _printable(case.text)
        else:
            tag = "failure" if case.state == "failed" else "skipped"
            ElementTree.SubElement(test, tag, {"message": _printable(case.text)})
    ElementTree.indent(root)
    with write_atomic(path) as file:
        file.write(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def write_claims(path: Path, scores: Mapping[str, Any]) -> None:
    """Write the claims of an evaluation."""
    adapter, base = scores["adapter"], scores["base"]
    facts = {"adapter": adapter["path"], "sha256": adapter["sha256"] or "", "base": f"{base['name']} {base['version']}"}
    write_junit(path, f"eval.{scores['task']}", claim_cases(scores), facts)


def _printable(text: str) -> str:
    """Text without control characters and lone surrogates."""
    return "".join(character for character in text if character.isprintable())

"""`python -m eval.diagnose clip=FILE reference=FILE`: what is wrong with one finished clip, and what to try.

It needs no target and no base model. Each finding is a line with a remedy. Exit code 0: nothing was found; 3: there are
findings; 2: a wrong setting or file.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

from typing import Any

from omegaconf import DictConfig

from eval.diagnosis.settings import DiagnoseSettings, to_settings
from iclora_train.config.hydra_app import run_with_schema

FOUND = 3  # exit code: 1 is taken by eval.compare, 2 by errors


def _diagnose(composed: DictConfig) -> None:
    """Print what is known, what was measured and what was found. SystemExit(3) if anything was found."""
    settings = to_settings(composed)
    # after the settings have been checked, because they import torch
    from eval.diagnosis.facts import clip_facts  # noqa: PLC0415
    from eval.diagnosis.findings import diagnose  # noqa: PLC0415
    from eval.diagnosis.media import read_aligned  # noqa: PLC0415
    from eval.diagnosis.mismatches import mismatches  # noqa: PLC0415

    facts = clip_facts(settings)
    clips = read_aligned(settings, facts)
    result = diagnose(facts, clips)
    findings = [*mismatches(settings, facts, clips), *result.findings]
    task = "unknown" if facts.task is None else facts.task.name
    print(f"task {task} (from {facts.task_from}), reference: {result.kind}, factor {facts.downscale}")
    for note in facts.notes:
        print(f"note: {note}")
    for name, value in result.measured.items():
        print(f"  {name} {value:.3g}")
    for line in result.not_measured:
        print(f"not measured: {line}")
    for finding in findings:
        print(f"finding: {finding.line}")
    if settings.json is not None:
        _write_json(settings.json, task, result.kind, result.measured, result.not_measured, findings)
    print(f"{len(findings)} findings" if findings else "nothing was found")
    if findings:
        raise SystemExit(FOUND)


def _write_json(
    name: str, task: str, kind: str, measured: dict[str, float], not_measured: list[str], findings: list[Any]
) -> None:
    from dataclasses import asdict  # noqa: PLC0415

    from iclora_train.config.paths import user_path  # noqa: PLC0415
    from iclora_train.core.atomic_files import write_atomic  # noqa: PLC0415
    from iclora_train.core.scores import as_json  # noqa: PLC0415

    content = {"task": task, "reference": kind, "measured": measured, "not_measured": not_measured}
    with write_atomic(user_path(name)) as file:
        file.write(as_json({**content, "findings": [asdict(finding) for finding in findings]}))


def main() -> None:
    """Console script `iclora-diagnose`."""
    run_with_schema("diagnose", _diagnose, "nothing was written", DiagnoseSettings)


if __name__ == "__main__":
    main()

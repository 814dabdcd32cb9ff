"""The result of a diagnosis as lines for the user and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from eval.diagnosis.facts import ClipFacts, clip_facts
from eval.diagnosis.findings import Diagnosis, Finding, diagnose_clip, diagnose_reference
from eval.diagnosis.media import AlignedClips, AlignedReference, read_aligned
from eval.diagnosis.mismatches import mismatches
from eval.diagnosis.settings import DiagnoseSettings
from iclora_train.config.paths import user_path
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.scores import as_json

FOLLOWED = {True: "followed", False: "not followed", None: "not measured whether it is followed"}


@dataclass(frozen=True)
class Result:
    """What is known and found. differing: findings about files and settings. of_clip, of_references: the rest."""

    facts: ClipFacts
    clips: AlignedClips
    differing: list[Finding]
    of_clip: Diagnosis
    of_references: list[Diagnosis]

    @cached_property
    def findings(self) -> list[Finding]:
        """All findings, in the order of their weight."""
        of_references = [finding for part in self.of_references for finding in part.findings]
        return [*self.differing, *of_references, *self.of_clip.findings]

    @property
    def lines(self) -> Iterator[str]:
        """Lines for the user, without the count of findings."""
        yield from self._head()
        for note in self.facts.notes:
            yield f"note: {note}"
        for part, reference in self._parts():
            if self._several:
                yield f"reference {_in_words(part, reference)}"
            yield from (f"  {name} {value:.3g}" for name, value in part.measured.items())
        if self._several:
            yield from (f"reference {name}: left out" for name in self.facts.left_out)
            yield "clip"
        yield from (f"  {name} {value:.3g}" for name, value in self.of_clip.measured.items())
        yield from (f"not measured: {line}" for line in self._not_measured())
        yield from (f"finding: {finding.line}" for finding in self.findings)

    def write(self, name: str) -> None:
        """Write the result as JSON."""
        measured = {
            f"{reference.facts.name}: {key}" if self._several else key: value
            for part, reference in self._parts()
            for key, value in part.measured.items()
        }
        content = {
            "task": self._task,
            "reference": ", ".join(part.kind for part in self.of_references),
            "references": [_as_json(part, reference) for part, reference in self._parts()],
            "left_out": self.facts.left_out,
            "measured": {**measured, **self.of_clip.measured},
            "not_measured": list(self._not_measured()),
            "findings": [asdict(finding) for finding in self.findings],
        }
        with write_atomic(user_path(name)) as file:
            file.write(as_json(content))

    @property
    def _several(self) -> bool:
        return len(self.of_references) > 1 or bool(self.facts.left_out)

    @property
    def _task(self) -> str:
        return "unknown" if self.facts.task is None else self.facts.task.name

    def _parts(self) -> Iterator[tuple[Diagnosis, AlignedReference]]:
        return zip(self.of_references, self.clips.references, strict=True)

    def _head(self) -> Iterator[str]:
        task = f"task {self._task} (from {self.facts.task_from})"
        if self._several:
            yield f"{task}, {len(self.of_references)} references"
        else:
            layout = self.clips.references[0].facts.layout
            yield f"{task}, reference: {self.of_references[0].kind}, {layout.in_words}"

    def _not_measured(self) -> Iterator[str]:
        for part, reference in self._parts():
            name = f"{reference.facts.name}: " if self._several else ""
            yield from (f"{name}{line}" for line in part.not_measured)
        yield from self.of_clip.not_measured


def examined(settings: DiagnoseSettings) -> Result:
    """Run all checks. ConfigError for a file that is missing, unreadable or wrong."""
    facts = clip_facts(settings)
    clips = read_aligned(settings, facts)
    of_references = [diagnose_reference(facts, clips, reference) for reference in clips.references]
    of_clip = diagnose_clip(clips, [part.kind for part in of_references])
    return Result(facts, clips, list(mismatches(settings, facts, clips)), of_clip, of_references)


def _in_words(part: Diagnosis, reference: AlignedReference) -> str:
    """`still (still.png): still, factor 1, at frame 0: followed`."""
    facts = reference.facts
    return f"{facts.name} ({facts.path}): {part.kind}, {facts.layout.in_words}: {FOLLOWED[part.is_followed]}"


def _as_json(part: Diagnosis, reference: AlignedReference) -> dict[str, Any]:
    layout = asdict(reference.facts.layout)
    return {
        "name": reference.facts.name,
        "file": reference.facts.path,
        "kind": part.kind,
        **{key: layout[key] for key in ("downscale", "temporal_scale", "frame")},
        "followed": part.is_followed,
        "measured": part.measured,
    }

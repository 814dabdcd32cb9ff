"""A finding: what one check measured, what was allowed, and the verdict; and all findings about a pair."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from iclora_train.config.checks import VERDICTS, Limit

MAX_SEVERITY = 10.0  # how far outside of a limit still counts in the order


@dataclass(frozen=True)
class Finding:
    """`value` is None where a check does not apply, and `detail` says why. `reference` counts from 1; 0 is the pair."""

    check: str
    value: float | None
    least: float | None
    most: float | None
    verdict: str
    detail: str = ""
    reference: int = 0

    @property
    def severity(self) -> float:
        """How close a value is to its limit (1: on it) or how far outside, up to STRAIN_MOST."""
        if self.value is None:
            return 0.0
        above = _ratio(self.value, self.most) if self.most is not None else 0.0
        below = _ratio(self.least, self.value) if self.least is not None else 0.0
        return min(max(above, below), MAX_SEVERITY)

    @property
    def reason(self) -> str:
        """The finding in a line, e.g. `offset 2 (at most 0): the reference is 2 frames early`."""
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        bounds = [
            f"{word} {bound:g}" for word, bound in (("least", self.least), ("most", self.most)) if bound is not None
        ]
        allowed = f" (at {', at '.join(bounds)})" if bounds else ""
        which = f" of reference {self.reference}" if self.reference > 1 else ""
        return f"{self.check}{which} {value}{allowed}" + (f": {self.detail}" if self.detail else "")


def _ratio(large: float, small: float) -> float:
    return large / small if small > 0 else MAX_SEVERITY * (large > 0)


def judge(check: str, value: float | None, limit: Limit, detail: str = "", reference: int = 0) -> Finding:
    """A measured value against its limit. A value that is no number is outside of every limit."""
    good = value is None or (
        (limit.least is None or value >= limit.least) and (limit.most is None or value <= limit.most)
    )
    measured = None if value is None else float(value)
    return Finding(check, measured, limit.least, limit.most, "ok" if good else limit.action, detail, reference)


@dataclass(frozen=True)
class Report:
    """All findings about the pair `key`, or about a whole clip (key = clip)."""

    key: str
    clip: str
    split: str
    caption: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """The worst of the findings' verdicts."""
        return max((finding.verdict for finding in self.findings), key=VERDICTS.index, default="ok")

    @property
    def is_pair(self) -> bool:
        """Whether it is about a pair; otherwise it is about a whole clip."""
        return self.key != self.clip

    @property
    def kept(self) -> bool:
        """Whether the pair goes into the shards."""
        return self.verdict in ("ok", "warn")

    @property
    def problems(self) -> list[Finding]:
        """The findings that are not ok, the worst first."""
        bad = [finding for finding in self.findings if finding.verdict != "ok"]
        return sorted(bad, key=lambda finding: (-VERDICTS.index(finding.verdict), -finding.severity))

    @property
    def reason(self) -> str:
        """What is wrong, the worst first; empty when nothing is."""
        return "; ".join(finding.reason for finding in self.problems)

    @property
    def rank(self) -> tuple[int, int, float]:
        """Larger is worse: the verdict, how many checks object, how close to a limit."""
        severity = max((finding.severity for finding in self.findings), default=0.0)
        return VERDICTS.index(self.verdict), len(self.problems), severity

    def record(self) -> dict[str, Any]:
        """The report as JSON, a line of checks.jsonl."""
        told = {"key": self.key, "clip": self.clip, "split": self.split, "verdict": self.verdict}
        return told | {"caption": self.caption, "findings": [asdict(finding) for finding in self.findings]}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Report:
        """The report that `record` is of."""
        findings = tuple(Finding(**finding) for finding in record["findings"])
        return cls(record["key"], record["clip"], record["split"], record["caption"], findings)

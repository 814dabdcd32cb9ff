"""A finding of one check (value, limits, verdict), and the report with all findings about a pair."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from iclora_train.config.checks import VERDICTS, Limit
from iclora_train.core.records import AnyNumber, Count, Text

MAX_SEVERITY = 10.0  # larger severities rank equally


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    value: None if the check does not apply. detail: an explanation. reference: number of the reference, from 1; 0 is
    the pair itself.
    """

    check: Text
    value: AnyNumber | None
    least: AnyNumber | None
    most: AnyNumber | None
    verdict: Text
    detail: Text = ""
    reference: Count = 0

    @property
    def severity(self) -> float:
        """Ratio of the value to its limit: 1 at the limit, more outside, at most MAX_SEVERITY."""
        if self.value is None:
            return 0.0
        above = _ratio(self.value, self.most) if self.most is not None else 0.0
        below = _ratio(self.least, self.value) if self.least is not None else 0.0
        return min(max(above, below), MAX_SEVERITY)

    @property
    def reason(self) -> str:
        """The finding in one line, e.g. `offset 2 (at most 0): the reference is 2 frames early`."""
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        bounds = [
            f"{word} {bound:g}" for word, bound in (("least", self.least), ("most", self.most)) if bound is not None
        ]
        allowed = f" (at {', at '.join(bounds)})" if bounds else ""
        subject = f" of reference {self.reference}" if self.reference > 1 else ""
        return f"{self.check}{subject} {value}{allowed}" + (f": {self.detail}" if self.detail else "")


def _ratio(large: float, small: float) -> float:
    return large / small if small > 0 else MAX_SEVERITY * (large > 0)


def judge(check: str, value: float | None, limit: Limit, detail: str = "", reference: int = 0) -> Finding:
    """Compare a measured value with its limit. NaN violates every limit."""
    passes = value is None or (
        (limit.least is None or value >= limit.least) and (limit.most is None or value <= limit.most)
    )
    measured = None if value is None else float(value)
    return Finding(check, measured, limit.least, limit.most, "ok" if passes else limit.action, detail, reference)


@dataclass(frozen=True)
class Report:
    """All findings about the pair `key`, or about a whole clip (then key equals clip)."""

    key: Text
    clip: Text
    split: Text
    caption: Text
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """The worst verdict of the findings."""
        return max((finding.verdict for finding in self.findings), key=VERDICTS.index, default="ok")

    @property
    def is_pair(self) -> bool:
        """Whether the report is about a pair, not about a whole clip."""
        return self.key != self.clip

    @property
    def kept(self) -> bool:
        """Whether the pair goes into the shards."""
        return self.verdict in ("ok", "warn")

    @property
    def problems(self) -> list[Finding]:
        """The findings with a verdict other than ok, worst first."""
        not_ok = [finding for finding in self.findings if finding.verdict != "ok"]
        return sorted(not_ok, key=lambda finding: (-VERDICTS.index(finding.verdict), -finding.severity))

    @property
    def reason(self) -> str:
        """The problems in one line, worst first; empty if there are none."""
        return "; ".join(finding.reason for finding in self.problems)

    @property
    def rank(self) -> tuple[int, int, float]:
        """Sort key, larger is worse: verdict, number of problems, largest severity."""
        severity = max((finding.severity for finding in self.findings), default=0.0)
        return VERDICTS.index(self.verdict), len(self.problems), severity

    def record(self) -> dict[str, Any]:
        """The report as JSON, one line of checks.jsonl."""
        record = {"key": self.key, "clip": self.clip, "split": self.split, "verdict": self.verdict}
        return record | {"caption": self.caption, "findings": [asdict(finding) for finding in self.findings]}

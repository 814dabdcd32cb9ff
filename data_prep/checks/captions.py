"""Checks of a caption: length, trigger, and words about the control signal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from data_prep.checks.base import Finding, judge
from iclora_train.config import Task
from iclora_train.config.checks import Checks


def check_caption(caption: str, task: Task, checks: Checks, needed: bool) -> Iterator[Finding]:
    """Findings about a caption with its trigger. needed: whether the base model uses captions (nano hardly does).

    A caption describes the target. A caption about the control signal ties the adapter to words that users do not write
    at inference.
    """
    body, count = _without_trigger(task.trigger, caption)
    words = len(body.split())
    if task.family == "structure":
        phrases = find_phrases(body, checks.phrases)
        yield judge("caption_control", len(phrases), checks.caption_control, ", ".join(phrases))
    if task.trigger:
        detail = f"{task.trigger} is not in the caption" if not count else ""
        yield judge("caption_trigger", count, checks.caption_trigger, detail)
    if needed:
        yield judge("caption_empty", words, checks.caption_empty, "" if words else "the clip has no caption")
    yield judge("caption_long", words, checks.caption_long)


def find_phrases(text: str, phrases: Sequence[str]) -> list[str]:
    """The phrases that a text contains as whole words: any case, also plural, with hyphens as spaces."""
    plain = re.sub(r"[\s\-_]+", " ", text)
    return [p for p in phrases if re.search(rf"\b{re.escape(p)}(e?s)?\b", plain, re.IGNORECASE)]


def _without_trigger(trigger: str, caption: str) -> tuple[str, int]:
    """The caption without its trigger, and how often it contains the trigger as whole words."""
    if not trigger:
        return caption, 0
    return re.subn(rf"(?<!\w){re.escape(trigger)}(?!\w)", "", caption)

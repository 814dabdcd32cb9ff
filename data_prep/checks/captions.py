"""What is wrong with a caption."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from data_prep.checks.base import Finding, judge
from iclora_train.config import Task
from iclora_train.config.checks import Checks


def check_caption(caption: str, task: Task, checks: Checks, needed: bool) -> Iterator[Finding]:
    """Findings about a caption with its trigger. needed: whether the base reads captions (nano hardly does).

    A caption tells what the target shows. One that speaks of the control signal ties the adapter to these words: at
    inference, nobody writes them.
    """
    body, times = _without(task.trigger, caption)
    words = len(body.split())
    if task.family == "structure":
        found = find_phrases(body, checks.phrases)
        yield judge("caption_control", len(found), checks.caption_control, ", ".join(found))
    if task.trigger:
        detail = f"{task.trigger} is not in the caption" if not times else ""
        yield judge("caption_trigger", times, checks.caption_trigger, detail)
    if needed:
        yield judge("caption_empty", words, checks.caption_empty, "" if words else "the clip has no caption")
    yield judge("caption_long", words, checks.caption_long)


def find_phrases(text: str, phrases: Sequence[str]) -> list[str]:
    """The phrases that a text holds as whole words, in any case, also in the plural; hyphens count as spaces."""
    plain = re.sub(r"[\s\-_]+", " ", text)
    return [p for p in phrases if re.search(rf"\b{re.escape(p)}(e?s)?\b", plain, re.IGNORECASE)]


def _without(trigger: str, caption: str) -> tuple[str, int]:
    """The caption without its trigger, and how often that stands in it as whole words."""
    if not trigger:
        return caption, 0
    return re.subn(rf"(?<!\w){re.escape(trigger)}(?!\w)", "", caption)

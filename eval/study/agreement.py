"""How the preference of people agrees with the metrics, where both sets of clips are evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eval.clips.conditions import judged_row
from eval.compare import compare, load
from eval.statistics.estimates import recording_means
from eval.study.preference import Preference, sign_test
from eval.study.references import window_of
from iclora_train.config import ConfigError


def agreement(a: Path, b: Path, result: Preference) -> dict[str, Any] | None:
    """The difference of the primary metric, and in how many clips people prefer the side that it prefers.

    None unless both folders are evaluations that can be compared. The clips are named `<window>.<seed>`. p: by the sign
    test over recordings. Clips without a preference, of people or of the metric, do not count.
    """
    try:
        first, second = load(a), load(b)
        comparison = compare(first, second)
    except ConfigError:
        return None
    primary = comparison["primary"]
    row = comparison["metrics"][primary]
    sign = -1 if first["metrics"][primary]["better"] == "low" else 1
    keys = [clip["key"] for clip in first["clips"]]
    values = [
        np.array(
            [np.nan if value is None else value for value in scores["windows"][judged_row(scores["windows"])][primary]]
        )
        for scores in (first, second)
    ]
    gain = dict(zip(keys, sign * (values[1] - values[0]), strict=True))
    recordings = {clip["key"]: clip["source"] for clip in first["clips"]}
    judged = [
        (recordings[key], float((gain[key] > 0) == (share > 0.5)))
        for name, share in result.clips.items()
        if (key := window_of(name)) in gain and not np.isnan(gain[key]) and gain[key] != 0 and share != 0.5
    ]
    same = [agrees for _, agrees in judged]
    of_recordings = recording_means(same, [recording for recording, _ in judged]) if judged else None
    title, mean = f"{row['title']} {row['unit']}".strip(), row["difference"]["mean"]
    text = f"{title}: B - A = {mean:+.3f}"
    if same:
        text += f"; people prefer the side that it prefers in {np.mean(same):.0%} of {len(same)} clips"
    return {
        "primary": primary,
        "difference": row["difference"],
        "agreement": float(np.mean(same)) if same else None,
        "p": None if of_recordings is None else sign_test(of_recordings),
        "text": text,
    }


def recordings_of(folders: tuple[Path, ...], names: list[str]) -> dict[str, str]:
    """The recording of each clip, if one of the folders is an evaluation with these windows; else none."""
    for folder in folders:
        try:
            scores = load(folder)
        except ConfigError:
            continue
        sources = {clip.get("key"): clip["source"] for clip in scores["clips"]}
        if all(window_of(name) in sources for name in names):
            return {name: sources[window_of(name)] for name in names}
    return {}

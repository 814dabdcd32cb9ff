"""How the preference of people agrees with the metrics, where both sets of clips are evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eval.clips.conditions import ADAPTER_REFERENCE
from eval.compare import compare, load
from eval.study.preference import Preference, sign_test
from iclora_train.config import ConfigError


def agreement(a: Path, b: Path, result: Preference) -> dict[str, Any] | None:
    """The difference of the primary metric, and in how many clips people prefer the side that it prefers.

    None unless both folders are evaluations that can be compared. The clips are named `<window>.<seed>`.
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
        np.array([np.nan if value is None else value for value in scores["windows"][ADAPTER_REFERENCE][primary]])
        for scores in (first, second)
    ]
    gain = dict(zip(keys, sign * (values[1] - values[0]), strict=True))
    same = [
        float((gain[key] > 0) == (share > 0.5))
        for name, share in result.clips.items()
        if (key := name.rpartition(".")[0] or name) in gain and not np.isnan(gain[key]) and share != 0.5
    ]
    title, mean = f"{row['title']} {row['unit']}".strip(), row["difference"]["mean"]
    text = f"{title}: B - A = {mean:+.3f}"
    if same:
        text += f"; people prefer the side that it prefers in {np.mean(same):.0%} of {len(same)} clips"
    return {
        "primary": primary,
        "difference": row["difference"],
        "agreement": float(np.mean(same)) if same else None,
        "p": sign_test(np.array(same)) if same else None,
        "text": text,
    }

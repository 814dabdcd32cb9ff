"""The check of `signal`, a setting of `iclora_train.generate`. No torch import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iclora_train.config import require


def check_signal(signal: Any, signal_settings: Mapping[str, Any], clips: Sequence[str | None]) -> None:
    """ConfigError unless `signal` is null, a text, or a list with a text or null for each clip.

    clips: the setting `reference`, or the only `source`.
    """
    require(
        signal is not None or not signal_settings,
        f"signal_settings={signal_settings} is for signals that are made: set signal=auto too",
    )
    if signal is None:
        return
    require(clips[0] is not None, f"signal={signal} is made of a clip: set reference=CLIP too")
    values = signal if isinstance(signal, list) else [signal] * len(clips)
    require(
        len(values) == len(clips) and all(value is None or isinstance(value, str) for value in values),
        f"signal={signal} must be auto or the name of a control, or a list with one for each reference "
        f"(null: the clip is the reference itself), and reference has {len(clips)}",
    )

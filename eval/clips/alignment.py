"""Whether frame t of the outputs belongs to frame t of their targets. A shift is never mended: it fails the run."""

from __future__ import annotations

from collections.abc import Mapping

from iclora_train.config import require

NAMED = 3  # clips that the error names


def require_aligned(shifts: Mapping[str, int], share: float = 0.0) -> None:
    """ConfigError when more than `share` of the clips are shifted in time against their targets.

    shifts: what a clip is called -> frames by which it is early (`eval.metrics.offset`). Outputs that are not meant to
    look like their targets need a share: by chance one of them fits another frame better.
    """
    shifted = [f"{name} by {abs(k)} ({'early' if k > 0 else 'late'})" for name, k in shifts.items() if k != 0]
    require(
        len(shifted) <= share * len(shifts),
        f"{len(shifted)} of {len(shifts)} clips are shifted in time against their targets, e.g. "
        f"{', '.join(shifted[:NAMED])}: their figures would be wrong. Frame t must show what the target shows at frame "
        "t; look for a frame that was dropped or repeated at the start",
    )

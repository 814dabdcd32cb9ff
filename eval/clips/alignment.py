"""Check that frame t of every output shows what frame t of its target shows. A time shift ends the run."""

from __future__ import annotations

from collections.abc import Mapping

from iclora_train.config import require

MAX_NAMED = 3  # clips that the error message names


def require_aligned(shifts: Mapping[str, int], share: float = 0.0) -> None:
    """Raise ConfigError if more than `share` of the clips are shifted in time against their targets.

    shifts: clip name -> number of frames by which the clip is early (`eval.metrics.offset`). Outputs that are not meant
    to look like their targets need a share above 0, because some of them match another frame better by chance.
    """
    shifted = [f"{name} by {abs(k)} ({'early' if k > 0 else 'late'})" for name, k in shifts.items() if k != 0]
    require(
        len(shifted) <= share * len(shifts),
        f"{len(shifted)} of {len(shifts)} clips are shifted in time against their targets, e.g. "
        f"{', '.join(shifted[:MAX_NAMED])}: their metrics would be wrong. Frame t must show what the target shows at "
        "frame t; look for a frame that was dropped or repeated at the start",
    )

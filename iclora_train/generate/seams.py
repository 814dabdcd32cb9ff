"""The jumps at the seams of a video that was made in windows, beside those of its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from iclora_train.core.types import VideoShape
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.windows import Window
from iclora_train.signals.seams import seam_jumps


def measure_seams(
    frames: np.ndarray,
    windows: Sequence[Window],
    reference: InputMedia | None,
    shape: VideoShape,
    echo: Callable[[str], None],
) -> list[dict[str, float | None]]:
    """The jump (`seam_jumps`) at every seam of the video, and that of a reference there; `echo` prints a line.

    The reference's jump tells a cut or a fast motion of the source from a seam. It is None without a reference that
    has all frames of the video.
    """
    seams = [window.end for window, _ in pairwise(windows)]
    jumps = seam_jumps(frames, seams)
    others: list[float] | list[None] = [None] * len(seams)
    if seams and reference is not None:
        numbers = reference.frame_numbers(shape.fps)[: shape.frames]
        others = seam_jumps(reference.read(numbers, (shape.height, shape.width), "crop"), seams)
    if seams:
        parts = [
            f"{jump:.2f} at frame {seam}" + ("" if other is None else f" (reference {other:.2f})")
            for seam, jump, other in zip(seams, jumps, others, strict=True)
        ]
        echo(f"change at the seams, relative to the frames around (1: no jump): {', '.join(parts)}")
    return [
        {"frame": seam, "jump": jump, "reference_jump": other}
        for seam, jump, other in zip(seams, jumps, others, strict=True)
    ]

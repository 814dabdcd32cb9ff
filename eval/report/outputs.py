"""The judged clips as files, for a study with people (`eval.study`) and for looking at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from eval.clips.conditions import ADAPTER_REFERENCE
from eval.report.exhibits import Exhibit
from iclora_train.core.atomic_files import write_atomic
from iclora_train.media.shard_clip import encode_clip

OUTPUTS = "outputs"


def save_outputs(exhibits: Iterable[Exhibit], folder: Path, seed: int) -> Iterator[Exhibit]:
    """Pass the exhibits through, and write their clips with adapter and reference to `folder`/outputs/<key>.<seed>.mp4,
    the names of `eval.handout`."""
    for exhibit in exhibits:
        with write_atomic(folder / OUTPUTS / f"{exhibit.window.key}.{seed}.mp4") as file:
            file.write(encode_clip(exhibit.clips[ADAPTER_REFERENCE], exhibit.fps, lossless=False))
        yield exhibit

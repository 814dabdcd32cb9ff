"""The judged clips as files, for a study with people (`eval.study`) and for looking at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from eval.clips.conditions import judged_row
from eval.report.exhibits import Exhibit
from eval.report.media import Media
from iclora_train.core.atomic_files import write_atomic

OUTPUTS = "outputs"


def save_outputs(exhibits: Iterable[Exhibit], media: Media, seed: int) -> Iterator[Exhibit]:
    """Pass the exhibits through, and write their clips with adapter and reference beside the report:
    outputs/<key>.<seed>.mp4, the names of `eval.handout`."""
    for exhibit in exhibits:
        with write_atomic(media.folder / OUTPUTS / f"{exhibit.window.key}.{seed}.mp4") as file:
            file.write(media.read(exhibit, judged_row(exhibit.clips)))
        yield exhibit

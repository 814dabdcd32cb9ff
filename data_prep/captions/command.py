"""`python -m data_prep caption`: write captions for the clips that have none, before they are prepared."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.captions.answers import AnswerCheck
from data_prep.captions.captioning import Uncaptioned, open_captioning_model, show, write_captions, write_list
from data_prep.captions.stored import caption_files, with_stored_captions
from data_prep.clips.clip_list import Clip, clips_of
from data_prep.clips.webdataset import with_local_clips
from iclora_train.config import Config, ConfigError, require
from iclora_train.core.atomic_files import exclusive
from iclora_train.data.mixture import source_config


def caption(config: Config) -> int:
    """Write the captions of data.clips, or of all data.sources. Returns the number of clips that are left without one.

    A clip with a caption keeps it; with captioner.overwrite only if a list gives it in a column. A table and a file
    name the clips without one.
    """
    settings, sources = config.captioner, config.data.sources
    require(
        settings.model is not None or settings.endpoint is not None,
        "no captioner: set captioner.model=<folder of a vision-language model>, or "
        "captioner.endpoint=http://<host>:8000/v1",
    )
    if sources is None:
        return _caption_clips(config)
    require(settings.out is None, "captioner.out: with data.sources, captions are written next to the videos; set null")
    return sum(_caption_clips(source_config(config, source)) for source in sources if source.clips is not None)


def _caption_clips(config: Config) -> int:
    """Write the captions of data.clips. Returns the number of clips without one."""
    settings = config.captioner
    clips = clips_of(with_local_clips(config))
    files = caption_files(clips, settings)
    clips = with_stored_captions(clips, settings)
    pending = [clip for clip in clips if _needs_caption(clip, settings.overwrite)]
    unusable = [Uncaptioned(clip.id, str(clip.path), why) for clip in clips if (why := _why_unusable(clip))]
    folder = Path(config.data.root if settings.out is None else settings.out)
    where = "next to the videos" if settings.out is None else f"in {folder}"
    print(f"{len(pending)} of {len(clips)} clips will be captioned; the text files go {where}")
    left: list[Uncaptioned] = []
    if pending:
        _require_separate_files(pending, files)
        _require_writable(files[clip.id].parent for clip in pending)
        check, asked = AnswerCheck(config), {clip.id for clip in pending}
        for clip in clips:
            if clip.caption and clip.id not in asked:
                check.count(clip.caption)
        with exclusive(folder, "set another data.root or captioner.out"):
            left = write_captions(pending, files, open_captioning_model(settings), config, check)
    left = sorted([*left, *unusable], key=lambda row: row.clip)
    report = folder / "captions.json"
    kept = len(clips) - len(pending) - len(unusable)
    write_list(report, left, written=len(clips) - kept - len(left), kept=kept)
    show(left)
    if left:
        print(f"{len(left)} clips are left without a caption; {report} lists them with the last answers")
    return len(left)


def _why_unusable(clip: Clip) -> str | None:
    """Why no caption can be written for a clip, before it is decoded."""
    if clip.problem:
        return clip.problem
    return None if os.path.isfile(clip.path) else f"{clip.path} does not exist"


def _needs_caption(clip: Clip, overwrite: bool) -> bool:
    if _why_unusable(clip) or "caption" in clip.row:
        return False
    return overwrite or not clip.caption


def _require_separate_files(clips: Sequence[Clip], files: dict[str, Path]) -> None:
    """ConfigError if two clips, such as a.mp4 and a.mov or two sections of a video, would get one text file."""
    by_file = defaultdict[Path, list[Clip]](list)
    for clip in clips:
        by_file[files[clip.id]].append(clip)
    shared = next((group for group in by_file.values() if len(group) > 1), None)
    if shared is not None:
        raise ConfigError(
            f"{', '.join(clip.id for clip in shared)} would get one text file, {files[shared[0].id]}: set "
            "captioner.out=<folder>, or rename a video"
        )


def _require_writable(folders: Iterable[Path]) -> None:
    """ConfigError if a folder exists and files cannot be created in it."""
    for folder in dict.fromkeys(folders):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"{folder} cannot be written: set captioner.out=<folder>, where you can write")

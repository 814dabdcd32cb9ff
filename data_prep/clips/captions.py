"""Captions: trigger and caption as the task combines them, and generated captions for clips without one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.clips.clip_list import Clip
from data_prep.clips.text_files import read_text
from iclora_train.config import Config
from iclora_train.config.paths import user_path
from iclora_train.core.atomic_files import exclusive, sha256, write_atomic
from iclora_train.core.progress import progress_bar
from iclora_train.data.prompts import fill_template, with_trigger
from iclora_train.media.clip import probe, read_clip

if TYPE_CHECKING:
    from data_prep.clips.captioner import Captioner


def caption_of(clip: Clip, config: Config) -> str:
    """The text that the model reads for a clip: data.prompt filled with the columns of its row, or trigger and caption.

    ValueError if the row lacks a column that data.prompt names.
    """
    trigger, template = config.task.trigger, config.data.prompt
    if template is None:
        return with_trigger(trigger, clip.caption)
    return fill_template(template, {**clip.row, "caption": clip.caption, "trigger": trigger})


def add_missing_captions(clips: list[Clip], config: Config) -> list[Clip]:
    """The clips; clips without a caption get one from data.captioner, if set.

    Captions are stored as text files in data.root, where you can correct them before pairs are made.
    """
    missing = [clip for clip in clips if not clip.caption and not clip.problem and os.path.isfile(clip.path)]
    if config.data.captioner is None or not missing:
        return clips
    from data_prep.clips.captioner import Captioner  # noqa: PLC0415 (transformers takes seconds to import, and few runs need it)

    captioner = Captioner.open(user_path(config.data.captioner))
    folder = Path(config.data.root) / f"captions-{captioner.identity[:8]}"
    files = {clip.id: folder / f"{clip.id}-{sha256(clip.path)[:8]}.txt" for clip in missing}
    pending = [clip for clip in missing if not files[clip.id].exists()]
    if pending:
        with exclusive(folder.parent, "set another data.root"):
            _describe(pending, files, captioner)
    return [_with_text(clip, files[clip.id]) if clip.id in files else clip for clip in clips]


def _with_text(clip: Clip, path: Path) -> Clip:
    """The clip with the caption in a file, if it exists; with a `problem` if it was edited and cannot be read."""
    try:
        return replace(clip, caption=read_text(path).strip())
    except FileNotFoundError:
        return clip
    except (OSError, ValueError) as error:
        return replace(clip, problem=f"its caption {error}")


def _describe(clips: list[Clip], files: dict[str, Path], captioner: Captioner) -> None:
    """Write a description of each clip. Unreadable clips get none; `select_clips` reports them later."""
    with progress_bar("describing", len(clips), "clip") as bar:
        for clip in bar.track(clips):
            try:
                frame = _middle_frame(clip)
            except ValueError:
                continue
            with write_atomic(files[clip.id]) as file:
                file.write(captioner.describe(frame).encode())


def _middle_frame(clip: Clip) -> np.ndarray:
    """The frame (H,W,3) in the middle of a clip."""
    middle = probe(clip.path, clip.section).frames // 2
    return next(read_clip(clip.path, (middle,), clip.section))

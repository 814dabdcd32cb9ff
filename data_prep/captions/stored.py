"""Where captions are stored: next to the videos, in captioner.out, or in data.root for data.captioner."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.captions.answers import AnswerCheck
from data_prep.captions.captioning import automatic_settings, identity_of, open_captioning_model, show, write_captions
from data_prep.clips.clip_list import Clip
from data_prep.clips.text_files import CAPTION_SUFFIXES, read_text
from iclora_train.config import Captioner, Config, require
from iclora_train.config.paths import user_path
from iclora_train.core.atomic_files import exclusive, sha256, write_atomic


def caption_files(clips: Sequence[Clip], settings: Captioner) -> dict[str, Path]:
    """The text file of each clip, by its id: `<id>.txt` in captioner.out, otherwise `a.txt` next to `a.mp4`."""
    if settings.out is not None:
        return {clip.id: Path(settings.out) / f"{clip.id}.txt" for clip in clips}
    return {clip.id: clip.path.with_suffix(CAPTION_SUFFIXES[0]) for clip in clips}


def with_stored_captions(clips: Sequence[Clip], settings: Captioner) -> list[Clip]:
    """The clips with their captions in captioner.out, if it is set. A caption in a column of a list comes first."""
    if settings.out is None:
        return list(clips)
    files = caption_files(clips, settings)
    return [clip if "caption" in clip.row or clip.problem else _with_text(clip, files[clip.id]) for clip in clips]


def add_missing_captions(clips: Sequence[Clip], config: Config) -> list[Clip]:
    """The clips with the captions in captioner.out; those without one get one from data.captioner, if set.

    The new captions are text files in data.root, where you can correct them before pairs are made. A clip that gets no
    usable answer has an empty file there, so that it is not asked again.
    """
    clips = with_stored_captions(clips, config.captioner)
    missing = [clip for clip in clips if not clip.caption and not clip.problem and os.path.isfile(clip.path)]
    if config.data.captioner is None or not missing:
        return clips
    config = replace(config, captioner=automatic_settings(config))
    root = Path(config.data.root)
    folders = [root / f"captions-{identity[:8]}" for identity in _identities(config)]
    names = {clip.id: f"{clip.id}-{sha256(clip.path)[:8]}.txt" for clip in missing}
    files = {
        name: next((folder / file for folder in folders if (folder / file).exists()), folders[0] / file)
        for name, file in names.items()
    }
    pending = [clip for clip in missing if not files[clip.id].exists()]
    if pending:
        print(f"{len(pending)} clips will be captioned; the text files go into {folders[0]}")
        with exclusive(root, "set another data.root"):
            _write(pending, files, [clip.caption for clip in clips if clip.caption], config)
    return [_with_text(clip, files[clip.id]) if clip.id in files else clip for clip in clips]


def _write(pending: Sequence[Clip], files: dict[str, Path], captions: Sequence[str], config: Config) -> None:
    """Write the captions of the pending clips, and empty files for those whose answers cannot be used."""
    check = AnswerCheck(config)
    written = [read_text(path).strip() for path in files.values() if path.exists()]
    for caption in (*captions, *filter(None, written)):
        check.count(caption)
    left = write_captions(pending, files, open_captioning_model(config.captioner, "data.captioner"), config, check)
    for row in left:
        with write_atomic(files[row.clip]):
            pass
    show(left)


def _identities(config: Config) -> list[str]:
    """The identity of the captioner, then the one that version 0.1 gave to the same folder."""
    settings = config.captioner
    if settings.endpoint is not None:
        return [identity_of(config, {"endpoint": settings.model or settings.endpoint})]
    from data_prep.captions.local_model import REMEDY, first_identity, model_identity  # noqa: PLC0415 (imports transformers)

    assert settings.model is not None
    folder = user_path(settings.model)
    require((folder / "config.json").is_file(), f"data.captioner={folder} holds no config.json: {REMEDY}")
    return [identity_of(config, model_identity(folder)), first_identity(folder)]


def _with_text(clip: Clip, path: Path) -> Clip:
    """The clip with the caption in a file, if it exists; with a `problem` if it was edited and cannot be read."""
    try:
        text = read_text(path).strip()
    except FileNotFoundError:
        return clip
    except (OSError, ValueError) as error:
        return replace(clip, problem=f"its caption {error}")
    return replace(clip, caption=text) if text else clip

"""Names of the columns of clip lists: ours, those of other trainers, and hints for misspelt ones."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from iclora_train.config import require
from iclora_train.config.audio_reference import COLUMN as REFERENCE_SOUND
from iclora_train.config.conditions import MASK_COLUMNS

MORE_REFERENCES = ("reference_2", "reference_3", "reference_4")  # supplied references after the first
# columns with paths of files that makers read
FILE_COLUMNS = (*MASK_COLUMNS, "depth", "tracks", "pose", "flow", "sheet", *MORE_REFERENCES, REFERENCE_SOUND)
# Column -> the names under which it is read; the first that a list has. media_path, reference_video, ref_media_path,
# reference_audio and video_mask are Lightricks' names, video_path, image_path and control_path musubi-tuner's,
# file_name and text Hugging Face's, path and text Open-Sora's, prompt DiffSynth-Studio's, start_timestamp InternVid's,
# timestamp Panda-70M's.
NAMES: dict[str, tuple[str, ...]] = {
    "video": ("video", "file", "video_path", "media_path", "file_name", "image_path", "path"),
    "caption": ("caption", "prompt", "text"),
    "reference": (
        *("reference", "reference_path", "control_path"),
        *("reference_video", "ref_media_path", "control_path_0", "control_path_00", "control_path_0000"),
    ),
    "start": ("start", "start_time", "start_timestamp"),
    "end": ("end", "end_time", "end_timestamp"),
    "licence": ("licence", "license"),
    "mask": ("mask", "video_mask"),
    **{name: (name,) for name in ("id", "split", "fps", "cuts", "source", *FILE_COLUMNS[1:])},
    **{name: (name, f"control_path_{number}") for number, name in enumerate(MORE_REFERENCES, start=1)},
    REFERENCE_SOUND: (REFERENCE_SOUND, "reference_audio"),
    **{name: (name,) for name in ("timestamp", "start_frame", "end_frame", "reference_start")},
}
_COLUMN_OF = {name: column for column, names in NAMES.items() for name in names}
SOUND = ("audio", "audio_path", "audio_mask")  # columns of other trainers
_NO_HINT = ("start", "end", "reference_audio")  # too many words resemble them: `state`, `reference_caption`
_SIMILAR = 0.8  # share of equal letters from which a name counts as misspelt (difflib)


def normalise(name: str) -> str:
    """A column name as it is compared: without spaces around it, in lower case, with _ between words."""
    return "_".join(name.replace("-", " ").split()).casefold()


def has_video(header: Iterable[str]) -> bool:
    """Whether a header has a column with videos."""
    return any(_COLUMN_OF.get(normalise(name)) == "video" for name in header)


def check_header(where: str, header: Collection[str], used: Collection[str]) -> None:
    """ConfigError for a header without videos, with a repeated column, or with a misspelt name of an absent column.

    used: the columns that data.prompt names.
    """
    names = [normalise(name) for name in header]
    repeated = sorted(name for name, count in Counter(names).items() if count > 1 and name)
    require(not repeated, f"{where}: column `{'`, `'.join(repeated)}` occurs twice; remove one of the two")
    present = {_COLUMN_OF[name] for name in names if name in _COLUMN_OF}
    known = {name: _misspelt(normalise(name), present) for name in header if name.strip() not in used}
    hint = "; ".join(f"`{name}` is not read, did you mean `{other}`?" for name, other in known.items() if other)
    columns = ", ".join(f"`{name}`" for name in header)
    require(
        "video" in present,
        f"{where} names no video: give a column `video` with the path (or {', '.join(NAMES['video'][1:])}); its "
        f"columns are {columns}" + (f"; {hint}" if hint else ""),
    )
    require(not hint, f"{where}: column {hint} Rename it, or name it in data.prompt")


def _misspelt(name: str, present: Collection[str]) -> str | None:
    """The known name that `name` resembles, unless its column is present under another name."""
    if name in _COLUMN_OF:
        return None
    for known in difflib.get_close_matches(name, _COLUMN_OF, cutoff=_SIMILAR):
        if known not in _NO_HINT and _COLUMN_OF[known] not in present and not name.startswith(f"{known}_"):
            return known
    return None


def rename_columns(row: Mapping[str, str], header: Collection[str]) -> dict[str, str]:
    """The cells of a row under the names of the list and, as far as they are known, under ours.

    header: the columns of the whole list. A column is read under the first of its NAMES that the list has; only a video
    may stand under another name in each row.
    """
    cells = {normalise(name): cell for name, cell in row.items()}
    listed = {normalise(name) for name in header}
    renamed = {name.strip(): cell for name, cell in row.items()}
    for column, names in NAMES.items():
        candidates = names if column == "video" else [name for name in names if name in listed][:1]
        cell = next((cells[name] for name in candidates if name in cells), None)
        if cell is not None:
            renamed[column] = cell
    return renamed


def unread_columns(rows: Iterable[Mapping[str, str]], used: Collection[str]) -> list[str]:
    """The columns of a list that nothing reads: neither known nor named by data.prompt."""
    return sorted({name for row in rows for name in row if normalise(name) not in _COLUMN_OF and name not in used})

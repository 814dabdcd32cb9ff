"""References in a folder of their own (`data.references`): each has the name of its target, with any suffix."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from data_prep.clips.folders import files_below
from iclora_train.config import require
from iclora_train.config.paths import user_path
from iclora_train.media.picture import is_picture


class ReferenceFolder:
    """The videos and images below a folder, by their path in it without the suffix.

    kinds: the suffixes of videos and images. clips_folder: the folder of the targets; files in it are not references.
    setting: the name of the setting, for messages. ConfigError if the folder cannot be read, or holds the targets.
    """

    def __init__(
        self, references: str, kinds: Collection[str], clips_folder: Path, setting: str = "data.references"
    ) -> None:
        self.folder, self.setting = user_path(references), setting
        require(
            os.path.isdir(self.folder),
            f"{setting}={references} is not a folder: give the folder that holds a reference for every clip, "
            "under the clip's name",
        )
        targets = os.path.realpath(clips_folder)
        require(
            os.path.realpath(self.folder) != targets,
            f"{setting}={references} is the folder of the clips: put references and targets into two folders",
        )
        within = is_below(clips_folder, self.folder)
        self.files = defaultdict[str, list[Path]](list)
        for path in files_below(self.folder):
            require(not os.path.isdir(path), f"{setting}: the folder {path} cannot be read: give it read permission")
            if path.suffix.lower() in kinds and not (within and is_below(path, clips_folder)):
                self.files[name_of(path.relative_to(self.folder))].append(path)

    def partner_of(self, clip: Path) -> Path | None:
        """The reference of a clip, given by its path in the folder of the clips; None if there is none.

        Of a video and an image with the clip's name, the one of the clip's kind. ConfigError if there are two.
        """
        files = self.files.get(name_of(clip), [])
        candidates = [file for file in files if is_picture(file) == is_picture(clip)] or files
        names = " and ".join(str(file) for file in candidates)
        require(
            len(candidates) < 2,
            f"{self.setting}={self.folder}: {names} have the name of the clip {clip}; keep one of them",
        )
        return candidates[0] if candidates else None

    def without_target(self, used: Collection[Path | None]) -> list[str]:
        """The paths in the folder of the references that no clip uses, if no other file of their name is used."""
        unused = (files for files in self.files.values() if not any(file in used for file in files))
        return sorted(str(file.relative_to(self.folder)) for files in unused for file in files)


def name_of(path: Path) -> str:
    """The path without suffix, as names are compared: accents are composed (macOS stores them decomposed)."""
    return unicodedata.normalize("NFC", str(path.with_suffix("")))


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, links resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))

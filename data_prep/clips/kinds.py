"""The suffixes of files that are read as clips and references."""

from __future__ import annotations

from iclora_train.media.picture import IMAGES, UNREADABLE

VIDEOS = (
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif"),
    *(".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv", ".mxf"),
)
STILLS = IMAGES + UNREADABLE  # the unreadable ones are listed, so that they are dropped with the reason
REFERENCES = VIDEOS + STILLS  # suffixes of supplied references

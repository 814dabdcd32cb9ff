"""Track files: the JSON of ComfyUI-LTXVideo's track editor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.clips.text_files import read_text

EDITOR, STORED = "LTXVSparseTrackEditor", ("points_store", "coordinates")  # node of ComfyUI-LTXVideo, its two texts


def read_tracks(path: Path) -> list[np.ndarray]:
    """Tracks (n,2) as x, y in pixels of the clip. ValueError if the file has no track.

    The file contains lists of {"x": , "y": }: one track or several, nested to any depth, also as JSON strings within
    JSON. Or it is a workflow of ComfyUI, in either format: the tracks are those of its track editors.
    """
    try:
        text = read_text(path)  # ValueError: not a text
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    try:
        value = json.loads(text)
        tracks = [track for stored in _of_editors(value) for track in _parse_tracks(stored)] or _parse_tracks(value)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f'{path} holds a point that is not {{"x": number, "y": number}}') from error
    if not tracks:
        raise ValueError(f'{path} holds no tracks: give lists of {{"x": number, "y": number}}')
    return tracks


def _of_editors(value: Any) -> Iterator[str]:
    """What each track editor in a workflow stores: the bends of its curves, or, without any, their points.

    The page's format lists the values of a node in the order of its inputs, the server's names them.
    """
    if isinstance(value, dict):
        if EDITOR in (value.get("type"), value.get("class_type")):
            named = value.get("inputs")
            stored = [named.get(key) for key in STORED] if isinstance(named, dict) else value.get("widgets_values")
            texts = stored[: len(STORED)] if isinstance(stored, list) else []
            yield from [text for text in texts if isinstance(text, str) and text.strip() not in ("", "[]")][:1]
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _of_editors(item)


def _parse_tracks(value: Any) -> list[np.ndarray]:
    """The tracks in a JSON value, in order."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, list) or not value:
        return []
    if isinstance(value[0], dict):
        points = np.array([[float(point["x"]), float(point["y"])] for point in value])
        if not np.isfinite(points).all():
            raise ValueError("a coordinate is not finite")
        return [points]
    return [track for item in value for track in _parse_tracks(item)]

"""Files of tracks: whether the points are bends of a curve or one for each frame, and whether they fit the clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.makers.control.track_files import read_tracks
from data_prep.signal.recipes import Echo, Recipe
from data_prep.signal.settings import SignalSettings
from data_prep.signal.source import SourceClip
from iclora_train.config import ConfigError, require

ASPECT = 0.02  # relative difference of two aspect ratios that are called equal


def with_fitting_points(
    recipe: Recipe, files: Mapping[str, Path], settings: SignalSettings, source: SourceClip, echo: Echo
) -> Recipe:
    """The recipe with `points` as the file of tracks needs it, unless `maker_args.points` says it.

    ComfyUI's track editor stores a few bends of each curve (`points_store`), and hands one point for each frame to the
    drawing node: a file with at least as many points as the video has frames holds the latter. ConfigError for tracks
    that cannot be read, and for a picture of another shape than the clip's.
    """
    if recipe.maker != "control.tracks" or "tracks" not in files:
        require(
            settings.tracks_size is None or recipe.maker != "control.tracks",
            "tracks_size is the size on which the points of tracks=FILE were drawn: set tracks too",
        )
        return recipe
    try:
        tracks = read_tracks(files["tracks"])
    except ValueError as error:
        raise ConfigError(f"tracks: {error}") from error
    width, height = settings.tracks_size or source.size[::-1]
    aspect = source.size[1] / source.size[0]
    require(
        abs(width / height / aspect - 1) <= ASPECT,
        f"tracks_size={settings.tracks_size} has another shape than the clip, which has {source.size[1]}x"
        f"{source.size[0]} pixels: draw the tracks on a picture of the clip",
    )
    points = np.concatenate(tracks)
    inside = ((points >= 0) & (points <= (width - 1, height - 1))).all(axis=1).mean()
    require(
        inside > 0,
        f"tracks={files['tracks']}: every point lies outside of a picture of {width}x{height} pixels: set "
        "tracks_size=[width,height] to the size of the picture that they were drawn on",
    )
    if inside < 1:
        echo(
            f"warning: tracks: {1 - inside:.0%} of the points lie outside of a picture of {width}x{height} pixels; if "
            "they were drawn on another size, set tracks_size=[width,height]"
        )
    if "points" in settings.maker_args:
        return recipe
    shortest = min(map(len, tracks))
    kind = "frames" if source.shape.frames > 1 and shortest >= source.shape.frames else "spline"
    meaning = "one point for each frame" if kind == "frames" else "bends of curves over the whole video"
    echo(f"tracks: {len(tracks)} with {shortest} points or more, read as {meaning} (maker_args.points={kind})")
    return replace(recipe, args={**recipe.args, "points": kind})

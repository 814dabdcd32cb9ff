"""Make the references of a clip as `data_prep.pairs` makes them for training."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_prep.clips.windows import MAKER_USES
from data_prep.makers import Maker
from data_prep.makers.control.tracks import Tracks
from data_prep.makers.edit.edits import Outpaint
from data_prep.pairs import PaddedWindow, ReferenceScale, SourceVideo, draw_place, reference_of
from data_prep.signal.border import ExtendedBorder
from data_prep.signal.recipes import Echo, Recipe
from data_prep.signal.source import SourceClip
from iclora_train.config import ConfigError, first_line, require
from iclora_train.config.places import is_drawn
from iclora_train.config.references import FIRST, reference_keys
from iclora_train.core.progress import progress_bar

TRIED = 3  # frames that are made first, to estimate the time of all
WORTH_TELLING = 5.0  # seconds


@dataclass(frozen=True)
class Signal:
    """A finished reference uint8 RGB (F',H',W',3), and how it was made: the maker's random parameters, its seed, and
    the frame at which it begins, if that was drawn. drawn_by_hand: its tracks are not those of the clip."""

    recipe: Recipe
    frames: np.ndarray
    drawn: Mapping[str, Any]
    seed: list[int]
    place: int | None
    drawn_by_hand: bool = False


@dataclass(frozen=True)
class SignalMaker:
    """The maker of a recipe for one clip, with the files that it reads."""

    recipe: Recipe
    maker: Maker
    files: Mapping[str, Path]

    @classmethod
    def of(cls, recipe: Recipe, files: Mapping[str, Path], source: SourceClip) -> SignalMaker:
        """ConfigError names the setting of a file that the maker needs and that is not set."""
        maker = recipe.build()
        if any(source.borders):
            require(
                isinstance(maker, Outpaint),
                f"border is for edit.outpaint, and reference {recipe.layout.name} has the maker {recipe.maker}",
            )
            assert isinstance(maker, Outpaint)
            maker = ExtendedBorder(source.borders, tuple(maker.colour))
        for column in maker.needs:
            require(
                column in files,
                f"{column} is not set: reference {recipe.layout.name} ({recipe.maker}) needs the clip's {column}, "
                f"{column}=FILE",
            )
        return cls(recipe, maker, files)

    def make(self, source: SourceClip, padded: PaddedWindow, seed: list[int], place: int | None) -> Signal:
        """The reference of the window."""
        layout, window = self.recipe.layout, source.of_files()
        video = SourceVideo(source.media.path, self.files)
        if isinstance(self.maker, Tracks):  # a drawn path lasts as long as the video
            window, video = source.window_of_video(), replace(video, curve_frames=source.shape.frames)
        window = replace(window, indices=window.indices[: len(padded.frames)])
        scale = ReferenceScale(layout.downscale, layout.temporal_scale)
        try:
            frames, drawn = reference_of(padded, window, self.maker, video, seed, scale, place)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{layout.name} ({self.recipe.maker}): {error}") from error
        except (cv2.error, MemoryError, ArithmeticError) as error:
            raise ConfigError(
                f"{layout.name}: {self.recipe.maker} cannot make a reference of {source.shape.bucket} with the "
                f"arguments {json.dumps(dict(self.recipe.args))} ({first_line(error)}): change them with "
                "maker_args"
            ) from error
        by_hand = isinstance(self.maker, Tracks) and "tracks" in self.files
        return Signal(self.recipe, frames, drawn, seed, place, by_hand)


def make_signals(
    makers: Sequence[SignalMaker],
    source: SourceClip,
    padded: Sequence[PaddedWindow],
    seed: int | list[int],
    place: int | None,
    echo: Echo,
) -> list[Signal]:
    """All references of a clip. padded: the window with the margin of each maker. place: setting `reference_frame`."""
    signals = []
    with progress_bar("making references", len(makers), "reference") as bar:
        for maker, window in zip(makers, padded, strict=True):
            own_seed = seed_of(seed, source.window.clip, maker.recipe.number)
            own_place = _place_of(maker.recipe, own_seed, source.shape.frames, place)
            seconds = _estimate(maker, source, window, own_seed, own_place)
            if seconds > WORTH_TELLING:
                echo(f"{maker.recipe.layout.name} ({maker.recipe.maker}): about {seconds:.0f} s")
            signals.append(maker.make(source, window, own_seed, own_place))
            bar.advance()
    return signals


def seed_of(seed: int | list[int], clip: str, number: int) -> list[int]:
    """The seed of reference `number`, as `window_seed` gives it to the first window of a clip of this name.

    seed: a number, or the seed of a pair's first reference.
    """
    first = seed if isinstance(seed, list) else [seed, zlib.crc32(clip.encode()), 0, 1]
    return first if number == 0 else [*first[:3], MAKER_USES + number]


def _place_of(recipe: Recipe, seed: list[int], frames: int, place: int | None) -> int | None:
    """The frame of the video at which the reference stands, where training drew it; None where it did not."""
    layout = recipe.layout
    if not is_drawn(layout.frame):
        require(
            place is None or layout.name != FIRST,
            f"reference_frame={place}: the frame of reference {layout.name} is not drawn in training: leave it out",
        )
        return None
    if place is None:
        return draw_place(reference_keys(recipe.number)[2], layout.frame, seed, frames)
    require(
        -frames <= place < frames,
        f"reference_frame={place} does not exist in a video of {frames} frames: choose one from {-frames} to "
        f"{frames - 1}",
    )
    return place % frames


def _estimate(
    maker: SignalMaker, source: SourceClip, padded: PaddedWindow, seed: list[int], place: int | None
) -> float:
    """Seconds that a reference will take, judged from its first frames; 0 for a short clip."""
    frames = len(padded.frames)
    if frames < 8 * TRIED or place is not None or maker.recipe.layout.frame is not None:
        return 0.0
    started = time.perf_counter()
    maker.make(source, replace(padded, frames=padded.frames[:TRIED]), seed, None)
    return (time.perf_counter() - started) / TRIED * frames

"""`python -m iclora_train.signal mask`: a mask of a region on disk, as `generate` and ComfyUI take it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.clips.crop import Crop
from data_prep.signal.mask_settings import SIDES, MaskSettings
from data_prep.signal.output import write_frames
from data_prep.signal.regions import box, painted, side
from data_prep.signal.settings import require_new
from data_prep.signal.source import USUAL_RATE, SourceClip, open_clip
from iclora_train.config import ConfigError, require
from iclora_train.core.console import make_console
from iclora_train.core.progress import progress_bar, status
from iclora_train.signals.mask_shapes import feathered, grown, ramp

FREE = (1, 1)  # cell of a mask of any size: `generate` fits it to the video
FEW = 0.5  # share of the frames in which people should be found


def make_mask(settings: MaskSettings) -> Path:
    """Write the mask. Returns its path; ConfigError names the setting or file that is wrong."""
    echo = make_console(highlight=False, soft_wrap=True).print
    path = Path(settings.out)
    require_new([path], settings.overwrite)
    if settings.region == "person":
        _require_network()
    source = None if settings.clip is None else _open(settings)
    region, count = _region(settings, source)
    fps = USUAL_RATE if source is None else source.shape.fps
    fps = settings.fps or fps
    mask = feathered(grown(region, settings.grow), settings.feather)
    weights = ramp(count, settings.ramp)
    if len(mask) == 1 and settings.ramp == 0 and path.suffix.lower() == ".png":
        count, weights = 1, weights[:1]
    require(
        path.suffix.lower() != ".png" or count == 1,
        f"out={path} is one picture, and the mask changes over {count} frames: name an mp4, or a folder",
    )
    require(abs(settings.ramp) <= count, f"ramp={settings.ramp}: the mask has {count} frames")
    levels = _levels(mask, weights, settings)
    covered = float((levels > 127).mean())
    write_frames(path, levels, fps)
    height, width = levels.shape[1:3]
    echo(f"{path}: {width}x{height}, {count} frames, {covered:.0%} of it above one half")
    return path


def _require_network() -> None:
    from iclora_train.signals import blazepose  # noqa: PLC0415 (only people need it)

    require(blazepose.is_installed(), "region=person needs ai-edge-litert: pip install 'iclora_train[pose]'")


def _open(settings: MaskSettings) -> SourceClip:
    cell = FREE if settings.cell is None else (settings.cell[0], settings.cell[1])
    with status("measuring the clip"):
        return open_clip(settings, [], cell, None)


def _region(settings: MaskSettings, source: SourceClip | None) -> tuple[np.ndarray, int]:
    """The region (F,H,W) in [0, 1] at the size of the video, F is 1 if it is the same in all frames; and the number of
    frames of the mask."""
    if source is None:
        assert settings.width is not None
        assert settings.height is not None
        size, count = (settings.height, settings.width), settings.frames or 1
        return _still_region(settings, size, count), count
    count = source.shape.frames
    if settings.region == "person":
        return _people(source, settings.tiles), count
    crop = Crop.of_window(source.window, source.size)
    return crop.apply_all(list(_still_region(settings, source.size, count))), count


def _still_region(settings: MaskSettings, size: tuple[int, int], count: int) -> np.ndarray:
    """A region that needs no frames, (F,H,W) of pictures of `size`."""
    if settings.region == "painted":
        return painted(settings, count, size)
    if settings.region == "box":
        return box(settings, size)[None]
    if settings.region in SIDES:
        return side(settings.region, settings.share, size)[None]
    return np.ones((1, *size), np.float32)


def _people(source: SourceClip, tiles: int) -> np.ndarray:
    """The people in a clip, (F,H,W) of the video. ConfigError if there are none."""
    from iclora_train.signals.person_mask import person_masks  # noqa: PLC0415 (only people need it)

    crop = Crop.of_window(source.window, source.size)
    numbers = np.array(source.window.indices)
    whole = source.padded([1 << 20])[0]  # people are found in the whole frame, because cropped people are missed
    masks = np.zeros((len(numbers), *crop.size), np.float32)
    top, left = whole.crop.inner_offset
    with progress_bar("finding people", len(numbers), "frame") as bar:
        for number, (frame, has_person) in enumerate(person_masks(whole.frames, tiles)):
            masks[number] = frame[top : top + crop.size[0], left : left + crop.size[1]] if has_person else 0
            bar.advance()
    present = masks.reshape(len(masks), -1).max(1) >= 0.5
    if not present.any():
        raise ConfigError(
            f"clip={source.media.path}: no person was found in it: give a clip that shows people, find small ones with "
            "tiles=2, or mask them with region=box or region=painted"
        )
    if present.mean() < FEW:
        make_console(highlight=False, soft_wrap=True).print(
            f"warning: a person was found in {present.mean():.0%} of the frames only; the mask is black in the others: "
            "cut the clip (start, frames), or find small people with tiles=2"
        )
    return (masks >= 0.5).astype(np.float32)


def _levels(mask: np.ndarray, weights: np.ndarray, settings: MaskSettings) -> np.ndarray:
    """Grey levels uint8 (F,H,W,3) of a mask (F,H,W), or (1,H,W) for all frames. weights: (F,) of its region."""
    shares = mask * weights[:, None, None]
    values = settings.outside + (settings.inside - settings.outside) * shares
    return np.repeat(np.rint(255 * values).astype(np.uint8)[..., None], 3, axis=-1)

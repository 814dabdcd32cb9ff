"""Probe every clip before pairs are made; keep it, or drop it with a reason."""

from __future__ import annotations

import os
from collections.abc import Sequence

from data_prep.clip_cache import ClipCache
from data_prep.clips.captions import caption_of
from data_prep.clips.clip_list import Clip
from data_prep.clips.columns import MORE_REFERENCES
from data_prep.clips.probed_clip import ProbedClip
from data_prep.given_masks import mask_maker
from data_prep.makers import Maker
from data_prep.reference_makers import makers_of_references
from data_prep.sound import check_sound
from iclora_train.config import Config
from iclora_train.config.conditions import MASK_COLUMNS
from iclora_train.core.console import printable
from iclora_train.core.progress import progress_bar
from iclora_train.media.clip import ClipInfo
from iclora_train.media.frame_times import rates_equal
from iclora_train.signals.scene_cuts import SceneAnalysis

ASPECT_TOLERANCE = 0.01  # relative difference up to which two aspect ratios are equal

Dropped = list[dict[str, str]]  # clip and reason


def select_clips(clips: list[Clip], config: Config, cache: ClipCache | None = None) -> tuple[list[ProbedClip], Dropped]:
    """Probe every clip. Returns the usable and the dropped clips with reasons: a bad clip does not end the run."""
    usable, dropped = [], []
    makers = makers_of_references(config.task)
    with progress_bar("reading clips", len(clips), "clip") as bar:
        for clip in bar.track(clips):
            try:
                usable.append(probe_clip(clip, config, makers, cache))
            except (ValueError, OSError) as error:
                dropped.append({"clip": clip.id, "reason": printable(str(error))})
    return usable, dropped


def probe_clip(
    clip: Clip, config: Config, makers: Sequence[tuple[str, Maker]], cache: ClipCache | None = None
) -> ProbedClip:
    """Properties, scene cuts and scores of a clip. ValueError says why the clip cannot be used.

    makers: name and maker of each reference (`makers_of_references`).
    """
    if clip.problem:
        raise ValueError(clip.problem)
    known = cache or ClipCache()
    info, data = known.probe(clip.path, clip.section), config.data
    if clip.fps is not None and not clip.is_image and not _has_rate(info, clip.fps):
        raise ValueError(
            f"its row says fps={clip.fps:g}, but the video has {info.fps:g}: correct the list or the video"
        )
    if info.hdr and data.hdr == "refuse":
        raise ValueError(f"it is HDR ({info.hdr}), and data.hdr=refuse; data.hdr=convert converts it to SDR")
    caption_of(clip, config)
    too_late = [str(cut) for cut in clip.cuts or () if cut >= info.frames]
    if too_late:
        raise ValueError(f"its row names a cut at frame {', '.join(too_late)}, but the video has {info.frames} frames")
    needs_pixels = data.pick == "best" or (data.cuts and clip.cuts is None)
    scenes = known.scenes(clip.path, clip.section) if needs_pixels else SceneAnalysis()
    cuts = clip.cuts if clip.cuts is not None else scenes.cuts if data.cuts else ()
    probed = ProbedClip(clip, info, cuts, scenes.quality)
    probed.best_bucket(data)  # ValueError if no bucket fits
    _check_files(clip, info, known)
    check_sound(clip, config)
    for number, (name, maker) in enumerate(makers):
        supplied = number == 0 and clip.reference is not None
        _check_maker(clip, name, maker, supplied)
    mask = mask_maker(config.task)
    for column in () if mask is None else mask.needs:
        if column not in clip.files:
            raise ValueError(f"its row has no `{column}`, which task.conditions (mask) needs")
    return probed


def _check_files(clip: Clip, info: ClipInfo, known: ClipCache) -> None:
    """ValueError unless the files of a clip exist and fit: its references and its mask."""
    if clip.reference is not None:
        _check_reference(known.probe(clip.reference, clip.reference_section), info)
    for column, path in clip.files.items():
        if not os.path.exists(path):
            raise ValueError(f"its {column} {path} does not exist")
    for column in MASK_COLUMNS:
        if column in clip.files:
            _check_mask(known.probe(clip.files[column]), info)
    for column in MORE_REFERENCES:
        if column in clip.files:
            _check_reference(known.probe(clip.files[column]), info, column)


def _check_maker(clip: Clip, name: str, maker: Maker, supplied: bool) -> None:
    """ValueError unless the maker can use the clip. supplied: its frames are those of the supplied reference."""
    if name == "given" and not maker.needs and not supplied:
        remedy = "give a column `reference`, or the folder of the references as data.references"
        raise ValueError(f"the list names no reference, and task.maker=given needs one: {remedy}")
    if clip.is_image and not supplied and maker.needs_motion:
        raise ValueError(f"it is an image, and task.maker={name} needs motion: use it with videos only")
    for column in maker.needs:
        if column not in clip.files:
            raise ValueError(f"its row has no `{column}`, which task.maker={name} needs")
    maker.check(clip.files)


def _check_reference(reference: ClipInfo, clip: ClipInfo, column: str = "reference") -> None:
    """ValueError unless a supplied reference has the clip's frames, rate and aspect ratio, at any resolution."""
    if reference.frames != clip.frames:
        raise ValueError(f"its {column} has {reference.frames} frames, the clip has {clip.frames}")
    if clip.frames > 1 and not _has_rate(reference, clip.fps) and not _has_rate(clip, reference.fps):
        raise ValueError(f"its {column} has {reference.fps:g} frames a second, the clip has {clip.fps:g}")
    aspect = clip.width / clip.height
    if abs(reference.width / reference.height - aspect) > ASPECT_TOLERANCE * aspect:
        raise ValueError(
            f"its {column} is {reference.width}x{reference.height} pixels, the clip {clip.width}x{clip.height}: "
            "give both the same aspect ratio, so that one crop fits both"
        )


def _check_mask(mask: ClipInfo, clip: ClipInfo) -> None:
    """ValueError unless a mask has the clip's size, and one frame or as many as the clip."""
    if (mask.width, mask.height) != (clip.width, clip.height):
        sizes = f"{mask.width}x{mask.height} pixels, the clip {clip.width}x{clip.height}"
        raise ValueError(f"its mask is {sizes}: make it in the clip's own size")
    if mask.frames not in (1, clip.frames):
        raise ValueError(f"its mask has {mask.frames} frames, the clip has {clip.frames}: give one or as many")


def _has_rate(info: ClipInfo, fps: float) -> bool:
    """Whether a rate equals the clip's: its mean rate, or, of a variable clip, the rate of its regular parts."""
    return rates_equal(fps, info.fps) or rates_equal(fps, info.times.mean_fps)


def ids_without_caption(clips: list[ProbedClip]) -> list[str]:
    """Ids of clips without a caption."""
    return [probed.clip.id for probed in clips if not probed.clip.caption]

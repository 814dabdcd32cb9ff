"""What a ComfyUI workflow is made from: the adapter's metadata, checked against the limits of ComfyUI's nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path

from iclora_train.adapters.comfyui_given import CELL, FRAMES, NOTHING, GivenParts, latent_frames
from iclora_train.adapters.comfyui_references import (
    LARGEST_OWN_FACTOR,
    clip_title,
    guide_frames,
    what_to_select,
    with_own_guide,
)
from iclora_train.adapters.conditions import conditions_of
from iclora_train.adapters.metadata import (
    DOWNSCALE,
    FAMILY,
    MAX_FPS,
    TEMPORAL,
    VERSION,
    metadata_findings,
    reference_layouts,
    shown,
    trained_fps,
)
from iclora_train.adapters.references import ReferenceLayout
from iclora_train.config import ConfigError, frame_from_start
from iclora_train.config.places import frame_range
from iclora_train.config.references import FIRST
from iclora_train.data.prompts import example_prompt
from iclora_train.ltx2.weights.versions import VERSIONS

WITHOUT_SLOTS = (
    "The adapter has learned slots, which mark its references as the first, the second and so on. No node of ComfyUI "
    "reads them: here, references of equal layout are told apart by their content only."
)
_PLAIN_FPS = 24.0  # of a clip without a reference whose adapter does not name the rate of its clips
_MAX_SIDE, _MAX_FRAMES = 16384, 1000  # of ComfyUI's nodes: MAX_RESOLUTION, empty audio


@dataclass(frozen=True)
class WorkflowSettings:
    """The settings of a workflow. file: name of the adapter file. fps: None for the reference clip's frame rate.

    prompt: an example. references: the layout of each reference, in order. One that begins after frame 0 has one frame,
    as in training. given: the parts of the video that the adapter was trained with. slots: the adapter has learned
    slots of its references.
    """

    file: str
    version: str
    prompt: str
    width: int
    height: int
    frames: int
    references: tuple[ReferenceLayout, ...] = ()
    fps: float | None = None
    given: GivenParts = NOTHING
    slots: bool = False

    @classmethod
    def from_metadata(
        cls,
        path: Path,
        metadata: Mapping[str, str],
        size: str | None = None,
        fps: float | None = None,
        slots: bool = False,
    ) -> WorkflowSettings:
        """The settings from an adapter's metadata; size (`width x height x frames`) overrides it.

        As in `iclora_train.generate`, the frame rate is the reference clip's unless fps is given; without such a clip
        that of the given clip, which ComfyUI does not resample, else of the training clips. ConfigError with the reason
        if ComfyUI cannot run the adapter.
        """
        if metadata.get(FAMILY) != "ltx" or metadata.get(VERSION) not in VERSIONS:
            raise ConfigError(
                f"{path}: ComfyUI cannot run {shown(metadata.get(FAMILY)) or 'an undeclared base'} "
                f"{shown(metadata.get(VERSION))}, only the published LTX models"
            )
        if metadata.get(TEMPORAL, "1") != "1":
            raise ConfigError(
                f"{path}: ComfyUI's nodes do not support {TEMPORAL}, which is {metadata[TEMPORAL]} for this adapter"
            )
        for finding in metadata_findings(metadata):
            raise ConfigError(f"{path}: {finding}")
        references = tuple(reference_layouts(metadata))
        if fps is not None and not 1 <= fps <= MAX_FPS:
            raise ConfigError(f"--fps {fps:g} must be between 1 and {MAX_FPS}, the limits of ComfyUI's CreateVideo")
        width, height, frames = _clip_size(path, size or metadata.get("size", ""), references)
        _require_possible(path, references, frames)
        prompt = example_prompt(metadata, "describe the clip here")
        given = GivenParts.usual(conditions_of(metadata))
        known, all_frames = given.beginning + given.end, latent_frames(frames)
        if known >= all_frames:
            raise ConfigError(
                f"{path}: the beginning and the end that the adapter is given fill {known} latent frames, and the clip "
                f"has {all_frames}: give --size with {FRAMES * known + 1} frames or more"
            )
        new = cls(path.name, metadata[VERSION], prompt, width, height, frames, references, fps, given, slots)
        return new if new.clip or fps is not None else replace(new, fps=trained_fps(metadata) or _PLAIN_FPS)

    @property
    def clip(self) -> str | None:
        """Title of the node with frame rate and sound of a reference, else of the given clip; None without one."""
        return clip_title(self.references) or self.possible.clip

    @property
    def size(self) -> tuple[int, int, int]:
        """Width, height and frames."""
        return self.width, self.height, self.frames

    @property
    def possible(self) -> GivenParts:
        """The parts of the video that the workflow gives. Not every mask can be given beside a reference."""
        return self.given if self.guide_frames is not None else self.given.without_mask()

    @property
    def guide_frames(self) -> int | None:
        """Latent frames of the guides; None where no other noise mask can be set beside them."""
        return guide_frames(self.references, self.frames)

    def notes(self) -> list[str]:
        """What the page says beside the nodes: what to select, and what no node of ComfyUI can give."""
        return [*what_to_select(self.references), *([WITHOUT_SLOTS] if self.slots else []), *self.given_notes()]

    def given_notes(self) -> list[str]:
        """The part of `notes` on the given parts of the video."""
        lines = self.possible.notes()
        if self.possible != self.given:
            lines.append(
                "This workflow is not complete: the adapter was also trained with "
                f"{' and '.join(['the end'] * (self.given.end > 0) + ['all but a part'] * self.given.mask)} of the "
                "video given, and no node of ComfyUI sets the noise mask for it beside such a reference. Use "
                "`python -m iclora_train.generate`."
            )
        return lines


def _require_possible(path: Path, references: Sequence[ReferenceLayout], frames: int) -> None:
    """ConfigError for a reference that no guide node can place in a video of `frames` frames."""
    for layout in references:
        key = "reference_frame" if layout.name == FIRST else f"{layout.name}: frame"
        if layout.temporal_scale != 1:
            raise ConfigError(
                f"{path}: ComfyUI's nodes do not support references with fewer frames per second, which {layout.name} "
                "has"
            )
        if layout.is_drawn:
            frame_range(f"{path}: {key}", layout.frame, frames)
        elif isinstance(layout.frame, int):
            frame_from_start(f"{path}: {key}", layout.frame, frames)
    for layout in with_own_guide(references):
        if layout.downscale > LARGEST_OWN_FACTOR:
            other = layout.downscale != references[0].downscale
            beside = f"beside the factor {references[0].downscale} of the file" if other else "with two strengths"
            raise ConfigError(
                f"{path}: no guide node of ComfyUI takes the factor {layout.downscale} of {layout.name} {beside}: the "
                f"largest is {LARGEST_OWN_FACTOR}"
            )


def _clip_size(path: Path, size: str, references: Sequence[ReferenceLayout]) -> tuple[int, int, int]:
    """Width, height and frames from `width x height x frames`. ConfigError if the VAE or ComfyUI cannot make them."""
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})x(\d{1,6})", size)
    if match is None:
        raise ConfigError(f"{path}: the size is unknown; give --size as width x height x frames, e.g. 960x544x121")
    width, height, frames = map(int, match.groups())
    factor = lcm(*(layout.downscale for layout in references))
    step = CELL * factor
    sides_fit = all(side % step == 0 and 2 * CELL <= side <= _MAX_SIDE for side in (width, height))
    if not sides_fit or frames % FRAMES != 1 or frames > _MAX_FRAMES:
        raise ConfigError(
            f"{path}: size {size} must be a multiple of {step} pixels ({DOWNSCALE}={factor}), from {2 * CELL} to "
            f"{_MAX_SIDE}, and {FRAMES}k+1 frames, at most {_MAX_FRAMES}: give another --size"
        )
    return width, height, frames

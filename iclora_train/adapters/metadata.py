"""The metadata of an adapter file that this project reads: reference factors, size, and the names other trainers use.

A file from the internet may hold any text here, so every value is checked before it becomes a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from iclora_train.adapters.references import ReferenceLayout, first_use, more_findings, more_layouts, use_findings
from iclora_train.adapters.sound_context import sound_findings
from iclora_train.config.places import frame_bounds, is_drawn
from iclora_train.config.references import FIRST
from iclora_train.core.safetensors_header import shortened

DOWNSCALE, TEMPORAL = "reference_downscale_factor", "reference_temporal_scale_factor"
FRAME = "reference_frame"  # frame of the video at which the reference begins; absent if the reference has all frames
FAMILY, VERSION, FINGERPRINT = "base_model_family", "base_model_version", "base_fingerprint"
LOW_RANK = "low_rank_error"  # what a LoRA leaves out of the adapter of another kind that it was made of; likewise
ROUNDING = "rounding_error"  # change of B A by the dtype of the file, relative to its Frobenius norm
KIND, PLAIN = "adapter_kind", "lora"  # marks an adapter that takes no reference
MAX_FPS = 120  # of ComfyUI's CreateVideo
OTHER_NAMES = {  # musubi-tuner's keys, and the newer key of Lightricks' trainer, which also writes ours
    DOWNSCALE: ("reference_spatial_scale_factor", "ss_reference_downscale_factor"),
    TEMPORAL: ("ss_reference_temporal_scale_factor",),
}
_MUSUBI_IN_CONTEXT = "ss_v2v_training"  # "True" for an IC-LoRA of musubi-tuner, which writes factors other than 1 only
_ARCHITECTURES = ("modelspec.architecture", "ss_base_model_version")  # musubi-tuner, ai-toolkit
_LTX2 = re.compile(r"ltx[-_ .]?(video[-_ .]?)?2", re.IGNORECASE)
_FACTOR = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)
_FPS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?", re.ASCII)
_NUMBER = r"(0|-?[1-9][0-9]{0,3})"
_FRAME = re.compile(rf"{_NUMBER}( to {_NUMBER})?", re.ASCII)
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)


def shown(text: str | None, length: int = 60) -> str:
    """A value on one line, for a message or the card: no line breaks or invisible characters, at most `length` long."""
    line = "".join(c for c in " ".join((text or "").split()) if c.isprintable())
    return line if len(line) <= length else line[:length] + "..."


def factor(metadata: Mapping[str, str], key: str) -> int:
    """A reference factor; 1 where the metadata has none. The metadata has passed `metadata_findings`."""
    return int(metadata.get(key, "1"))


def reference_frame(metadata: Mapping[str, str]) -> int | tuple[int, int] | None:
    """The frame at which the reference begins, negative from the end; None if the reference has all frames.

    (first, last), from a text such as `8 to -9`: training drew one of these for each clip, for a picture.

    Only a reference that begins at frame 0 can have several frames: training takes single frames elsewhere.
    The metadata has passed `metadata_findings`.
    """
    match = _FRAME.fullmatch(metadata.get(FRAME, ""))
    if match is None:
        return None
    return int(match[1]) if match[3] is None else (int(match[1]), int(match[3]))


def frame_text(frame: Any) -> str:
    """The text of FRAME for `task.reference_frame`, which is not null."""
    return " to ".join(map(str, frame_bounds(frame))) if is_drawn(frame) else str(frame)


def reference_layouts(metadata: Mapping[str, str]) -> list[ReferenceLayout]:
    """The layout of each reference, in order; none for an adapter that takes no reference.

    The metadata has passed `metadata_findings`.
    """
    if metadata.get(KIND) == PLAIN:
        return []
    placement = factor(metadata, DOWNSCALE), factor(metadata, TEMPORAL), reference_frame(metadata)
    return [ReferenceLayout(FIRST, *placement, use=first_use(metadata)), *more_layouts(metadata)]


def clip_size(metadata: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Width, height and frames of the training clips; None if the metadata does not say."""
    match = _SIZE.fullmatch(metadata.get("size", ""))
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def trained_fps(metadata: Mapping[str, str]) -> float | None:
    """Frames per second of the training clips, from 1 to 120; None if the metadata does not say, or other ones."""
    text = metadata.get("fps", "")
    return float(text) if _FPS.fullmatch(text) and 1 <= float(text) <= MAX_FPS else None


def with_our_names(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata with the reference factors under our names only, as whole numbers where the text is one such as "2.0".

    ComfyUI reads "2.0" as 2 and ltx-pipelines as 1, and ComfyUI takes the first key that ends in our name.
    """
    others = {name for names in OTHER_NAMES.values() for name in names}
    new = {key: value for key, value in metadata.items() if key not in others}
    for key, names in OTHER_NAMES.items():
        values = [metadata[name] for name in (key, *names) if name in metadata]
        if values:
            new[key] = re.sub(r"\.0*$", "", values[0])
    if DOWNSCALE not in new and metadata.get(_MUSUBI_IN_CONTEXT, "").lower() == "true":
        new[DOWNSCALE] = "1"
    return new


def declares_factor(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata declare a reference factor, or that the adapter takes no reference."""
    return DOWNSCALE in with_our_names(metadata) or metadata.get(KIND) == PLAIN


def metadata_findings(metadata: Mapping[str, str]) -> list[str]:
    """Problems of the references and of the model that the metadata name."""
    findings = []
    for key in (DOWNSCALE, TEMPORAL):
        value = metadata.get(key, "1")
        if _FACTOR.fullmatch(value) is None:
            findings.append(
                f"metadata {key}={shortened(value, 40)} must be a whole number from 1 to 999: programs read other "
                "texts in different ways; `convert` with --downscale or --temporal-scale sets it"
            )
    if FRAME in metadata and _FRAME.fullmatch(metadata[FRAME]) is None:
        findings.append(
            f"metadata {FRAME}={shortened(metadata[FRAME], 40)} must be the number of a frame, e.g. -1 or 8 to -9"
        )
    findings += [*use_findings(metadata), *more_findings(metadata), *sound_findings(metadata)]
    for key in _ARCHITECTURES:
        value = metadata.get(key, "")
        if value and _LTX2.search(value) is None:
            findings.append(f"metadata {key}={shortened(value)}: the adapter is for another model than LTX-2")
    return findings


def metadata_notes(metadata: Mapping[str, str]) -> list[str]:
    """Facts that are missing and that every program assumes in the same way: no fault, but worth knowing."""
    if DOWNSCALE in metadata or metadata.get(KIND) == PLAIN:
        return []
    return [
        f"metadata has no {DOWNSCALE}: every program takes 1 (Lightricks' trainer writes other factors only); "
        "`convert --downscale N` adds one"
    ]

"""What an adapter of both streams takes beside its references: an audio reference, or a video that is given whole.

Two keys of the metadata, which only this project reads. Which published programs place an audio reference as it was
trained, read in their code in December 2026: Dub-It of ltx-pipelines, ComfyUI's own `LTXVReferenceAudio`, and
`LTXVSetAudioRefTokens` of ComfyUI-LTXVideo put it before the sound, at negative times. At the times of the sound
Lightricks' trainer alone puts it, in its validation. diffusers 0.42 has no audio reference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from iclora_train.config import Task
from iclora_train.config.audio_reference import PLACEMENTS
from iclora_train.core.safetensors_header import shortened

AUDIO_REFERENCE = "audio_reference"  # its placement
VIDEO_GIVEN = "video_given"  # "true": the adapter makes the sound of a video that is clean
GENERATE = "use `python -m iclora_train.generate`"
IN_WORDS = {
    "av2av": "a sound at the times of the output's sound, from 0 (av2av)",
    "dubit": "a sound before the output's sound, at negative times (dubit)",
}


def sound_metadata(task: Task) -> dict[str, Any]:
    """The entries of the metadata; none for a task without them."""
    sound = task.reference_sound
    reference = {} if sound is None else {AUDIO_REFERENCE: sound.placement}
    return reference | ({VIDEO_GIVEN: "true"} if task.video_given else {})


def audio_placement(metadata: Mapping[str, str]) -> str | None:
    """The placement of the audio reference; None for an adapter that takes none."""
    placement = metadata.get(AUDIO_REFERENCE)
    return placement if placement in PLACEMENTS else None


def video_given(metadata: Mapping[str, str]) -> bool:
    """Whether the adapter makes the sound of a video that is clean."""
    return metadata.get(VIDEO_GIVEN) == "true"


def sound_findings(metadata: Mapping[str, str]) -> Iterator[str]:
    """Problems of the two keys."""
    for key, choices in ((AUDIO_REFERENCE, PLACEMENTS), (VIDEO_GIVEN, ("true",))):
        if key in metadata and metadata[key] not in choices:
            yield (
                f"metadata {key}={shortened(metadata[key], 40)} is not one of {', '.join(choices)}: export the adapter "
                "again, or remove this key"
            )


def sound_rows(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """The rows of the card."""
    placement, rows = audio_placement(metadata), []
    if placement is not None:
        rows.append(("audio reference", IN_WORDS[placement]))
    if video_given(metadata):
        rows.append(("given video", "all of it: the adapter makes its sound"))
    return rows


def sound_not_given(metadata: Mapping[str, str], settings: Collection[str]) -> list[str]:
    """A line for the audio reference and for the video, if `generate` is not given what the adapter was trained with.
    settings: those of `audio_reference` and `source` that are set."""
    lines = []
    if audio_placement(metadata) is not None and "audio_reference" not in settings:
        lines.append(
            "the adapter was trained with an audio reference: audio_reference=FILE audio=generate gives it one"
        )
    if video_given(metadata) and "source" not in settings:
        lines.append("the adapter makes the sound of a given video: source=CLIP audio=generate gives it one")
    return lines


def sound_limits(metadata: Mapping[str, str]) -> Iterator[str]:
    """A line for each published program that cannot give the audio reference, or the video, as it was trained."""
    placement = audio_placement(metadata)
    if placement == "av2av":
        yield (
            "ltx-pipelines and ComfyUI cannot give the audio reference of this adapter as it was trained: they place "
            f"one before the sound, at negative times; {GENERATE}"
        )
    if placement is not None:
        yield f"diffusers cannot give the audio reference of this adapter: it has none; {GENERATE}"
    if video_given(metadata):
        yield f"ltx-pipelines and diffusers cannot give this adapter a whole video to make its sound for; {GENERATE}"


def sound_loading(metadata: Mapping[str, str]) -> list[str]:
    """How the programs are given the audio reference and the video; empty for other adapters."""
    text = []
    if audio_placement(metadata) == "dubit":
        text.append(
            "The audio reference: **ltx-pipelines** takes it and the reference video from one file, with "
            "`python -m ltx_pipelines.dubit`. **ComfyUI**: add the node `LTXVSetAudioRefTokens` of ComfyUI-LTXVideo, "
            "as in its LipDub workflow; the workflow beside this file has no such node."
        )
    return text + [f"Note: {line}." for line in sound_limits(metadata)]

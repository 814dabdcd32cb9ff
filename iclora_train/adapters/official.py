"""Complete what an official adapter file does not declare, and say what is assumed, from conf/official."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from iclora_train.adapters.metadata import DOWNSCALE, FAMILY, with_our_names
from iclora_train.adapters.sound_context import AUDIO_REFERENCE
from iclora_train.config import ConfigError, Sampling
from iclora_train.config.official import Match, Official, match_file, match_metadata

TRIGGER = "trigger"


def recognise(path: Path, metadata: Mapping[str, str]) -> Match | None:
    """The published adapter that a file is. Files that declare their base are this project's own: None for them."""
    if FAMILY in metadata:
        return None
    return match_file(path) or match_metadata(set(metadata))


def completed(metadata: Mapping[str, str], match: Match | None) -> dict[str, str]:
    """The metadata with the reference factor, trigger and place of an audio reference that the file does not declare
    and that are known."""
    result = with_our_names(metadata)
    if match is not None:
        official = match.official
        if official.reference_downscale is not None:
            result.setdefault(DOWNSCALE, str(official.reference_downscale))
        if official.audio_reference is not None:
            result.setdefault(AUDIO_REFERENCE, official.audio_reference)
        if official.trigger:
            result.setdefault(TRIGGER, official.trigger)
    return result


def require_supported(path: Path, match: Match | None) -> None:
    """ConfigError for a published adapter of a model that this project does not have."""
    for finding in findings(match):
        raise ConfigError(f"{path} {finding}")


def findings(match: Match | None) -> Iterator[str]:
    """A finding for a published adapter of another model. Its linears may have the names and shapes of LTX-2's."""
    if match is not None and not match.official.supported:
        yield (
            f"is {match.official.title} for {match.official.model} (by {match.by}): this project trains and samples "
            "LTX-2, 2.3 and 2.5; use an adapter for one of these"
        )


def official_notes(metadata: Mapping[str, str], match: Match, family: str | None, version: str | None) -> list[str]:
    """Which published adapter a file is, what is taken from conf/official, and on which base it is used.

    metadata: of the file, not completed. family, version: of the base, None if it is not known.
    """
    official, declared = match.official, with_our_names(metadata)
    taken = {key: value for key, value in completed(metadata, match).items() if key not in declared}
    names = {DOWNSCALE: "reference factor", TRIGGER: "trigger", AUDIO_REFERENCE: "audio reference"}
    fields = {DOWNSCALE: "reference_downscale"}
    values = [
        f"{names[key]} {value}{' (not confirmed by Lightricks)' if fields.get(key) in official.unconfirmed else ''}"
        for key, value in taken.items()
    ]
    taken_values = f"; taken from conf/official/{match.name}.yaml: {', '.join(values)}" if values else ""
    lines = [f"is {official.title} for {official.model} (by {match.by}){taken_values}"]
    factor = declared.get(DOWNSCALE)
    if official.reference_downscale is not None and factor not in (None, str(official.reference_downscale)):
        lines.append(f"declares reference factor {factor}; {official.title} has {official.reference_downscale}")
    if version is not None and version != official.base and version not in official.also_on:
        lines.append(
            f"was made for {official.model}; the base is {family} {version}, on which it may give a worse result or "
            "none: set model.checkpoint to that version"
        )
    return lines


def usage_notes(
    official: Official, sample: Sampling, strength: float, width: int, height: int, fps: float | None
) -> list[str]:
    """Where a use differs from the published one: noise schedule, steps, guidance, strength, size, frame rate."""
    differing = [
        f"sample.{key}={_text(value)} (here {getattr(sample, key)})"
        for key, value in official.sample.items()
        if not _within(getattr(sample, key), value)
    ]
    if official.strength and not min(official.strength) <= strength <= max(official.strength):
        differing.append(f"a strength of {_text(official.strength)} (here {strength:g})")
    pictures = {tuple(map(int, size.split("x")[:2])) for size in official.sizes}
    if pictures and (width, height) not in pictures:
        differing.append(f"{' or '.join(official.sizes)} (here {width}x{height})")
    if official.fps is not None and fps is not None and abs(official.fps - fps) > 0.5:
        differing.append(f"{official.fps:g} frames per second (here {fps:g})")
    lines = [f"{official.title} is published with {', '.join(differing)}"] if differing else []
    advice = [] if official.prompt is None else [f"prompts have the form {official.prompt!r}"]
    advice += [] if official.note is None else [official.note]
    return lines + [f"{official.title}: {text}" for text in advice]


def _within(value: Any, published: Any) -> bool:
    """Whether a value is the published one, or in the published range."""
    if isinstance(published, list):
        return bool(min(published) <= value <= max(published))
    return bool(value == published)


def _text(value: Any) -> str:
    return " to ".join(f"{n:g}" for n in sorted(set(value))) if isinstance(value, list) else str(value)


def official_facts(match: Match | None) -> dict[str, str] | None:
    """The entry `official` of scores.json and of a video's record; None for any other adapter."""
    if match is None:
        return None
    return {"name": match.name, "title": match.official.title, "base": match.official.base, "recognised_by": match.by}

"""Findings from files and settings alone: sizes, rates, lengths, base version, strengths, mask, prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from eval.diagnosis.facts import AdapterFacts, ClipFacts
from eval.diagnosis.findings import Finding
from eval.diagnosis.media import AlignedClips, AlignedReference
from eval.diagnosis.settings import DiagnoseSettings
from iclora_train.data.prompts import with_trigger

ASPECT = 0.03  # relative difference of aspect ratios that is only rounding
ENLARGED = 1.25  # a reference this many times smaller than needed loses detail
RATE = 0.02  # relative difference of frame rates; 24 and 23.976 are equal
ALMOST_NONE, ALMOST_ALL = 0.02, 0.98  # of a mask
DEAD_ZONE = 0.1  # attention strength below which half of the effect is lost


def mismatches(settings: DiagnoseSettings, facts: ClipFacts, clips: AlignedClips) -> Iterator[Finding]:
    """All findings of this file, in the order of their weight."""
    if facts.adapter is not None:
        yield from _adapter(facts.adapter, facts)
    yield from _requested(settings, clips)
    yield from _strengths(facts)
    for reference in clips.references:
        for finding in _of_reference(settings, clips, reference):
            yield replace(finding, reference=reference.facts.name)


def _of_reference(settings: DiagnoseSettings, clips: AlignedClips, reference: AlignedReference) -> Iterator[Finding]:
    yield from _sizes(settings, clips, reference)
    yield from _times(clips, reference)
    attention, mask = reference.facts.attention_strength, reference.mask
    if attention is not None and attention < DEAD_ZONE:
        text = f"attention_strength={attention:g} is in the dead zone below {DEAD_ZONE:g}"
        yield Finding("strength", text, "most of the curve lies between 0.1 and 1: begin at 1 and lower it")
    if mask is not None and not ALMOST_NONE <= mask <= ALMOST_ALL:
        effect = "hides the reference" if mask < ALMOST_NONE else "changes nothing"
        text = f"the attention mask has a mean of {mask:.1%} and {effect}"
        yield Finding("mask coverage", text, "white is where the reference acts: invert it, or leave it out")


def _adapter(adapter: AdapterFacts, facts: ClipFacts) -> Iterator[Finding]:
    for problem in adapter.problems:
        yield Finding("adapter", f"{adapter.path}: {problem}", "see `python -m iclora_train.adapters check`")
    if facts.base is not None and adapter.versions and facts.base not in adapter.versions:
        text = f"{adapter.path} was made for {adapter.version}, the clip for {facts.base}"
        yield Finding("wrong base", text, "use the base of the adapter: LTX-2, 2.3 and 2.5 load each other's silently")
    trigger = adapter.metadata.get("trigger", "")
    if facts.prompt is not None and trigger and trigger not in facts.prompt:
        yield Finding(
            "trigger missing",
            f"the prompt does not contain {trigger!r}",
            f"begin it with the trigger: {with_trigger(trigger, '...')!r}",
        )


def _requested(settings: DiagnoseSettings, clips: AlignedClips) -> Iterator[Finding]:
    """The clip against the size, length and rate that were asked for."""
    frames, height, width = clips.clip.shape[:3]
    actual = {"width": width, "height": height, "frames": frames}
    differing = [
        f"{key} {value} instead of {expected}"
        for key, value in actual.items()
        if (expected := getattr(settings, key)) is not None and expected != value
    ]
    rate = clips.file.fps
    if settings.fps is not None and rate is not None and abs(rate / settings.fps - 1) > RATE:
        differing.append(f"{rate:g} frames per second instead of {settings.fps:g}")
    if differing:
        text = f"the clip has {', '.join(differing)}"
        yield Finding("size of the clip", text, "sizes are rounded to fit the VAE: ask for one that fits, or crop")


def _sizes(settings: DiagnoseSettings, clips: AlignedClips, aligned: AlignedReference) -> Iterator[Finding]:
    clip, reference, downscale = clips.file, aligned.file, aligned.facts.layout.downscale
    ratio = (clip.width / clip.height) / (reference.width / reference.height)
    if abs(ratio - 1) > ASPECT:
        effect = "is distorted" if settings.fit == "stretch" else f"loses {1 - min(ratio, 1 / ratio):.0%}"
        text = (
            f"the clip is {clip.width}x{clip.height}, the reference {reference.width}x{reference.height}: it {effect}"
        )
        yield Finding("aspect ratio", text, "make the reference in the aspect ratio of the clip")
    needed = (clip.width / downscale, clip.height / downscale)
    scale = max(needed[0] / reference.width, needed[1] / reference.height)
    if scale > ENLARGED:
        text = (
            f"the reference is {reference.width}x{reference.height}, at factor {downscale} this clip needs "
            f"{needed[0]:.0f}x{needed[1]:.0f}"
        )
        yield Finding("small reference", text, "make a larger reference, or check the reference factor")


def _times(clips: AlignedClips, aligned: AlignedReference) -> Iterator[Finding]:
    clip, reference = clips.file, aligned.file
    if aligned.available < aligned.needed:
        text = f"it has {aligned.available} frames at the clip's rate, the clip needs {aligned.needed}"
        yield Finding(
            "short reference", text, "the end of the clip has no reference: give a longer one, or fewer frames"
        )
    if clip.fps is None or reference.fps is None or abs(clip.fps / reference.fps - 1) <= RATE:
        return
    frames = len(reference.times.ticks) if reference.times is not None else 0
    if abs(frames - len(clips.clip)) <= 1:
        text = f"clip {clip.fps:g} and reference {reference.fps:g} frames per second, with as many frames"
        yield Finding("frame rate", text, "one of them plays at the wrong speed: write both at the same rate")


def _strengths(facts: ClipFacts) -> Iterator[Finding]:
    strength = facts.adapter_strength
    if strength is not None and strength == 0:
        yield Finding("strength", "adapter_strength=0 leaves the adapter out", "begin at 1")
    official = None if facts.adapter is None else facts.adapter.official
    if official is None or strength is None or not official.strength or strength == 0:
        return
    low, high = min(official.strength), max(official.strength)
    if not 0.75 * low <= strength <= 1.25 * high:
        span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        text = f"adapter_strength={strength:g}, and {official.title} is published with {span}"
        yield Finding("strength", text, "use the published strength")

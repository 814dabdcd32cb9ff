"""What is wrong with a finished clip: each check gives findings, a line with a remedy for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from eval.diagnosis.agreement import DRAWINGS, STROKE, agreements, painted, reference_kind
from eval.diagnosis.facts import ClipFacts
from eval.diagnosis.measures import Agreement
from eval.diagnosis.media import AlignedClips, AlignedReference
from eval.diagnosis.stills import STILL
from eval.metrics import Clip
from eval.metrics.base import CachedClip
from eval.metrics.colour import colourfulness
from eval.metrics.motion import MIN_FRAMES, flicker_alone
from eval.metrics.picture import psnr

COPY, DRAWN_COPY = 38.0, 25.0  # dB between clip and reference; a picture and a drawing of it are below 15 dB
LEFT = 0.5  # share of the masked region that still has the mask's colour
STILL_GREY = 3.0  # colourfulness in levels; natural clips have 30 to 80
SHARPENED = 1.2  # variance of the Laplacian, clip / reference
SHARPENING = ("degrade.defocus", "degrade.gaussian", "degrade.motion", "degrade.low_resolution")
BLURRED_COPY = 26.0  # dB: below it the clip is not a copy of a blurred reference
FAINT = 128  # level below which the brightest strokes of a drawing are faint
EMPTY = 0.0005  # share of drawn pixels below which a frame of a drawing is empty
FLAT = 10.0  # standard deviation of the luma in levels: a reference below it carries little
STROKE_FLICKER = 0.25  # second difference of the amount of strokes, relative to it
# Levels of `flicker_alone`. The 35 sample clips have 0.1 to 9.2 (median 0.6; most in cars that drive past). They exceed
# references that the makers degrade by up to 4.2 (motion that the reference blurs). They gain at least 5.2 if the whole
# picture alternates by 4 levels, and 6.7 if one half alternates by 8.
FLICKER = 5.0  # above a reference that has the clip's luma
UNSTEADY = 10.0  # of a clip or reference alone
SAME_LUMA = ("degraded", "hole")  # kinds of reference whose light is that of the clip


@dataclass(frozen=True)
class Finding:
    """A problem: its name, what was measured, and what to do. reference: the name of that one of several references."""

    name: str
    text: str
    remedy: str
    reference: str = ""

    @property
    def line(self) -> str:
        """The finding in one line."""
        of_reference = f"{self.reference}: " if self.reference else ""
        return f"{self.name}: {of_reference}{self.text}; {self.remedy}"


@dataclass(frozen=True)
class Diagnosis:
    """All findings about a clip or one of its references, the measured values, and what could not be measured and why.

    kind: of the reference. is_followed: whether it is followed; None if that was not measured.
    """

    findings: list[Finding]
    measured: dict[str, float]
    not_measured: list[str]
    kind: str = ""
    is_followed: bool | None = None


def diagnose_reference(facts: ClipFacts, clips: AlignedClips, reference: AlignedReference) -> Diagnosis:
    """Whether a reference is sound, and whether the clip follows it."""
    kind = reference_kind(reference.facts.task, reference.frames)
    result = Diagnosis([], {}, [], kind)
    result.findings.extend(_signal(kind, reference, result.measured))
    copied = list(_copied(kind, reference, result.measured))
    result.findings.extend(copied)
    agreeing, reason = agreements(kind, reference.facts.task, clips.clip, reference.shown, reference.frames)
    result.measured.update({measured.what: measured.value for measured in agreeing})
    missed = [measured for measured in agreeing if not measured.is_followed]
    if not agreeing:
        result.not_measured.append(f"whether the reference ({kind}) is followed: {reason}")
    if missed and not copied:
        result.findings.append(_not_followed(missed, facts, reference))
    named = [replace(finding, reference=reference.facts.name) for finding in result.findings]
    return replace(result, findings=named, is_followed=not missed and not copied if agreeing else None)


def diagnose_clip(clips: AlignedClips, kinds: list[str]) -> Diagnosis:
    """Whether the clip flickers, compared with a reference that has its luma. kinds: of the references."""
    result = Diagnosis([], {}, [])
    if len(clips.clip) < MIN_FRAMES:
        result.not_measured.append(f"flicker: it needs {MIN_FRAMES} frames")
        return result
    parts = zip(clips.references, kinds, strict=True)
    alike = [part.frames for part, kind in parts if kind in SAME_LUMA and len(part.frames) >= MIN_FRAMES]
    result.findings.extend(_flicker(clips.clip, alike[0] if alike else None, result.measured))
    return result


def _not_followed(missed: list[Agreement], facts: ClipFacts, reference: AlignedReference) -> Finding:
    attention, strength = reference.facts.attention_strength, facts.adapter_strength
    remedies = []
    if attention is not None and attention < 1:
        remedies.append(f"raise attention_strength from {attention:g} to 1")
    if strength is not None and strength < 1:
        remedies.append(f"raise adapter_strength from {strength:g} to 1")
    remedies += ["check that the reference is of the adapter's kind and factor", "shorten the prompt"]
    lines = (f"{one.what} is {one.value:.2f}, at least {one.needed:g} is expected" for one in missed)
    return Finding("reference not followed", "; ".join(lines), ", ".join(remedies))


def _signal(kind: str, reference: AlignedReference, measured: dict[str, float]) -> Iterator[Finding]:
    """A reference that carries too weak or too unsteady a signal."""
    if kind in DRAWINGS:
        strokes = reference.frames.max(-1)
        share = (strokes >= STROKE).mean((1, 2))  # (n,)
        peak = float(strokes.max())
        measured["drawn share of the reference"] = float(share.mean())
        empty = float((share <= (0 if kind == "tracks" else EMPTY)).mean())  # one track is a few pixels
        if empty > 0.5:
            text = f"{empty:.0%} of its frames have no strokes (brightest level {peak:.0f})"
            yield Finding("weak reference", text, "lower the extractor's thresholds, or draw thicker and brighter")
        elif peak < FAINT:
            yield Finding(
                "weak reference", f"its strokes reach level {peak:.0f} of 255", "draw them in full brightness"
            )
        change = float(np.abs(np.diff(share, n=2)).mean() / max(share.mean(), 1e-9)) if len(share) > 2 else 0.0
        if kind != "tracks" and empty <= 0.5 and change > STROKE_FLICKER:
            text = f"the amount of its strokes changes by {change:.0%} from frame to frame"
            yield Finding("flickering reference", text, "smooth the clip before extraction, or raise the thresholds")
        return
    grey = CachedClip(reference.frames).grey
    contrast = float(grey.std((1, 2)).mean())
    measured["contrast of the reference"] = contrast
    if contrast < FLAT:
        text = f"its luma varies by {contrast:.1f} levels, at least {FLAT:g} are expected"
        yield Finding("weak reference", text, "stretch its levels, or check that it was read correctly")
    if len(reference.frames) < MIN_FRAMES:
        return
    unsteady = flicker_alone(CachedClip(reference.frames))
    measured["flicker of the reference"] = unsteady
    if unsteady > UNSTEADY:
        text = f"its luma flickers by {unsteady:.1f} levels, at most {UNSTEADY:g} are expected"
        yield Finding("flickering reference", text, "stabilise its exposure, or smooth its depth over time")


def _flicker(clip: Clip, alike: Clip | None, measured: dict[str, float]) -> Iterator[Finding]:
    """Flicker of the clip; above that of a reference with the same light, `alike`."""
    of_clip = flicker_alone(CachedClip(clip))
    measured["flicker of the clip"] = of_clip
    limit, compared = UNSTEADY, ""
    if alike is not None:
        of_reference = flicker_alone(CachedClip(alike))
        limit, compared = of_reference + FLICKER, f", the reference by {of_reference:.1f}"
    if of_clip > limit:
        text = f"its luma flickers by {of_clip:.1f} levels{compared}; at most {limit:.1f} are expected"
        yield Finding("flickering clip", text, "more steps, a steadier reference, a lower adapter_strength")


def _copied(kind: str, reference: AlignedReference, measured: dict[str, float]) -> Iterator[Finding]:
    """A clip that is its reference instead of what the reference asks for. It may equal a still at its place."""
    if kind == STILL:
        return
    shown, task = reference.shown, reference.facts.task
    likeness = float(psnr(shown, reference.frames).mean())
    measured["PSNR to the reference"] = likeness
    remedy = "check that the adapter was loaded and is of this base, raise adapter_strength, use its trigger"
    drawn = kind in (*DRAWINGS, "depth")
    if likeness >= (DRAWN_COPY if drawn else COPY):
        yield Finding("copied reference", f"the clip equals its reference ({likeness:.1f} dB)", remedy)
        return
    if kind == "hole":
        region = painted(reference.frames)
        left = float(painted(shown)[region].mean()) if region.any() else 0.0
        measured["masked region left"] = left
        if left > LEFT:
            yield Finding("copied reference", f"{left:.0%} of the masked region keep the mask's colour", remedy)
    if task is not None and task.family == "colorize":
        colours = colourfulness(shown)
        measured["colourfulness"] = colours
        if colours < STILL_GREY:
            yield Finding("copied reference", f"the clip stays grey (colourfulness {colours:.1f} levels)", remedy)
    if task is not None and task.maker in SHARPENING:
        ratio = _detail(shown) / max(_detail(reference.frames), 1e-6)
        measured["sharpness against the reference"] = ratio
        if ratio < SHARPENED and likeness >= BLURRED_COPY:
            text = f"the clip is no sharper than its reference ({ratio:.2f} times, {likeness:.1f} dB)"
            yield Finding("copied reference", text, remedy)


def _detail(clip: Clip) -> float:
    """Variance of the Laplacian of the luma, mean over frames."""
    return float(np.mean([cv2.Laplacian(frame, cv2.CV_64F).var() for frame in CachedClip(clip).grey]))

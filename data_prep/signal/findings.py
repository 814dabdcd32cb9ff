"""The checks of preparation on a finished signal, in words, with what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.checks import Finding, reference_findings
from data_prep.signal.make import Signal
from iclora_train.config import ConfigError
from iclora_train.config.checks import Checks
from iclora_train.config.places import is_drawn
from iclora_train.core.types import Pair

PEOPLE, POINTS = "control.pose", "control.tracks"
# check -> what it means
MEANINGS = {
    "shape": "size or number of frames is wrong",
    "offset": "the signal does not move with the clip",
    "blank": "there is almost nothing in the pictures",
    "static": "the signal stands still while the clip moves",
    "clipped": "much of the picture became black or white",
    "contrast": "the drawing is faint in a tenth of the frames or more",
    "flicker": "the signal flickers more than the clip",
    "coverage": "too few frames show anything",
}
# (check, maker) -> the remedy; with the maker "" for all others
REMEDIES = {
    ("shape", ""): "give files with the clip's frames",
    ("offset", "control.depth_given"): "render the depth from the clip's first frame on, one picture for each frame",
    ("offset", "edit.hole"): "give a mask that begins with the clip's first frame",
    ("offset", ""): "give a clip without repeated or dropped frames",
    ("blank", "control.canny"): "lower the thresholds, e.g. maker_args.low=20 maker_args.high=60",
    ("blank", "control.soft_edges"): "give a clip with clearer contours",
    (
        "blank",
        PEOPLE,
    ): "give a clip in which people are larger, make the video larger, or set maker_args.tiles=2",
    ("blank", POINTS): "draw tracks yourself, tracks=FILE, or accept shorter ones with maker_args.shortest=0.2",
    ("blank", ""): "give a clip with more contrast",
    ("static", "control.depth_given"): "give depth for every frame",
    ("static", ""): "give a clip of which the signal shows the motion, or files with a picture for each frame",
    ("clipped", ""): "choose weaker arguments (maker_args), or a clip that is neither dark nor bright",
    ("contrast", "control.canny"): "lower the thresholds, e.g. maker_args.low=50 maker_args.high=100",
    ("contrast", "control.soft_edges"): "brighten the contours with maker_args.white=98",
    ("contrast", "control.depth"): "spread the values with maker_args.range=[5,95]",
    ("contrast", "control.depth_given"): "spread the values with maker_args.range=[5,95]",
    ("contrast", PEOPLE): "cut the clip to the part that shows people (start, frames)",
    ("contrast", POINTS): "draw more tracks, or make the video larger: the discs shrink with it",
    ("contrast", ""): "give a clip with more contrast",
    ("flicker", "control.canny"): "smooth the clip before the edges are found, maker_args.blur=1.5",
    ("flicker", "control.depth"): "mix neighbouring frames, maker_args.steady=0.7",
    ("flicker", "control.depth_given"): "render without noise, or with more samples",
    ("flicker", PEOPLE): "smooth the joints, maker_args.smooth=11",
    ("flicker", ""): "give a clip with less noise",
    ("coverage", PEOPLE): "cut the clip to the part that shows people, or find small ones with maker_args.tiles=2",
    ("coverage", POINTS): "draw tracks yourself, tracks=FILE, or accept shorter ones with maker_args.shortest=0.2",
}
NO_PERSON = "no person was found in the clip: "


def findings_about(signal: Signal, target: np.ndarray, fps: float) -> list[Finding]:
    """The findings of a preparation about a signal and its clip uint8 (F,H,W,3), without those that passed."""
    place = signal.place if is_drawn(signal.recipe.layout.frame) else signal.recipe.layout.frame
    assert place is None or isinstance(place, int)
    record: dict[str, object] = {"drawn": dict(signal.drawn)}
    pair = Pair("signal", target, (signal.frames,), "", fps, record)
    findings = reference_findings(pair, signal.recipe.task(place), Checks())
    meant = _meant(signal)
    return [finding for finding in findings if finding.verdict != "ok" and finding.check not in meant]


def _meant(signal: Signal) -> tuple[str, ...]:
    """Checks that do not apply: a still stands still, and drawn paths are to change the motion of the clip."""
    if signal.recipe.maker == "edit.loop":
        return ("static",)
    return ("offset", "static", "flicker") if signal.drawn_by_hand else ()


def in_words(finding: Finding, signal: Signal) -> str:
    """A finding as a line: what is wrong, the value with its limit, and the remedy."""
    maker, name = signal.recipe.maker, signal.recipe.layout.name
    remedy = REMEDIES.get((finding.check, maker)) or REMEDIES[finding.check, ""]
    return f"{name}: {MEANINGS[finding.check]} ({finding.reason}): {remedy}"


def judge_signals(signals: Sequence[Signal], target: np.ndarray, fps: float, strict: bool) -> Iterator[str]:
    """A line for each problem. ConfigError for one for which a preparation would leave the clip out, if `strict`."""
    for signal in signals:
        for finding in findings_about(signal, target, fps):
            line = in_words(finding, signal)
            if finding.verdict == "warn" or not strict:
                yield f"warning: {line}"
                continue
            if finding.check in ("coverage", "blank") and signal.drawn.get("people") == 0:
                line = NO_PERSON + REMEDIES["blank", PEOPLE]
            raise ConfigError(f"{line}. strict=false writes it as it is")


def empty_region(signal: Signal) -> str | None:
    """Why the painted part of a signal is useless, if it is."""
    covered = signal.drawn.get("covered")
    if covered is None or 0 < covered < 1:
        return None
    name = signal.recipe.layout.name
    if covered == 0:
        return f"{name}: nothing is painted: the mask is black inside the video, so nothing would be made anew"
    return f"{name}: the whole picture is painted: the adapter sees nothing of the clip"

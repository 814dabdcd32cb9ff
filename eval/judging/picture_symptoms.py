"""Symptoms that pictures show: flicker, no motion, artefacts, noise, wrong levels or colours, a shifted picture.

Each is judged beyond the VAE round trip, which no adapter can avoid. The limits lie above what the round trip of nano's
held-out windows and their blurred references have, and below what the fault has that they are named after
(docs/log/measurements.md).
"""

from __future__ import annotations

from eval.clips.conditions import judged_row
from eval.judging.finding import Finding, Scores, level_if_above, level_if_below, output_and_ceiling, worst

FREE = ("structure", "style")  # families whose outputs need not look like their targets
FLICKER_WARN, FLICKER_BAD = 1.0, 4.0  # levels of luma above the ceiling; one is the smallest step of a display
WARP_WARN, WARP_BAD = 1.0, 4.0  # 1e-3 above the ceiling: 8 and 16 levels that change from frame to frame
FROZEN_WARN, FROZEN_BAD = 0.5, 0.2  # motion of output / ceiling; a blur of 2 px leaves more than half
SHARP_WARN, SHARP_BAD = 1.5, 2.5  # Laplacian variance of output / ceiling or its inverse; a 0.5 px blur gives 2.2
NOISE_WARN, NOISE_BAD = 1.0, 3.0  # levels above the ceiling; noise of 1 % measures 1.5, of 3 % 4.7
SLOPE_WARN, SLOPE_BAD = 0.06, 0.12  # distance of the contrast from the ceiling's; 16..235 has 0.14, a blur 0.03
OFFSET_WARN, OFFSET_BAD = 8.0, 14.0  # levels of black; 16..235 has 16, a blur 4
BEND_WARN, BEND_BAD = 1.5, 3.0  # levels in the middle of the range; a gamma of 1.1 has 1.9, of 1.2 3.7, a blur 0.2
CHROMA_WARN, CHROMA_BAD = 1.5, 3.0  # levels of Cb and Cr above the ceiling's; a blur of 2 px has less than 0.5
SHIFT_WARN, SHIFT_BAD = 0.1, 0.4  # pixels above the ceiling's; the round trip has 0
STUDIO, NEAR = (219 / 255, 16.0), (0.03, 4.0)  # slope and offset of 16..235, and how near they count as it


def is_free(scores: Scores) -> bool:
    """Whether outputs need not look like their targets."""
    return scores["family"] in FREE


def has_free_colours(scores: Scores) -> bool:
    """Whether colours may differ from the target's: also in the part of a picture that an edit fills, and in a
    colorized clip, whose colours its gates judge."""
    fills = "psnr_inside" in scores["cells"].get(judged_row(scores["cells"]), {})
    return is_free(scores) or scores["family"] == "colorize" or fills


def flicker(scores: Scores) -> Finding | None:
    """Judged by brightness steps and by the warping error, each beyond the VAE round trip's."""
    levels, reasons = [], []
    for metric, title, warn, bad in (
        ("flicker", "brightness steps (levels)", FLICKER_WARN, FLICKER_BAD),
        ("warp_error", "warping error (1e-3)", WARP_WARN, WARP_BAD),
    ):
        if (pair := output_and_ceiling(scores, metric)) is not None:
            levels.append(level_if_above(pair[0] - pair[1], warn, bad))
            reasons.append(f"{title} {pair[0]:.2f}, VAE round trip {pair[1]:.2f}")
    if not levels:
        return None
    return (
        worst(*levels),
        "; ".join(reasons),
        "Train on longer windows, sample with more steps, and check the references for flicker (auto exposure, "
        "per-frame extraction): the adapter copies it.",
    )


def frozen(scores: Scores) -> Finding | None:
    """Judged by the amount of motion relative to the VAE round trip: where little moves, a still frame scores well."""
    pair = output_and_ceiling(scores, "motion")
    if pair is None or pair[1] <= 0:
        return None
    ratio = pair[0] / pair[1]
    return (
        level_if_below(ratio, FROZEN_WARN, FROZEN_BAD),
        f"luma changes between frames {ratio:.2f} times as much as in the VAE round trip (near 0: a still frame)",
        "Train on windows with more motion (`data.pick=best`), and check that references and targets move.",
    )


def artefacts(scores: Scores) -> Finding | None:
    """Judged by sharpness relative to the VAE round trip: above is invented detail, below is blur."""
    pair = output_and_ceiling(scores, "sharpness")
    if pair is None or min(pair) <= 0:
        return None
    ratio = pair[0] / pair[1]
    remedy = (
        "Detail that is not in the target: lower the learning rate or the rank, stop earlier, lower guidance."
        if ratio > 1
        else "Blur: train longer, sample with more steps, and check that the targets themselves are sharp."
    )
    reason = f"sharpness {ratio:.2f} of the VAE round trip (1 is right, above 1: invented detail, below 1: blur)"
    return level_if_above(max(ratio, 1 / ratio), SHARP_WARN, SHARP_BAD), reason, remedy


def noise(scores: Scores) -> Finding | None:
    """Judged by the noise in flat parts of the target, beyond the VAE round trip's."""
    pair = output_and_ceiling(scores, "noise")
    if pair is None:
        return None
    return (
        level_if_above(pair[0] - pair[1], NOISE_WARN, NOISE_BAD),
        f"noise in flat parts, beyond the target's: {pair[0]:.2f} levels, VAE round trip {pair[1]:.2f}",
        "Sample with more steps or lower guidance, train longer, and check that the targets are free of noise.",
    )


def wrong_levels(scores: Scores) -> Finding | None:
    """Judged by the fit of the output's levels to the target's, relative to the VAE round trip's."""
    slope, offset, bend = (output_and_ceiling(scores, f"level_{key}") for key in ("slope", "offset", "bend"))
    if slope is None or offset is None:
        return None
    middle = "too few levels in the targets to tell a gamma" if bend is None else f"middle levels off by {bend[0]:.1f}"
    reason = f"contrast {slope[0]:.2f} of the target's, black at {offset[0]:.1f}, {middle}"
    if is_free(scores):
        return "ok", f"{reason}; an output of a {scores['family']} task is free to have other levels", ""
    level = worst(
        level_if_above(abs(slope[0] - slope[1]), SLOPE_WARN, SLOPE_BAD),
        level_if_above(abs(offset[0] - offset[1]), OFFSET_WARN, OFFSET_BAD),
        "ok" if bend is None else level_if_above(abs(bend[0] - bend[1]), BEND_WARN, BEND_BAD),
    )
    return level, reason, _cause_of_levels(slope[0], offset[0])


def wrong_colours(scores: Scores) -> Finding | None:
    """Judged by the chroma error beyond the VAE round trip's: a tint, exchanged channels, lost colour, chroma noise."""
    pair = output_and_ceiling(scores, "chroma_error")
    if pair is None:
        return None
    reason = f"chroma error {pair[0]:.2f} levels, VAE round trip {pair[1]:.2f}"
    if has_free_colours(scores):
        return "ok", f"{reason}; the colours of this task are free, or judged by gates", ""
    return (
        level_if_above(pair[0] - pair[1], CHROMA_WARN, CHROMA_BAD),
        reason,
        "Look for a tint, exchanged channels (BGR), lost colour or coloured noise: compare the colours of references, "
        "targets and outputs, and train on the colours that references lose.",
    )


def _cause_of_levels(slope: float, offset: float) -> str:
    """The remedy: the two range errors are named if slope and offset fit."""
    narrow = abs(slope - STUDIO[0]) < NEAR[0] and abs(offset - STUDIO[1]) < NEAR[1]
    wide = abs(slope - 1 / STUDIO[0]) < NEAR[0] and abs(offset + STUDIO[1] / STUDIO[0]) < NEAR[1]
    if narrow:
        return "Full range was written as 16..235: set the colour range of the program that writes the clips."
    if wide:
        return "16..235 was read as full range: set the colour range of the program that reads or writes the clips."
    return (
        "A colour range, gamma or matrix is applied twice or not at all, or the adapter changes the exposure: compare "
        "the levels of references, targets and outputs."
    )


def shifted(scores: Scores) -> Finding | None:
    """Judged by the shift of the output against the target, beyond the VAE round trip's."""
    pair = output_and_ceiling(scores, "spatial_shift")
    if pair is None:
        return None
    reason = f"the picture is shifted by {pair[0]:.2f} pixels against the target, VAE round trip {pair[1]:.2f}"
    if is_free(scores):
        return "ok", f"{reason}; an output of a {scores['family']} task need not look like its target", ""
    return (
        level_if_above(pair[0] - pair[1], SHIFT_WARN, SHIFT_BAD),
        reason,
        "Crop and resize outputs, references and targets alike (one pixel: an odd crop; half a pixel: corners aligned "
        "in a resize), and check the task's reference factors.",
    )

"""Every metric: perfect for identity, worse with every dose of damage, independent of the masked area."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from eval.metrics import GroundTruth, Suite, change, difference, dissimilarity, diversity, edited_region, offset
from eval.metrics.base import FLOW_SIDE, CachedClip
from eval.metrics.colour import cdc, chroma_error, colourfulness
from eval.metrics.displacement import spatial_shift
from eval.metrics.motion import reliable_flow, warping_error
from eval.metrics.picture import PSNR_CAP, psnr, psnr_y, ssim
from eval.metrics.region import masked_psnr, masked_ssim, seam
from iclora_train.config import Task
from iclora_train.signals.point_tracks import track_points
from tests import doses
from tests.doses import HOLE, Dose, scene

TASKS = {
    "restoration": Task("deblur", "restoration", maker="degrade.defocus"),
    "colorize": Task("colorize", "colorize", maker="degrade.grey"),
    "edit": Task("inpaint", "edit", maker="edit.hole"),
    "tracks": Task("motion_tracks", "structure", maker="control.tracks"),
}


def truth_of(task: str) -> GroundTruth:
    """The ground truth of a task, made from `scene`."""
    target = scene()
    region = np.zeros(target.shape[:3], bool)
    region[HOLE] = True
    reference = doses.grey(target, 1) if task == "colorize" else target
    points, _ = track_points(list(CachedClip(target).grey), 0.5)
    inner = ((points[:, 0] > 12) & (points[:, 0] < 52)).all(1)
    tracks = points[inner].round(1).tolist()
    return GroundTruth(target, scene(1), reference, region, {"drawn": {"tracks": tracks}})


GROUND_TRUTHS = {task: truth_of(task) for task in TASKS}
SUITES = {task: Suite.of(settings) for task, settings in TASKS.items()}
PERFECT = {
    **dict.fromkeys(("psnr", "psnr_y", "psnr_outside", "psnr_inside"), PSNR_CAP),
    **dict.fromkeys(("ssim", "ssim_outside", "edge_f1", "edge_f1_strict", "erqa", "structure_kept"), 1),
    **dict.fromkeys(("sharpness", "colourfulness_ratio", "level_slope", "motion"), 1),
    **dict.fromkeys(("noise", "spatial_shift", "level_offset", "level_bend"), 0),
    **dict.fromkeys(("chroma_error", "flicker", "warp_error", "tof", "cdc", "change_outside", "seam"), 0),
    **dict.fromkeys(("track_within_1", "track_within_5", "track_dx", "track_found"), 1),
}
RESPONSES: list[tuple[str, str, str, tuple[float, ...]]] = [  # metric, task, dose, amounts
    *(("psnr", "restoration", dose, amounts) for dose, amounts in (("blur", (0.7, 1.2, 2, 4)), ("noise", (2, 5, 12)))),
    *(("psnr", "restoration", dose, amounts) for dose, amounts in (("shift", (1, 2, 3)), ("flicker", (2, 5, 9)))),
    *(("psnr", "restoration", dose, amounts) for dose, amounts in (("shuffle", (2, 5, 9)), ("hole", (0.2, 0.5, 1)))),
    *(("psnr_y", "restoration", dose, (1, 2, 4)) for dose in ("blur", "noise", "shift", "flicker")),
    *(("ssim", "restoration", dose, (1, 2, 4)) for dose in ("blur", "noise", "shift")),
    ("edge_f1", "restoration", "blur", (1, 2, 4)),
    ("edge_f1", "restoration", "shift", (2, 4, 6)),
    ("edge_f1_strict", "restoration", "shift", (1, 2, 4)),
    ("edge_f1_strict", "restoration", "blur", (0.7, 1.2, 2)),
    ("edge_gap", "restoration", "fade", (0.4, 0.6, 0.8, 1)),
    ("erqa", "restoration", "blur", (1, 2, 4)),
    ("erqa", "restoration", "noise", (10, 20, 40)),
    ("chroma_error", "colorize", "grey", (0.3, 0.6, 1)),
    ("luma_psnr", "colorize", "noise", (2, 5, 12)),
    ("luma_psnr", "colorize", "flicker", (2, 5, 9)),
    ("cdc", "colorize", "colour_flicker", (2, 8, 20)),
    ("noise", "restoration", "noise", (2, 5, 12)),
    ("spatial_shift", "restoration", "shift", (1, 2, 3)),
    *(("flicker", "restoration", dose, (2, 5, 9)) for dose in ("flicker", "antiphase", "ramp")),
    ("warp_error", "restoration", "flicker", (2, 5, 9)),
    ("warp_error", "restoration", "noise", (2, 5, 12)),
    ("warp_error", "restoration", "jitter", (1, 2, 3)),
    ("tof", "restoration", "jitter", (1, 2, 3)),
    ("tof", "restoration", "drift", (1, 2, 3)),
    *((key, "edit", dose, (2, 5, 12)) for key in ("psnr_outside", "ssim_outside") for dose in ("noise", "flicker")),
    ("change_outside", "edit", "noise", (2, 5, 12)),
    ("psnr_inside", "edit", "hole", (0.2, 0.5, 1)),
    ("seam", "edit", "hole", (0.2, 0.5, 1)),
    ("structure_kept", "edit", "shift", (2, 4, 6)),
    *((key, "tracks", "drift", (1, 2, 3)) for key in ("track_error", "track_error_diagonal", "track_dx")),
    ("track_within_1", "tracks", "drift", (0.25, 0.5, 1)),
    ("track_within_5", "tracks", "drift", (1, 2, 3)),
    ("track_found", "tracks", "scramble", (0.3, 0.5, 0.9)),
]
# Metrics for which neither high nor low is better. Damage lowers them.
FALLING = [
    ("colourfulness", "colorize", "grey", (0.3, 0.6, 1)),
    ("colourfulness_ratio", "colorize", "grey", (0.3, 0.6, 1)),
    ("sharpness", "restoration", "blur", (0.7, 1.2, 2)),
    ("level_slope", "restoration", "limited_range", (0.3, 0.6, 1)),
    ("level_offset", "restoration", "darken", (3, 6, 12)),
    ("level_bend", "restoration", "gamma", (1.1, 1.2, 1.4)),
    ("motion", "restoration", "hold", (2, 5, 8)),
]


def values_of(task: str, output: np.ndarray) -> dict[str, float]:
    return SUITES[task].measure(output, GROUND_TRUTHS[task]).values


@pytest.mark.parametrize("task", TASKS)
def test_identity_is_perfect(task: str) -> None:
    suite, truth = SUITES[task], GROUND_TRUTHS[task]
    values = values_of(task, truth.target)
    assert list(values) == [metric.key for metric in suite.metrics]
    for key in values.keys() & PERFECT.keys():
        assert values[key] == pytest.approx(PERFECT[key], abs=1e-6), key
    if task == "tracks":
        assert values["track_error"] < 0.1  # the record rounds to a tenth of a pixel


@pytest.mark.parametrize(("key", "task", "dose", "amounts"), RESPONSES + FALLING)
def test_metrics_get_worse_with_every_dose(key: str, task: str, dose: str, amounts: tuple[float, ...]) -> None:
    damage: Dose = getattr(doses, dose)
    better = {metric.key: metric.better for metric in SUITES[task].metrics}[key]
    target = GROUND_TRUTHS[task].target
    values = [values_of(task, target)[key], *(values_of(task, damage(target, amount))[key] for amount in amounts)]
    sign = 1 if better == "low" else -1
    assert all(sign * b > sign * a for a, b in pairwise(values)), values


def test_a_still_clip_is_frozen_unless_its_target_is_still() -> None:
    target = scene()
    still = doses.hold(target, len(target) - 1)
    assert values_of("restoration", still)["motion"] < 0.1
    assert values_of("restoration", doses.blur(target, 2))["motion"] > 0.5
    assert Suite.of(TASKS["restoration"]).measure(still, GroundTruth(still, target, still)).values["motion"] == 1


def test_the_table_has_every_metric() -> None:
    keys = {metric.key for suite in SUITES.values() for metric in suite.metrics}
    assert keys - {key for key, *_ in RESPONSES + FALLING} == {"edge_f1_shuffled"}  # it is the edge_f1 of another clip


def test_the_floor_is_edge_f1_against_the_other_clip() -> None:
    values = values_of("restoration", GROUND_TRUTHS["restoration"].shuffled)
    assert values["edge_f1_shuffled"] == 1
    assert values["edge_gap"] == values["edge_f1"] - 1 < -0.5


def test_tolerated_damage_has_no_effect() -> None:
    target = scene()
    shifted = values_of("restoration", doses.shift(target, 1))
    assert shifted["edge_f1"] > 0.9 > shifted["edge_f1_strict"]
    assert (
        values_of("restoration", doses.shift(target, 2))["erqa"]
        > 0.9
        > values_of("restoration", doses.shift(target, 2))["edge_f1"]
    )
    assert values_of("colorize", doses.grey(target, 1))["luma_psnr"] == PSNR_CAP


def test_temporal_changes_of_the_target_cancel() -> None:
    flickering = doses.colour_flicker(doses.flicker(scene(), 8), 8)
    values = Suite.of(TASKS["colorize"]).measure(flickering, GroundTruth(flickering, scene(1), flickering)).values
    assert values["flicker"] == values["warp_error"] == values["cdc"] == 0


def test_temporal_metrics_reward_blur_and_sharpness_shows_it() -> None:
    """The report therefore shows sharpness next to the temporal metrics."""
    jittery = doses.noise(scene(), 8)
    truth = GroundTruth(jittery, scene(1), jittery)
    values = SUITES["restoration"].measure(doses.blur(jittery, 2), truth).values
    assert values["warp_error"] < 0
    assert values["sharpness"] < 0.5


def test_simple_clips_have_the_values_of_the_formulas() -> None:
    grey = np.full((9, 64, 64, 3), 100, np.uint8)
    red = np.zeros_like(grey)
    red[..., 0] = 255
    assert colourfulness(grey) == 0
    assert colourfulness(red) == pytest.approx(0.3 * np.hypot(255, 127.5))
    assert chroma_error(grey, grey + 9).max() == 0
    assert cdc(np.stack([red[0], grey[0]])) == pytest.approx(np.log(2))  # no colour in common
    assert psnr(grey, grey + 1) == pytest.approx([20 * np.log10(255)] * 9)
    assert psnr_y(grey, grey + 1) == pytest.approx([20 * np.log10(255 * 255 / 219)] * 9)
    still = np.repeat(scene()[:1] // 2 + 40, 9, axis=0)
    truth = GroundTruth(still, still, still)
    values = SUITES["restoration"].measure(doses.flicker(still, 5), truth).values
    assert values["flicker"] == pytest.approx(10, abs=0.01)  # |-5 - 5|
    assert values["warp_error"] == pytest.approx(1000 * (10 / 255) ** 2, rel=0.01)
    assert values["tof"] < 0.1


def test_occluded_pixels_do_not_count_in_the_warping_error() -> None:
    """A square moves by 4 pixels a frame over a texture and uncovers pixels that no flow can predict."""
    background, square = scene(1, frames=1)[0], scene(2, frames=1)[0, :24, :24]
    clip = np.repeat(background[None], 6, axis=0)
    for t, frame in enumerate(clip):
        frame[20:44, 8 + 4 * t : 32 + 4 * t] = square
    cached = CachedClip(clip)
    flows = [cached.flow_between(t, t + 1).astype(np.float32) for t in range(5)]
    back = [cached.flow_between(t + 1, t).astype(np.float32) for t in range(5)]
    masks = np.stack([reliable_flow(a, b) for a, b in zip(flows, back, strict=True)])
    assert 0.5 < masks.mean() < 0.95
    everywhere = warping_error(clip, cached.flow, np.ones_like(masks))
    reliable = warping_error(clip, cached.flow, masks)
    assert everywhere is not None
    assert reliable is not None
    assert reliable < everywhere / 3


def test_psnr_and_the_primary_metric_are_measured_per_frame() -> None:
    broken = scene().copy()
    broken[4] = 0
    for task, suite in SUITES.items():
        measurement = suite.measure(broken, GROUND_TRUTHS[task])
        assert set(measurement.frames) == {"psnr", suite.primary}
        assert all(len(series) == len(broken) for series in measurement.frames.values())
        assert measurement.frames["psnr"][4] < 15 < PSNR_CAP == measurement.frames["psnr"][0]
        assert measurement.values["psnr"] == pytest.approx(np.mean(measurement.frames["psnr"]))


def test_masked_metrics_do_not_depend_on_the_area() -> None:
    target = scene() // 2
    output = target + 10
    for area in (1, 100, 4000):
        mask = np.zeros(9 * 64 * 64, bool)
        mask[np.random.default_rng(area).choice(mask.size, area, replace=False)] = True
        touched = int(mask.reshape(9, -1).any(1).sum())
        assert masked_psnr(output, target, mask.reshape(9, 64, 64)) == pytest.approx([20 * np.log10(25.5)] * touched)
        assert change(output, target, mask.reshape(9, 64, 64)) == 10
    assert change(output, target, slice(0, 3)) == change(output, target, slice(0, 64)) == 10


def test_masked_metrics_ignore_pixels_outside_the_mask() -> None:
    truth = GROUND_TRUTHS["edit"]
    assert truth.region is not None
    values = values_of("edit", doses.hole(truth.target, 1))
    assert values["psnr_outside"] == PSNR_CAP
    assert values["ssim_outside"] == 1
    assert values["change_outside"] == 0
    outside_only = np.where(truth.region[..., None], truth.target, 0).astype(np.uint8)
    assert values_of("edit", outside_only)["psnr_inside"] == PSNR_CAP
    assert masked_ssim(truth.target, truth.target, np.zeros_like(truth.region)) is None
    assert masked_psnr(truth.target, truth.target, np.zeros_like(truth.region)) == []
    assert masked_ssim(truth.target, scene(1), ~np.zeros_like(truth.region)) == pytest.approx(
        ssim(truth.target, scene(1)).mean()
    )


def test_a_seam_is_the_step_beyond_the_step_of_the_target() -> None:
    target = np.full((2, 32, 32, 3), 100, np.uint8)
    region = np.zeros((2, 32, 32), bool)
    region[:, :, :16] = True
    assert seam(target + 7 * region[..., None].astype(np.uint8), target, region) == 7
    assert seam(target, target, np.ones_like(region)) is None


def test_region_metrics_are_absent_without_a_region() -> None:
    truth = GROUND_TRUTHS["edit"]
    values = SUITES["edit"].measure(truth.target, GroundTruth(truth.target, truth.shuffled, truth.reference)).values
    assert "psnr_outside" not in values
    assert values["structure_kept"] > 0.9
    everywhere = np.ones_like(truth.region)
    values = (
        SUITES["edit"]
        .measure(truth.target, GroundTruth(truth.target, truth.shuffled, truth.reference, everywhere))
        .values
    )
    assert values["psnr_inside"] == PSNR_CAP
    assert not values.keys() & {"psnr_outside", "ssim_outside", "change_outside", "structure_kept"}


def test_the_edited_region_is_painted_or_differs_within_a_given_pair() -> None:
    target = scene()
    region = np.zeros(target.shape[:3], bool)
    region[HOLE] = True
    painted = np.where(region[..., None], np.array([102, 255, 0], np.uint8), target)
    assert (edited_region(Task("inpaint", maker="edit.hole"), target, painted) == region).all()
    small = np.stack([cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA) for frame in painted[::2]])
    outpainted = edited_region(Task("outpaint", maker="edit.outpaint"), target, small)
    assert outpainted is not None
    assert (outpainted == region).mean() > 0.99
    blue = Task("inpaint", maker="edit.hole", maker_args={"colour": [0, 0, 255]})
    assert not edited_region(blue, target, painted).any()
    edited = edited_region(Task("shave", maker="given"), target, doses.hole(target, 1))
    assert (edited == region).mean() > 0.97
    assert edited_region(TASKS["restoration"], target, target) is None


@pytest.mark.parametrize("delay", [-2, -1, 0, 1, 2])
def test_a_time_offset_is_detected_despite_damage(delay: int) -> None:
    long = scene(frames=13)
    target, output = long[2:11], long[2 + delay : 11 + delay]
    assert offset(output, target) == delay
    assert offset(doses.noise(doses.blur(output, 1), 5), target) == delay


@pytest.mark.parametrize("pixels", [-2, -1, 1, 2])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_shift_in_space_is_no_shift_in_time(pixels: int, axis: int) -> None:
    """The scene pans by a pixel a frame, so its picture shifted by a pixel is nearly the next or the last frame."""
    target = scene()
    output = np.roll(target, pixels, axis=axis)
    for damaged in (output, doses.noise(doses.blur(output, 0.7), 5)):
        assert offset(damaged, target) == 0
        assert spatial_shift(damaged, target)[axis == 1] == pytest.approx(pixels, abs=0.1)


def test_a_shift_of_half_a_pixel_is_measured_and_unlike_clips_have_none() -> None:
    target = scene()
    half = doses.levels((target.astype(float) + np.roll(target, 1, axis=2)) / 2)
    assert spatial_shift(half, target)[0] == pytest.approx(0.5, abs=0.1)
    assert spatial_shift(doses.noise(target, 8), target) == (0, 0)
    assert spatial_shift(doses.blur(target, 2), target) == (0, 0)
    assert spatial_shift(doses.flicker(target, 9), target) == (0, 0)


def test_no_time_offset_without_evidence() -> None:
    still = np.repeat(scene()[:1], 9, axis=0)
    assert offset(doses.noise(still, 5), still) == 0
    assert offset(scene(1), scene()) == 0
    assert offset(scene(1)[:2], scene()[:2]) == 0


def test_diversity_is_0_for_copies_and_grows_with_the_difference() -> None:
    clips = [scene(), scene()]
    assert diversity(clips) == diversity(clips, dissimilarity) == 0
    for distance in (difference, dissimilarity):
        spread = [diversity([scene(), doses.noise(scene(), sigma), scene()], distance) for sigma in (1, 4, 16)]
        assert spread == sorted(spread)
        assert spread[0] > 0
    assert diversity([scene() // 2, scene() // 2 + 6, scene() // 2 + 3]) == pytest.approx(4)
    with pytest.raises(ValueError, match="two seeds"):
        diversity([scene()])


def test_short_flat_and_grey_clips() -> None:
    flat = np.full((1, 16, 16, 3), 90, np.uint8)
    values = Suite.of(TASKS["colorize"]).measure(flat, GroundTruth(flat, flat, flat)).values
    assert values["edge_f1"] == values["sharpness"] == 1
    assert not values.keys() & {"motion", "flicker", "warp_error", "cdc"}  # one frame
    assert "colourfulness_ratio" not in values  # no colour
    assert not values.keys() & {"level_slope", "level_offset", "level_bend"}  # one level
    values = Suite.of(TASKS["restoration"]).measure(flat, GroundTruth(flat, flat, flat)).values
    assert values["erqa"] == 1
    assert "tof" not in values


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(9, 64, 64, 3\)"):
        SUITES["restoration"].measure(scene()[:8], GROUND_TRUTHS["restoration"])


def test_motion_of_large_clips_is_in_pixels_of_full_size() -> None:
    large = np.stack([cv2.resize(frame, (2 * FLOW_SIDE, 2 * FLOW_SIDE)) for frame in scene(frames=3)])
    error = measured_tof(doses.drift(large, 6), large)
    assert error == pytest.approx(6, rel=0.15)


def measured_tof(output: np.ndarray, target: np.ndarray) -> float:
    return Suite.of(TASKS["restoration"]).measure(output, GroundTruth(target, target, target)).values["tof"]

"""Metrics: perfect for identity, worse with every dose of damage, and equal to scikit-image where it has them."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from eval import metrics
from eval.metrics import Clip, measure
from eval.statistics import BOOTSTRAP_FROM, by_source, estimate, ratio_units
from eval.verdicts import Bound, Results, judge


def scene(seed: int = 0, frames: int = 5, size: int = 64) -> Clip:
    """A picture of coloured discs and boxes, panned by a pixel a frame."""
    rng = np.random.default_rng(seed)
    wide = np.full((size, size + frames, 3), rng.integers(40, 200, 3), np.uint8)
    for _ in range(14):
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        x, y, r = (int(v) for v in rng.integers((0, 0, 3), (size, size, 12)))
        if rng.random() < 0.5:
            cv2.circle(wide, (x, y), r, colour, -1)
        else:
            cv2.rectangle(wide, (x, y), (x + r, y + 2 * r), colour, -1)
    return np.stack([wide[:, i : i + size] for i in range(frames)])


def blurred(clip: Clip, sigma: float) -> Clip:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip]).astype(np.uint8)


def flickering(clip: Clip, levels: int) -> Clip:
    sign = np.array([1, -1] * len(clip))[: len(clip), None, None, None]
    return np.clip(clip + levels * sign, 0, 255).astype(np.uint8)


def greyed(clip: Clip, share: float) -> Clip:
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip])[..., None]
    return (clip + share * (grey - clip.astype(np.float64))).round().astype(np.uint8)


def column(name: str, outputs: list[Clip]) -> list[float]:
    return [measure(output, scene(), scene(1))[name] for output in outputs]


def falls(values: list[float]) -> bool:
    return all(a > b for a, b in pairwise(values))


def test_identity_is_perfect() -> None:
    perfect = measure(scene(), scene(), scene(1))
    assert perfect["psnr"] == perfect["psnr_y"] == pytest.approx(metrics.PSNR_CAP)
    assert perfect["ssim"] == pytest.approx(1)
    assert perfect["edge_f1"] == perfect["edge_f1_strict"] == perfect["sharpness"] == 1
    assert perfect["chroma_error"] == perfect["flicker"] == 0
    assert perfect.keys() == metrics.DIRECTIONS.keys()


def test_every_dose_of_blur_is_seen() -> None:
    doses = [blurred(scene(), sigma) for sigma in (0.7, 1.2, 2.0, 4.0)]
    for name in ("psnr", "psnr_y", "ssim", "edge_f1_strict", "edge_f1", "sharpness"):
        assert falls([column(name, [scene()])[0], *column(name, doses)]), name


def test_every_dose_of_shift_is_seen_and_one_pixel_is_forgiven() -> None:
    doses = [np.roll(scene(), shift, axis=2) for shift in (0, 1, 2, 3)]
    for name in ("psnr", "ssim", "edge_f1_strict"):
        assert falls(column(name, doses)), name
    assert metrics.edge_f1(doses[1], scene()) > 0.95 > metrics.edge_f1(doses[3], scene())


def test_every_dose_of_flicker_is_seen() -> None:
    assert falls(column("flicker", [flickering(scene(), levels) for levels in (9, 6, 3, 0)]))


def test_flicker_of_the_target_itself_does_not_count() -> None:
    lit = flickering(scene(), 8)
    assert metrics.flicker(lit, lit) == 0
    assert metrics.flicker(scene(frames=1), blurred(scene(frames=1), 2)) == 0


def test_every_dose_of_lost_colour_is_seen_and_luma_stays() -> None:
    doses = [greyed(scene(), share) for share in (1.0, 0.7, 0.4, 0.0)]
    assert falls(column("chroma_error", doses))
    assert falls(column("colourfulness", doses[::-1]))
    assert metrics.colourfulness(doses[0]) == 0
    assert metrics.psnr_y(doses[0], scene()) > 40 > metrics.psnr(doses[0], scene())


def test_shuffled_frames_and_shuffled_clips_are_seen() -> None:
    assert falls(column("psnr", [scene(), scene()[::-1]]))
    matched, floor = (measure(scene(), scene(), scene(1))[name] for name in ("edge_f1", "edge_f1_shuffled"))
    assert matched == 1
    assert floor < 0.5


def test_clips_without_edges() -> None:
    flat = np.full_like(scene(), 90)
    assert metrics.edge_f1(flat, flat) == 1
    assert metrics.edge_f1(flat, scene()) == metrics.edge_f1(scene(), flat) == 0


def test_psnr_and_ssim_agree_with_scikit_image() -> None:
    for output in (blurred(scene(), 1.0), np.roll(scene(), 1, axis=2), scene(1)):
        pairs = list(zip(scene(), output, strict=True))
        psnr = np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs])
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
        ssim = np.mean([structural_similarity(a, b, channel_axis=-1, **settings) for a, b in pairs])
        assert metrics.psnr(output, scene()) == pytest.approx(psnr, abs=1e-3)
        assert metrics.ssim(output, scene()) == pytest.approx(ssim, abs=1e-3)


def test_one_level_everywhere_is_48_db() -> None:
    assert metrics.psnr(scene() // 2 + 1, scene() // 2) == pytest.approx(10 * np.log10(255**2))


def test_ssim_refuses_frames_under_its_window() -> None:
    with pytest.raises(ValueError, match="11 pixels"):
        metrics.ssim(scene()[:, :8], scene()[:, :8])


def test_change_does_not_depend_on_the_area_looked_at() -> None:
    lighter = scene() // 2 + 10
    assert (
        metrics.change(lighter, scene() // 2, slice(0, 3)) == metrics.change(lighter, scene() // 2, slice(0, 64)) == 10
    )


def test_t_interval_of_few_units_and_bootstrap_of_many() -> None:
    few = estimate([1.0, 2.0, 3.0])  # t(2) = 4.303, standard error 1 / sqrt(3)
    assert few["low"] == pytest.approx(2 - 4.303 / 3**0.5)
    assert (few["mean"], few["n"]) == (2, 3)
    assert estimate([5.0]) == {"mean": 5, "low": None, "high": None, "n": 1}
    values = np.random.default_rng(0).normal(0, 1, 100)
    many = estimate(values)
    assert many["low"] is not None
    assert many["low"] == pytest.approx(values.mean() - 1.96 * values.std() / 10, abs=0.03)
    assert estimate(values) == many


@pytest.mark.parametrize("n", [10, BOOTSTRAP_FROM - 1, BOOTSTRAP_FROM, 40])
def test_intervals_cover_the_truth(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(200):
        interval = estimate(rng.normal(3, 1, n))
        assert interval["low"] is not None
        assert interval["high"] is not None
        hits += interval["low"] < 3 < interval["high"]
    assert 0.88 < hits / 200 < 0.995  # a percentile bootstrap of 20 is a little narrow: docs/evaluation.md


def test_windows_of_one_source_count_once() -> None:
    values = np.array([1.0, 1.0, 1.0, 1.0, 5.0])
    clustered = by_source(values, ["a", "a", "a", "a", "b"])
    assert (clustered["mean"], clustered["n"]) == (3, 2)


def test_ratio_is_that_of_the_means() -> None:
    above, below = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert ratio_units(above, below) == pytest.approx([0.5, 0.5, 0.5])  # no spread: each unit has the same ratio
    assert ratio_units(np.array([1.0, 5.0]), np.array([2.0, 4.0])).mean() == pytest.approx(1)
    assert (ratio_units(above, 0 * below) == 1).all()


def results(gain: float = 2.0, swap: float = 10.0, step: float = 1.0, sources: int = 4, kept: float = 0.1) -> Results:
    """Invented values of 12 windows around the figures asked for, with some spread."""
    spread = np.linspace(-0.3, 0.3, 12)
    level = 25 + np.zeros(12)
    psnr = {
        "adapter+reference": level + gain + spread,
        "base+reference": level,
        "input": level,
        "swapped": level + gain - swap,
    }
    strengths = [(s, {"psnr": level + i * step}) for i, s in enumerate((0.0, 0.1, 1.0))]
    mask = {"kept": kept * level, "dropped": level}
    names = [f"clip{i % sources}" for i in range(12)]
    return Results({name: {"psnr": values} for name, values in psnr.items()}, strengths, mask, names)


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({}, set()),
        ({"gain": 0.6}, {"gain_over_input", "gain_over_base"}),
        ({"swap": 7.9}, {"swap_drop"}),
        ({"step": -0.01}, {"strength_monotone"}),
        ({"step": 0.0}, {"strength_monotone"}),
        ({"kept": 0.4}, {"mask_local"}),
    ],
)
def test_restoration_verdicts(change: dict[str, float], failing: set[str]) -> None:
    judged = judge("restoration", results(**change))
    assert {verdict["name"] for verdict in judged if not verdict["passed"]} == failing
    assert all(verdict["by_source"]["n"] == 4 for verdict in judged)


def colours(ours: float, base: float, luma: float) -> Results:
    """Invented colorize values: chroma errors of ours and base + reference (input 10), luma against a ceiling of 35."""
    one = np.ones(12)
    chroma = {"adapter+reference": ours * one, "base+reference": base * one, "input": 10 * one, "ceiling": one}
    cells = {name: {"chroma_error": values, "psnr_y": 35 * one} for name, values in chroma.items()}
    cells["adapter+reference"]["psnr_y"] = luma * one
    return Results(cells, [], {"kept": one, "dropped": 9 * one}, ["a", "b"] * 6)


@pytest.mark.parametrize(
    ("values", "failing"),
    [
        ((7.0, 10.0, 33.0), set()),
        ((8.5, 10.0, 33.0), {"chroma_ratio"}),
        ((7.0, 8.5, 33.0), {"base_grey"}),
        ((7.0, 11.5, 33.0), {"base_grey"}),
        ((7.0, 10.0, 31.9), {"luma_kept"}),
    ],
)
def test_colorize_verdicts(values: tuple[float, float, float], failing: set[str]) -> None:
    assert {v["name"] for v in judge("colorize", colours(*values)) if not v["passed"]} == failing


@pytest.mark.parametrize(
    ("gap", "psnr", "failing"), [(0.2, 13.1, set()), (0.1, 13.1, {"edge_gap"}), (0.2, 12.9, {"picture"})]
)
def test_structure_verdicts(gap: float, psnr: float, failing: set[str]) -> None:
    one = np.ones(12)
    cells = {
        "adapter+reference": {"edge_gap": gap * one, "psnr": psnr * one},
        "base+reference": {"psnr": 10 * one},
    }
    judged = judge(
        "structure",
        Results(cells, [], {"kept": one, "dropped": 9 * one}, ["a", "b"] * 6),
    )
    assert {verdict["name"] for verdict in judged if not verdict["passed"]} == failing


def test_a_bound_asks_the_interval_too_and_says_so() -> None:
    gain = Bound(at_least=0.7, interval_above_zero=True, unit="dB")
    assert str(gain) == "≥ 0.7 dB, interval above 0"
    assert gain.holds({"mean": 0.8, "low": 0.1, "high": 1.5, "n": 24})
    assert not gain.holds({"mean": 0.8, "low": -0.1, "high": 1.7, "n": 24})
    assert not gain.holds({"mean": 0.8, "low": None, "high": None, "n": 1})

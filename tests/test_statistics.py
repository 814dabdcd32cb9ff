"""Intervals, significance tests and the strength curve, against SciPy, published values and constructed cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import isotonic_regression

from eval.judging.strength_curve import fade_correlation, isotonic, isotonic_r2, response_curve, spearman
from eval.statistics.estimates import BOOTSTRAP_FROM, estimate, estimate_by_source, ratio_per_unit
from eval.statistics.significance import EXACT_UP_TO, holm, page_trend, signed_rank


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
def test_intervals_cover_the_true_mean(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(200):
        interval = estimate(rng.normal(3, 1, n))
        assert interval["low"] is not None
        assert interval["high"] is not None
        hits += interval["low"] < 3 < interval["high"]
    assert 0.88 < hits / 200 < 0.995  # a percentile bootstrap of 20 is a little narrow: docs/evaluation.md


def test_nan_is_left_out_and_not_counted() -> None:
    assert estimate([1.0, np.nan, 3.0])["n"] == 2
    assert estimate([1.0, np.nan, 3.0])["mean"] == 2
    assert estimate_by_source(np.array([1.0, np.nan, np.nan]), ["a", "a", "b"])["n"] == 1
    with pytest.raises(ValueError, match="at least one unit"):
        estimate([np.nan])
    ratio = ratio_per_unit(np.array([1.0, 2.0, np.nan]), np.array([2.0, 4.0, 1.0]))
    assert ratio[:2] == pytest.approx([0.5, 0.5])
    assert np.isnan(ratio[2])


def test_windows_of_one_source_count_once() -> None:
    values = np.array([1.0, 1.0, 1.0, 1.0, 5.0])
    clustered = estimate_by_source(values, ["a", "a", "a", "a", "b"])
    assert (clustered["mean"], clustered["n"]) == (3, 2)


def test_the_ratio_is_the_ratio_of_means() -> None:
    above, below = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert ratio_per_unit(above, below) == pytest.approx([0.5, 0.5, 0.5])  # every unit has the same ratio
    assert ratio_per_unit(np.array([1.0, 5.0]), np.array([2.0, 4.0])).mean() == pytest.approx(1)
    assert (ratio_per_unit(above, 0 * below) == 1).all()


@pytest.mark.parametrize("n", [1, 5, 12, 24, EXACT_UP_TO])
def test_signed_rank_is_exact_without_ties(n: int) -> None:
    units = np.random.default_rng(n).normal(0.3, 1, n)
    expected = stats.wilcoxon(units, alternative="greater", method="exact").pvalue
    assert signed_rank(units) == pytest.approx(expected, rel=1e-12)


def test_signed_rank_gives_the_value_of_a_textbook_example() -> None:
    """Darwin's maize, in eighths of an inch (Fisher 1935): the rank sum is 96 of 120 (2 p = 0.041)."""
    darwin = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    p = signed_rank(np.array(darwin, np.float64))
    assert p is not None
    assert 2 * p == pytest.approx(0.041, abs=5e-4)


def test_signed_rank_with_ties_zeros_and_gaps() -> None:
    units = np.round(np.random.default_rng(0).normal(0.3, 1, 40), 1)
    expected = stats.wilcoxon(units, alternative="greater", method="asymptotic", correction=True).pvalue
    assert signed_rank(units) == pytest.approx(expected, rel=1e-9)
    assert signed_rank(np.array([*units, np.nan])) == signed_rank(units)
    assert signed_rank([0.0, 0.0]) == 1
    assert signed_rank([np.nan]) is None


def test_signed_rank_has_its_nominal_false_positive_rate() -> None:
    rng = np.random.default_rng(1)
    false = sum((signed_rank(rng.normal(0, 1, 16)) or 0) < 0.05 for _ in range(1000))
    assert 30 < false < 70


def test_holm_follows_the_procedure() -> None:
    """0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1; each value is at least the previous one, and none is above 1."""
    corrected = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert corrected == pytest.approx({"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_page_trend_agrees_with_scipy() -> None:
    table = np.random.default_rng(0).normal(size=(12, 7)) + np.arange(7) * 0.2
    assert page_trend(table) == pytest.approx(stats.page_trend_test(table, method="asymptotic").pvalue, rel=1e-9)
    table[0, 3] = np.nan
    assert page_trend(table) == pytest.approx(stats.page_trend_test(table[1:], method="asymptotic").pvalue, rel=1e-9)
    assert page_trend(table[:, :2]) is None
    falling = page_trend(table[:, ::-1])
    assert falling is not None
    assert falling > 0.5


def test_rank_correlation_and_monotone_fit_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.normal(size=9), np.round(rng.normal(size=9))
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
        assert isotonic(x) == pytest.approx(isotonic_regression(x).x)
    assert isotonic_r2(np.array([1.0, 2.0, 4.0])) == 1
    assert isotonic_r2(np.array([3.0, 2.0, 1.0])) == pytest.approx(0)
    assert isotonic_r2(np.ones(3)) == 0
    assert spearman(np.ones(3), np.arange(3.0)) == 0


def test_the_curve_gives_the_usable_range() -> None:
    strengths = [0, 0.05, 0.1, 0.25, 0.5, 0.75, 1]
    effect = np.array([10.0, 10.5, 12, 20, 28, 29.5, 30])
    result = response_curve(strengths, np.stack([effect - 1, effect, effect + 1]))
    assert result is not None
    assert (result["dead_zone"], result["saturation"]) == (0.05, 0.75)  # 2.5 % and 97.5 % of the 20 dB
    assert result["s50"] == pytest.approx(0.25)
    assert result["largest_step"] == pytest.approx(0.4)
    assert result["spearman"]["mean"] == result["isotonic_r2"]["mean"] == pytest.approx(1)
    assert result["page_p"] is not None
    assert result["page_p"] < 1e-4


def test_a_curve_without_effect_has_no_range() -> None:
    flat = response_curve([0, 0.5, 1], np.full((4, 3), 7.0))
    assert flat is not None
    assert (flat["s50"], flat["dead_zone"], flat["largest_step"]) == (None, None, None)
    assert flat["isotonic_r2"]["mean"] == 0
    falling = response_curve([0, 0.5, 1], np.tile([3.0, 2.0, 1.0], (8, 1)))
    assert falling is not None
    assert falling["spearman"]["mean"] == -1
    assert falling["s50"] is None
    assert response_curve([0, 1], np.full((2, 2), np.nan)) is None
    with pytest.raises(ValueError, match="must rise"):
        response_curve([1, 0], np.zeros((2, 2)))


def test_fade_correlation_follows_the_ramp() -> None:
    effects = np.array([[0.0, 0.7, 1.0], [1.0, 0.5, 0.0], [0.5, 0.5, 0.5], [0.1, np.nan, 1.0]])
    result = fade_correlation([0, 0.5, 1], effects)
    assert result[0] == pytest.approx(np.corrcoef([0, 0.5, 1], effects[0])[0, 1])
    assert result[1] == pytest.approx(-1)
    assert np.isnan(result[2:]).all()

"""Intervals, significance tests and the strength curve, against SciPy, published values and constructed cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import isotonic_regression

from eval.judging.strength_curve import fade_correlation, isotonic, isotonic_r2, response_curve, spearman
from eval.statistics import student_t
from eval.statistics.estimates import estimate, estimate_by_source, ratio_per_unit, recording_means
from eval.statistics.significance import holm, p_above, page_trend, two_sided_p

TYPICAL = np.repeat(np.arange(7), [4, 4, 4, 3, 3, 3, 3])  # the recording of each of 24 windows


def clustered(rng: np.random.Generator, recordings: np.ndarray, icc: float) -> np.ndarray:
    """Windows with mean 0 and variance 1, of which the share `icc` is common to the windows of a recording."""
    common = rng.normal(0, icc**0.5, recordings.max() + 1)[recordings]
    return common + rng.normal(0, (1 - icc) ** 0.5, len(recordings))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 11, 30])
def test_student_t_agrees_with_scipy(freedom: int) -> None:
    for t in (-3.0, 0.0, 0.5, 2.0, 10.0):
        assert student_t.upper_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), abs=1e-12)
    assert student_t.two_sided_quantile(0.95, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-9)


def test_the_interval_is_student_t_over_recordings() -> None:
    few = estimate([0.5, 1.5, 2.0, 3.0], ["a", "a", "b", "c"])  # means 1, 2, 3; t(2) = 4.303
    assert few["low"] == pytest.approx(2 - 4.303 / 3**0.5, abs=1e-3)
    assert few["high"] == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3)
    assert (few["mean"], few["n"]) == (2, 4)
    assert estimate([5.0, 7.0], ["a", "a"]) == {"mean": 6, "low": None, "high": None, "n": 2}


UNEVEN = np.repeat(np.arange(4), [1, 1, 1, 21])


@pytest.mark.parametrize("icc", [0.0, 0.37, 0.51])
@pytest.mark.parametrize(
    "recordings",
    [TYPICAL, UNEVEN, np.repeat(np.arange(3), [2, 3, 8]), np.repeat(np.arange(12), 2)],
    ids=["7", "4", "3", "12"],
)
def test_intervals_cover_and_tests_err_as_they_say(recordings: np.ndarray, icc: float) -> None:
    """Nominal 95 % and 5 %, with windows of a recording that are alike; an interval over windows covers 79 %."""
    rng, draws = np.random.default_rng(6), 4000
    names, covered, wrong = recordings.tolist(), 0, 0
    for _ in range(draws):
        values = clustered(rng, recordings, icc)
        interval, p = estimate(values, names), p_above(values, names)
        assert interval["low"] is not None
        assert interval["high"] is not None
        assert p is not None
        covered += interval["low"] < 0 < interval["high"]
        wrong += p < 0.05
    assert 0.93 <= covered / draws <= 0.98
    assert 0.035 <= wrong / draws <= 0.06


def test_skewed_values_err_on_one_side_as_the_documentation_says() -> None:
    """Exponential values: 1 to 2 % on the side of the long tail, 10 to 13 % on the other, at a nominal 5 %."""
    rng, draws, names = np.random.default_rng(7), 3000, UNEVEN.tolist()
    wrong = np.zeros(2)
    for _ in range(draws):
        common = (rng.exponential(1, 4) - 1)[UNEVEN] * 0.45**0.5
        values = common + (rng.exponential(1, len(UNEVEN)) - 1) * 0.55**0.5
        p = p_above(values, names)
        assert p is not None
        wrong += [p < 0.05, p > 0.95]
    long_tail, other = (wrong / draws).tolist()
    assert 0.005 <= long_tail <= 0.03
    assert 0.09 <= other <= 0.14


def test_interval_and_test_agree() -> None:
    """p against an end of the 95 % interval is 2.5 %."""
    values, names = clustered(np.random.default_rng(0), TYPICAL, 0.4), TYPICAL.tolist()
    interval = estimate(values, names)
    assert interval["low"] is not None
    assert p_above(values, names, interval["low"]) == pytest.approx(0.025, abs=1e-6)
    expected = stats.ttest_1samp(recording_means(values, names), 0.3, alternative="greater").pvalue
    assert p_above(values, names, 0.3) == pytest.approx(expected)
    assert two_sided_p(values, names) == pytest.approx(stats.ttest_1samp(recording_means(values, names), 0).pvalue)
    assert p_above([1.0, 2.0], ["a", "a"]) is None
    assert two_sided_p([1.0, 2.0], ["a", "a"]) is None


def test_equal_values_are_certain() -> None:
    assert p_above([1.0, 1.0], ["a", "b"], 0.5) == 0
    assert p_above([1.0, 1.0], ["a", "b"], 1.0) == 1


def test_nan_is_left_out_and_not_counted() -> None:
    assert estimate([1.0, np.nan, 3.0], list("abc")) == estimate([1.0, 3.0], list("ac"))
    assert estimate([1.0, np.nan, 3.0], list("abc"))["n"] == 2
    assert estimate_by_source(np.array([1.0, np.nan, np.nan]), ["a", "a", "b"])["n"] == 1
    with pytest.raises(ValueError, match="at least one unit"):
        estimate([np.nan], list("a"))
    ratio = ratio_per_unit(np.array([1.0, 2.0, np.nan]), np.array([2.0, 4.0, 1.0]), list("abc"))
    assert ratio[:2] == pytest.approx([0.5, 0.5])
    assert np.isnan(ratio[2])


def test_recordings_weigh_the_same() -> None:
    values, names = np.array([1.0, 1.0, 1.0, 1.0, 5.0]), ["a", "a", "a", "a", "b"]
    by_source = estimate_by_source(values, names)
    assert (by_source["mean"], by_source["n"]) == (3, 2)
    assert estimate(values, names) == {**by_source, "n": 5}


def test_the_ratio_is_the_ratio_of_means() -> None:
    above, below = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert ratio_per_unit(above, below, list("abc")) == pytest.approx(
        [0.5, 0.5, 0.5]
    )  # every window has the same ratio
    ratio = ratio_per_unit(np.array([1.0, 5.0, 9.0]), np.array([2.0, 4.0, 4.0]), list("aab"))
    assert recording_means(ratio, list("aab")).mean() == pytest.approx((3 + 9) / (3 + 4))
    assert (ratio_per_unit(above, 0 * below, list("abc")) == 1).all()


def test_holm_follows_the_procedure() -> None:
    """0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1; each value is at least the previous one, and none is above 1."""
    corrected = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert corrected == pytest.approx({"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_page_trend_agrees_with_scipy() -> None:
    table = np.random.default_rng(0).normal(size=(12, 7)) + np.arange(7) * 0.2
    each = [f"{i}" for i in range(12)]
    assert page_trend(table, each) == pytest.approx(stats.page_trend_test(table, method="asymptotic").pvalue, rel=1e-9)
    pairs = table.reshape(6, 2, 7).mean(1)  # two windows of each recording are averaged
    of_pairs = stats.page_trend_test(pairs, method="asymptotic").pvalue
    assert page_trend(table, [f"{i // 2}" for i in range(12)]) == pytest.approx(of_pairs, rel=1e-9)
    table[0, 3] = np.nan
    without_first = stats.page_trend_test(table[1:], method="asymptotic").pvalue
    assert page_trend(table, each) == pytest.approx(without_first, rel=1e-9)
    assert page_trend(table[:, :2], each) is None
    falling = page_trend(table[:, ::-1], each)
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
    result = response_curve(strengths, np.stack([effect - 1, effect, effect + 1]), list("abc"))
    assert result is not None
    assert (result["dead_zone"], result["saturation"]) == (0.05, 0.75)  # 2.5 % and 97.5 % of the 20 dB
    assert result["s50"] == pytest.approx(0.25)
    assert result["largest_step"] == pytest.approx(0.4)
    assert result["spearman"]["mean"] == result["isotonic_r2"]["mean"] == pytest.approx(1)
    assert result["page_p"] is not None
    assert result["page_p"] < 1e-4


def test_a_curve_without_effect_has_no_range() -> None:
    flat = response_curve([0, 0.5, 1], np.full((4, 3), 7.0), list("abcd"))
    assert flat is not None
    assert (flat["s50"], flat["dead_zone"], flat["largest_step"]) == (None, None, None)
    assert flat["isotonic_r2"]["mean"] == 0
    falling = response_curve([0, 0.5, 1], np.tile([3.0, 2.0, 1.0], (8, 1)), list("abcdefgh"))
    assert falling is not None
    assert falling["spearman"]["mean"] == -1
    assert falling["s50"] is None
    assert response_curve([0, 1], np.full((2, 2), np.nan), list("ab")) is None
    with pytest.raises(ValueError, match="must rise"):
        response_curve([1, 0], np.zeros((2, 2)), list("ab"))


def test_fade_correlation_follows_the_ramp() -> None:
    effects = np.array([[0.0, 0.7, 1.0], [1.0, 0.5, 0.0], [0.5, 0.5, 0.5], [0.1, np.nan, 1.0]])
    result = fade_correlation([0, 0.5, 1], effects)
    assert result[0] == pytest.approx(np.corrcoef([0, 0.5, 1], effects[0])[0, 1])
    assert result[1] == pytest.approx(-1)
    assert np.isnan(result[2:]).all()

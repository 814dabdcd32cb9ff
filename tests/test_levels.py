"""The bend of the levels: a gamma shows, a dark target raises no false alarm, and a short range is not judged."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import cv2
import numpy as np
import pytest

from eval.judging.symptoms import find_symptoms
from eval.metrics.base import CachedClip, Clip
from eval.metrics.levels import level_fit
from tests import doses
from tests.doses import scene
from tests.scores_example import example

ORDINARY, DARK = 1.0, 0.4  # share of the full range that the targets have; the dark ones have levels up to 102
WINDOWS = 24


def fit(output: Clip, target: Clip) -> dict[str, float]:
    return level_fit(CachedClip(output).grey, CachedClip(target).grey)


def target_of(seed: int, share: float) -> Clip:
    """A scene from 0 to share x 255 levels, with more contrast between its blocks than `scene` has."""
    return doses.levels(share * np.clip(128 + 1.8 * (scene(seed).astype(float) - 128), 0, 255))


def mean_bend(damage: Callable[[Clip], Clip], share: float) -> float:
    """Mean bend of damaged scenes, over those with enough levels, as the evaluation averages it over windows."""
    targets = [target_of(seed, share) for seed in range(WINDOWS)]
    bends = [values["level_bend"] for x in targets if "level_bend" in (values := fit(damage(x), x))]
    assert len(bends) > WINDOWS / 2
    return float(np.mean(bends))


def level_of(bend: float | None, slope: float = 1.0) -> tuple[str, str]:
    """Level and reason of the symptom for a mean bend; None: not measured."""
    scores: dict[str, Any] = deepcopy(example())
    for row in ("adapter+reference", "ceiling"):
        cells = scores["cells"][row]
        cells["level_slope"]["mean"] = cells["level_offset"]["mean"] = cells["level_bend"]["mean"] = 0.0
        if bend is None:
            del cells["level_bend"]
    output = scores["cells"]["adapter+reference"]
    output["level_slope"]["mean"] = slope - 1
    if bend is not None:
        output["level_bend"]["mean"] = bend
    flag = next(flag for flag in find_symptoms(scores) if flag["symptom"] == "wrong levels")
    return flag["level"], flag["reason"]


def of_a_generative_model(spread: float) -> Callable[[Clip], Clip]:
    """Smooth random errors of brightness, as of a model that guesses the light: the same in all frames of a clip."""
    rng = np.random.default_rng(0)

    def damage(clip: Clip) -> Clip:
        height, width = clip.shape[1:3]
        coarse = rng.normal(0, spread, (4, 4)).astype(np.float32)
        return doses.levels(clip + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None])

    return damage


@pytest.mark.parametrize(("exponent", "level"), [(1.1, "warn"), (1.2, "bad"), (1.4, "bad"), (0.8, "bad")])
def test_a_gamma_of_ordinary_clips_is_seen(exponent: float, level: str) -> None:
    assert level_of(mean_bend(lambda clip: doses.gamma(clip, exponent), ORDINARY))[0] == level


def test_a_strong_gamma_of_dark_clips_is_seen() -> None:
    assert level_of(mean_bend(lambda clip: doses.gamma(clip, 1.4), DARK))[0] == "warn"
    assert level_of(mean_bend(lambda clip: doses.gamma(clip, 1.05), DARK))[0] == "ok"


@pytest.mark.parametrize("share", [ORDINARY, DARK])
@pytest.mark.parametrize("spread", [2, 4])
def test_random_errors_of_brightness_are_no_gamma(share: float, spread: float) -> None:
    """Extrapolated to 0..255, dark clips with these errors would have a bend several times as large."""
    assert level_of(mean_bend(of_a_generative_model(spread), share))[0] == "ok"


def test_another_contrast_and_black_do_not_bend() -> None:
    target = scene() // 4 * 4
    values = fit(target // 4 * 3 + 20, target)
    assert values["level_slope"] == pytest.approx(0.75, abs=0.01)
    assert values["level_offset"] == pytest.approx(20, abs=0.5)
    assert values["level_bend"] == pytest.approx(0, abs=0.1)


def test_a_lamp_in_a_dark_clip_does_not_widen_the_range() -> None:
    dark = doses.levels(60 + 0.12 * scene().astype(float))
    dark[:, :8, :8] = 250
    assert "level_bend" not in fit(dark, dark)


def test_a_short_range_has_contrast_but_no_bend_and_the_symptom_says_so() -> None:
    target = doses.levels(100 + 0.4 * scene().astype(float))
    assert fit(doses.gamma(target, 1.4), target).keys() == {"level_slope", "level_offset"}
    level, reason = level_of(None)
    assert (level, "too few levels in the targets" in reason) == ("ok", True)
    assert level_of(None, slope=0.8)[0] == "bad"

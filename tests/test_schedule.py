"""Noise levels of sampling, against diffusers' scheduler and the published numbers."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from iclora_train.config import ConfigError, Flow, Sampling
from iclora_train.diffusion.flow_matching import sigma_shift
from iclora_train.diffusion.noise_schedule import DISTILLED, DISTILLED_STAGE2, dev_schedule, make_sigmas, sigma_schedule

OFFICIAL = {  # scheduler/scheduler_config.json of the LTX-2 repositories
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


@pytest.mark.parametrize("steps", [2, 30, 40])
@pytest.mark.parametrize("tokens", [48, 1024, 4096, 8160])
def test_the_dev_schedule_equals_diffusers(steps: int, tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**OFFICIAL)
    mu = 0.95 + (2.05 - 0.95) / (4096 - 1024) * (tokens - 1024)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
    assert dev_schedule(steps, tokens) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_the_dev_schedule_ends_at_its_terminal_level_and_may_have_one_step() -> None:
    levels = dev_schedule(30)
    assert (levels[0], levels[-2], levels[-1]) == pytest.approx((1.0, 0.1, 0.0))
    assert dev_schedule(30, terminal=0.02)[-2] == pytest.approx(0.02)
    assert dev_schedule(1) == [1.0, 0.0]


def test_stage_2_is_the_end_of_the_distilled_schedule() -> None:
    assert DISTILLED == (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
    assert DISTILLED_STAGE2 == (0.909375, 0.725, 0.421875, 0.0)


@pytest.mark.parametrize("shift", [0.95, 2.05])
def test_the_shifted_schedule_multiplies_the_odds_of_even_levels(shift: float) -> None:
    levels = sigma_schedule(4, shift)
    assert [levels[0], levels[-1]] == [1.0, 0.0]
    odds = [level / (1 - level) for level in levels[1:-1]]  # the shift multiplies the odds by e^shift
    assert odds == pytest.approx([np.exp(shift) * even for even in (3.0, 1.0, 1 / 3)])


def test_make_sigmas_follows_the_setting() -> None:
    flow, tokens = Flow(), 2048
    assert make_sigmas(Sampling(), flow, tokens) == sigma_schedule(8, sigma_shift(tokens, flow))
    assert make_sigmas(Sampling(schedule="distilled"), flow, tokens) == list(DISTILLED)
    assert make_sigmas(Sampling(schedule="dev", steps=30), flow, tokens) == dev_schedule(30, 4096)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"schedule": "euler"}, "sample.schedule='euler' is not one of shifted, distilled, dev"),
        ({"schedule": "distilled", "steps": 4}, "sample.steps=4: sample.schedule=distilled has 8 steps"),
        ({"stg_scale": -1.0}, "sample.stg_scale=-1.0"),
        ({"stg_blocks": [-1]}, "sample.stg_blocks"),
        ({"rescale": 1.5}, "sample.rescale=1.5"),
    ],
)
def test_settings_out_of_bounds_name_their_key(settings: dict, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        Sampling(**settings)
    assert key in str(error.value)

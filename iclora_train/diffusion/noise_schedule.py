"""Noise levels of sampling, from the first step's level down to 0: distilled, dev and shifted schedules."""

from __future__ import annotations

import math

from iclora_train.config import Flow, Sampling
from iclora_train.diffusion.flow_matching import sigma_shift

# Distilled LTX-2 models (ltx-pipelines): all 8 steps, and the 3 steps that refine a clip after the latent upsampler.
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
DISTILLED_STAGE2 = DISTILLED[5:]

_DEV = Flow(clamp_shift=False)  # LTX2Scheduler has the anchors of training, without the clamp
DEV_TOKENS = 4096  # ltx-pipelines' dev pipelines use the shift of this size for all clips


def sigma_schedule(steps: int, shift: float) -> list[float]:
    """`steps` + 1 noise levels from 1 to 0: even steps s, shifted towards noise by e^shift / (e^shift + 1/s - 1)."""
    even = [1 - i / steps for i in range(1, steps)]
    return [1.0, *(math.exp(shift) / (math.exp(shift) + 1 / s - 1) for s in even), 0.0]


def dev_schedule(steps: int, tokens: int = DEV_TOKENS, terminal: float = 0.1) -> list[float]:
    """`steps` + 1 noise levels from 1 to 0, as Lightricks' LTX2Scheduler computes them.

    The shift depends on the number of target tokens (f h w). Then 1 - sigma is stretched so that the last level before
    0 is `terminal`. A single step has no level to stretch: (1, 0).
    """
    levels = sigma_schedule(steps, sigma_shift(tokens, _DEV))
    if steps == 1:
        return levels
    stretch = (1 - levels[-2]) / (1 - terminal)
    return [*(1 - (1 - level) / stretch for level in levels[:-1]), 0.0]


def make_sigmas(config: Sampling, flow: Flow, tokens: int) -> list[float]:
    """The noise levels of `sample.schedule` for clips of `tokens` target tokens (f h w).

    shifted: even steps with the shift of the training distribution. distilled: the 8 steps of the distilled models.
    dev: LTX2Scheduler as ltx-pipelines calls it.
    """
    if config.schedule == "distilled":
        return list(DISTILLED)
    if config.schedule == "dev":
        return dev_schedule(config.steps)
    return sigma_schedule(config.steps, sigma_shift(tokens, flow))

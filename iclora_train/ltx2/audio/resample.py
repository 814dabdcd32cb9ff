"""Change the sample rate as Lightricks' encoders do, so that the audio VAE gets the samples that it was trained on.

The formula is that of torchaudio.functional.resample with its defaults: interpolation by sinc(t) cos^2(pi t / 12) for
|t| < 6, with t in periods of 0.99 times the lower of both rates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

CROSSINGS = 6  # zero crossings of the filter on each side
ROLLOFF = 0.99  # share of the lower rate that is kept
LARGEST = 1 << 24  # values of the filters; rates with few common factors need more


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """Waveforms (B,channels,S) at `rate` -> (B,channels,S new_rate / rate rounded up) at `new_rate`, fp32.

    ValueError for rates with so few common factors that each output sample would need a filter of its own."""
    step, phases, cutoff, reach = _sizes(rate, new_rate)
    if step == phases:
        return waveform.float()
    if not can_resample(rate, new_rate):
        raise ValueError(f"{rate} samples per second cannot be changed to {new_rate}: convert the sound to 48000")
    filters = _filters(step, phases, cutoff, reach).to(waveform.device)
    padded = functional.pad(waveform.float().flatten(0, 1)[:, None], (reach, reach + step))
    blocks = functional.conv1d(padded, filters[:, None], stride=step)  # (B channels,phases,blocks)
    result = blocks.transpose(1, 2).flatten(1).unflatten(0, waveform.shape[:2])
    return result[..., : -(-waveform.shape[2] * phases // step)]


def can_resample(rate: int, new_rate: int) -> bool:
    """Whether the filters of `resample` are few enough."""
    step, phases, _, reach = _sizes(rate, new_rate)
    return phases * (2 * reach + step) <= LARGEST


def _sizes(rate: int, new_rate: int) -> tuple[int, int, float, int]:
    """`phases` output samples for every `step` input samples; the cutoff; input samples before and after."""
    divisor = math.gcd(rate, new_rate)
    step, phases = rate // divisor, new_rate // divisor
    cutoff = min(step, phases) * ROLLOFF
    return step, phases, cutoff, math.ceil(CROSSINGS * step / cutoff)


def _filters(step: int, phases: int, cutoff: float, reach: int) -> Tensor:
    """The filter of each output sample of a block (phases, 2 reach + step), fp32."""
    places = torch.arange(-reach, reach + step, dtype=torch.float64) / step  # of input samples, in blocks
    centres = torch.arange(phases, dtype=torch.float64)[:, None] / phases
    t = ((places - centres) * cutoff).clamp(-CROSSINGS, CROSSINGS)
    window = (math.pi * t / (2 * CROSSINGS)).cos().square()
    return (torch.sinc(t) * window * cutoff / step).float()

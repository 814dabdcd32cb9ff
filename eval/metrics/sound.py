"""How near a sound is to another one, such as a generated sound to that of its target.

SI-SDR is torchmetrics'. The other protocols are ours, on mono at 16 kHz, mel frames of 10 ms and 64 bins up to 8 kHz
(the front end of LTX-2's audio VAE). Levels are in dB, down to 60 dB below the loudest level of the target; what is
quieter counts as that.

    mel_distance          root mean square of the difference of the two mel spectrograms over all bins and frames
    loudness_difference   level of the output minus level of the target (root mean square of all samples)
    envelope_correlation  Pearson correlation of the loudness of the frames: loud and silent at the same times
    onset_agreement       Pearson correlation of the onset strength of the frames: something begins at the same times
    onset_lag             seconds by which the onsets of the output come later than those of the target: the shift, up
                          to half a second, of the largest correlation

The onset strength of a frame is the spectral flux: the mean rise of the bins since the frame before (Dixon, Onset
Detection Revisited, DAFx 2006, in dB). A metric that is not defined is absent: SI-SDR and correlations of silence, and
correlations of sounds that never change.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from eval.metrics.base import Metric
from iclora_train.core.types import Sound
from iclora_train.ltx2.audio.mel import MelFrontEnd
from iclora_train.ltx2.audio.resample import resample

METRICS = (
    Metric("si_sdr", "SI-SDR", "dB", "high", "sound"),
    Metric("mel_distance", "distance of the mel spectrograms", "dB", "low", "sound"),
    Metric("loudness_difference", "loudness above the target's", "dB", None, "sound"),
    Metric("envelope_correlation", "correlation of the loudness", "", "high", "sound"),
    Metric("onset_agreement", "correlation of the onsets", "", "high", "sound"),
    Metric("onset_lag", "onsets later than the target's", "s", None, "sound"),
)
RATE, HOP, WINDOW, BINS = 16000, 160, 1024, 64  # samples per second, per frame and of a spectrum; mel bins
FRAMES_PER_SECOND = RATE // HOP
RANGE = 60.0  # dB below the loudest level that count
LONGEST_LAG = FRAMES_PER_SECOND // 2  # frames
SHORTEST = 0.1  # seconds
_SILENT = 1e-5  # root mean square, -100 dB of full scale: one step of 16 bits is 3e-5


def sound_agreement(output: Sound, target: Sound) -> dict[str, float]:
    """The metrics of METRICS that are defined, over the length of the shorter sound.

    ValueError if it is shorter than SHORTEST seconds.
    """
    seconds = min(output.seconds, target.seconds)
    if seconds < SHORTEST:
        raise ValueError(f"{seconds:.3f} s of sound are too short to compare: {SHORTEST} s are needed")
    ours, theirs = (mono(sound)[: round(seconds * RATE)] for sound in (output, target))
    length = min(len(ours), len(theirs))
    ours, theirs = ours[:length], theirs[:length]
    values = {"loudness_difference": level(ours) - level(theirs)}
    if not is_silent(ours) and not is_silent(theirs):
        values["si_sdr"] = float(scale_invariant_signal_distortion_ratio(ours, theirs, zero_mean=True))
    bins = [mel_levels(samples) for samples in (ours, theirs)]
    floor = float(bins[1].max()) - RANGE
    bins = [part.clamp(min=floor) for part in bins]
    values["mel_distance"] = float((bins[0] - bins[1]).square().mean().sqrt())
    envelopes = [frame_levels(samples) for samples in (ours, theirs)]
    floor = float(envelopes[1].max()) - RANGE
    correlations = {
        "envelope_correlation": correlation(*(envelope.clamp(min=floor) for envelope in envelopes)),
        "onset_agreement": correlation(*(onset_strength(part) for part in bins)),
        "onset_lag": onset_lag(*(onset_strength(part) for part in bins)),
    }
    values |= {key: value for key, value in correlations.items() if value is not None}
    return {metric.key: values[metric.key] for metric in METRICS if metric.key in values}


def mono(sound: Sound) -> Tensor:
    """The mean of the channels (S,) at RATE."""
    samples = torch.from_numpy(np.ascontiguousarray(sound.samples))[None]
    return resample(samples, sound.rate, RATE)[0].mean(0)


def is_silent(samples: Tensor) -> bool:
    return float(samples.square().mean().sqrt()) < _SILENT


def level(samples: Tensor) -> float:
    """Root mean square in dB of full scale, at least that of _SILENT."""
    return 20 * math.log10(max(float(samples.square().mean().sqrt()), _SILENT))


def mel_levels(samples: Tensor) -> Tensor:
    """The mel spectrogram (L,M) in dB of (S,)."""
    logarithm: Tensor = _front_end()(samples[None, None])[0, 0]
    return logarithm * (20 / math.log(10))


@cache
def _front_end() -> MelFrontEnd:
    return MelFrontEnd(RATE, WINDOW, HOP, BINS)


def frame_levels(samples: Tensor) -> Tensor:
    """Loudness (n,) in dB of pieces of HOP samples."""
    pieces = samples[: len(samples) // HOP * HOP].unflatten(0, (-1, HOP))
    return 20 * pieces.square().mean(1).sqrt().clamp(min=_SILENT).log10()


def onset_strength(bins: Tensor) -> Tensor:
    """Mean rise (L-1,) in dB of mel bins (L,M) since the frame before."""
    return bins.diff(dim=0).clamp(min=0).mean(1)


def correlation(ours: Tensor, theirs: Tensor) -> float | None:
    """Pearson correlation of two series (n,); None if one of them is constant."""
    a, b = (series.double() - series.double().mean() for series in (ours, theirs))
    norm = float(a.norm() * b.norm())
    return None if norm < 1e-9 * len(a) else float(a @ b) / norm


def onset_lag(ours: Tensor, theirs: Tensor) -> float | None:
    """Seconds of the shift with the largest correlation of two onset strengths (n,), at most LONGEST_LAG frames or half
    of the series; of equal ones the smallest shift. None if none is defined."""
    count = len(ours)
    best: tuple[float, int] | None = None
    for lag in sorted(range(-min(LONGEST_LAG, count // 2), min(LONGEST_LAG, count // 2) + 1), key=abs):
        shifted = (ours[lag:], theirs[: count - lag]) if lag >= 0 else (ours[:lag], theirs[-lag:])
        value = correlation(*shifted)
        if value is not None and (best is None or value > best[0] + 1e-9):
            best = value, lag
    return None if best is None else best[1] / FRAMES_PER_SECOND

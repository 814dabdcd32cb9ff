"""Metrics of sound: values of sounds whose distance is known, sounds without a value, and the command."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval.metrics.sound import METRICS, RANGE, sound_agreement
from eval.sound import main
from iclora_train.core.types import Sound
from iclora_train.media.shard_clip import encode_clip
from iclora_train.media.sound import encode_wav
from tests.clips import moving

RATE, SECONDS = 24000, 2.0
TIMES = (0.2, 0.55, 0.9, 1.5)  # of clicks
RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 0.1, (2, round(SECONDS * RATE))).astype(np.float32)


def bursts(times: tuple[float, ...] = TIMES, rate: int = RATE, gain: float = 1.0) -> Sound:
    """Short bursts of a tone that decay, at these times."""
    t = np.arange(round(SECONDS * rate)) / rate
    samples = sum(np.sin(2 * np.pi * 880 * (t - s)) * np.exp(-(t - s) * 30) * (t >= s) for s in times)
    return Sound(np.tile(gain * 0.3 * np.asarray(samples, np.float32), (2, 1)).astype(np.float32), rate)


def sound(samples: np.ndarray) -> Sound:
    return Sound(samples.astype(np.float32), RATE)


def test_equal_sounds_agree_perfectly() -> None:
    values = sound_agreement(bursts(), bursts())
    assert values["mel_distance"] == 0
    assert values["loudness_difference"] == 0
    assert values["envelope_correlation"] == pytest.approx(1)
    assert values["onset_agreement"] == pytest.approx(1)
    assert values["onset_lag"] == 0
    assert values["si_sdr"] > 60
    assert list(values) == [metric.key for metric in METRICS]


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_a_change_of_level_moves_levels_alone(gain: float) -> None:
    """si_sdr and the correlations do not depend on the level; the distance of the mel spectrograms is the change."""
    values, decibels = sound_agreement(sound(gain * NOISE), sound(NOISE)), 20 * math.log10(gain)
    assert values["loudness_difference"] == pytest.approx(decibels, abs=1e-3)
    assert values["mel_distance"] == pytest.approx(abs(decibels), abs=1e-3)
    assert values["envelope_correlation"] == pytest.approx(1, abs=1e-4)
    assert values["si_sdr"] > 60


@pytest.mark.parametrize("ratio", [0.0, 10.0, 20.0])
def test_si_sdr_of_added_noise_is_the_ratio_of_the_powers(ratio: float) -> None:
    """Independent noise of a power that is `ratio` dB below the sound's."""
    other = np.random.default_rng(1).normal(0, 0.1 * 10 ** (-ratio / 20), NOISE.shape)
    assert sound_agreement(sound(NOISE + other), sound(NOISE))["si_sdr"] == pytest.approx(ratio, abs=0.3)


@pytest.mark.parametrize("late", [0.1, -0.05, 0.3])
def test_the_lag_of_onsets_is_found(late: float) -> None:
    values = sound_agreement(bursts(tuple(time + late for time in TIMES)), bursts())
    assert values["onset_lag"] == pytest.approx(late, abs=0.011)
    assert values["onset_agreement"] < 0.3


def test_other_times_agree_less_than_another_sound_at_the_same_times() -> None:
    """A burst of noise in place of a tone begins at the same time; the same tones elsewhere do not."""
    hits = np.zeros_like(NOISE)
    for time in TIMES:
        begin = round(time * RATE)
        hits[:, begin : begin + 1200] = NOISE[:, :1200] * np.exp(-np.arange(1200) / 400)
    same_times = sound_agreement(sound(hits), bursts())
    other_times = sound_agreement(bursts((0.05, 0.4, 1.2, 1.8)), bursts())
    assert same_times["onset_agreement"] > 0.6
    assert other_times["onset_agreement"] < 0.3
    assert same_times["envelope_correlation"] > other_times["envelope_correlation"]
    assert same_times["mel_distance"] > 3


def test_rates_and_channels_do_not_matter() -> None:
    high, mono = bursts(rate=48000), Sound(bursts().samples[:1], RATE)
    for other in (high, mono, Sound(bursts(rate=44100).samples, 44100)):
        values = sound_agreement(other, bursts())
        assert values["onset_agreement"] > 0.99
        assert values["mel_distance"] < 1.5
        assert abs(values["loudness_difference"]) < 0.1


def test_silence_has_no_ratio_and_no_correlation_and_is_far_away() -> None:
    silence = sound(np.zeros_like(NOISE))
    values = sound_agreement(silence, bursts())
    assert {"si_sdr", "envelope_correlation", "onset_agreement", "onset_lag"}.isdisjoint(values)
    assert values["loudness_difference"] < -RANGE
    assert 0 < values["mel_distance"] <= RANGE
    both = sound_agreement(silence, silence)
    assert both == {"mel_distance": 0.0, "loudness_difference": 0.0}


def test_the_shorter_sound_sets_the_length_and_nothing_is_too_short() -> None:
    long, short = bursts((0.2, 0.55, 1.5)), bursts((0.2, 0.55, 1.8))  # alike for 1.5 s
    begin = Sound(short.samples[:, : round(1.4 * RATE)], RATE)
    assert sound_agreement(begin, long)["mel_distance"] < 0.1
    assert sound_agreement(long, begin)["onset_agreement"] > 0.99
    assert sound_agreement(short, long)["mel_distance"] > 3
    with pytest.raises(ValueError, match=r"0.050 s of sound are too short to compare"):
        sound_agreement(Sound(NOISE[:, : RATE // 20], RATE), bursts())


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`python -m eval.sound arguments`: the exit code, stdout and stderr."""

    def start(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eval.sound", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as ending:
            code = int(ending.code or 0)
        return code, *capsys.readouterr()

    return start


def test_the_command_prints_a_table_or_json(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    late, clip, quiet, silent = (tmp_path / name for name in ("a.wav", "b.mp4", "quiet.wav", "silent.mp4"))
    late.write_bytes(encode_wav(bursts(tuple(time + 0.1 for time in TIMES))))
    clip.write_bytes(encode_clip(moving(50, 64, 64), 25, lossless=False, sound=bursts()))
    quiet.write_bytes(encode_wav(Sound(np.zeros((2, RATE), np.float32), RATE)))
    silent.write_bytes(encode_clip(moving(9, 64, 64), 25, lossless=False))
    code, shown, _ = command(late, clip)
    assert code == 0
    assert "onset_lag" in shown
    code, text, _ = command(late, clip, "--json")
    values = json.loads(text)
    assert code == 0
    assert list(values) == [metric.key for metric in METRICS]
    assert values["onset_lag"] == pytest.approx(0.1, abs=0.021)
    assert json.loads(command(quiet, clip, "--json")[1])["si_sdr"] is None
    assert "not defined" in command(quiet, clip)[1]
    for file, message in ((silent, "it has no sound"), (tmp_path / "missing.wav", "missing.wav")):
        code, _, error = command(file, clip)
        assert code == 2
        assert message in error
        assert error.startswith("error: ")

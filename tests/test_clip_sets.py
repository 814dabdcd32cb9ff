"""FVD and KVD: distances of sets of features against analytic cases and torchmetrics, and their intervals."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torchmetrics.image.fid import _compute_fid

from eval.metrics.embeddings import video_features
from eval.metrics.extra import ClipFeatures, clip_features
from eval.report.tables import clip_sets as clip_sets_table
from eval.scoring.clip_sets import ClipSets
from eval.statistics.clip_sets import ClipSet, frechet, kernel_table, redrawn, set_estimate, with_redrawn
from iclora_train.config import ConfigError, Eval, Weights
from tests.doses import noise, scene
from tests.test_extra_metrics import write_dino, write_videomae

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(seed: int, count: int, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width))


def in_recordings(seed: int, recordings: int, alike: float, windows: int = 4, width: int = 6) -> np.ndarray:
    """Features (recordings x windows, D) of variance 1, of which the share `alike` is common to a recording."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((recordings, 1, width))
    own = rng.standard_normal((recordings, windows, width))
    return (alike**0.5 * shared + (1 - alike) ** 0.5 * own).reshape(-1, width)


@pytest.mark.parametrize("count", [4, 50])  # fewer and more clips than features
def test_frechet_distance_of_a_shifted_and_of_a_scaled_set(count: int) -> None:
    targets = normal(0, count)
    variance = targets.var(0, ddof=1).sum()
    assert frechet(targets, targets) == pytest.approx(0, abs=1e-9)
    assert frechet(targets + 2, targets) == pytest.approx(4 * targets.shape[1])
    centred = targets - targets.mean(0)
    assert frechet(3 * centred, centred) == pytest.approx(4 * variance)


def test_frechet_distance_agrees_with_torchmetrics() -> None:
    outputs, targets = normal(0, 80) @ normal(1, 6) + 1, normal(2, 40)
    moments = [torch.from_numpy(x) for set_ in (outputs, targets) for x in (set_.mean(0), np.cov(set_.T))]
    assert frechet(outputs, targets) == pytest.approx(float(_compute_fid(*moments)))


def test_kernel_distance_is_the_mean_over_pairs_of_clips_of_different_recordings() -> None:
    outputs, targets = normal(0, 5), normal(1, 4) + 1
    of_output, of_target = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2])

    def mean_kernel(a: np.ndarray, of_a: np.ndarray, b: np.ndarray, of_b: np.ndarray, r: int, s: int) -> float:
        return float(np.mean([(x @ y / 6 + 1) ** 3 for x in a[of_a == r] for y in b[of_b == s]]))

    sets = (outputs, of_output), (targets, of_target)
    expected = np.mean(
        [
            mean_kernel(*sets[0], *sets[0], r, s) + mean_kernel(*sets[1], *sets[1], r, s)
            - mean_kernel(*sets[0], *sets[1], r, s) - mean_kernel(*sets[1], *sets[0], r, s)
            for r in range(3) for s in range(3) if r != s
        ]
    )  # fmt: skip
    assert kernel_table(outputs, targets, of_output, of_target).shape == (3, 3)
    assert ClipSet(outputs, targets, of_output, of_target).kernel()(np.ones(3, int)) == pytest.approx(expected)


def test_kernel_distance_has_no_bias_and_frechet_distance_has() -> None:
    """Outputs and targets of one distribution, alike within recordings: the distance is 0."""
    of = np.repeat(np.arange(6), 4)
    values = {"fvd": [], "kvd": []}
    for seed in range(300):
        clips = ClipSet(in_recordings(2 * seed, 6, 0.7), in_recordings(2 * seed + 1, 6, 0.7), of, of)
        values["fvd"].append(clips.frechet(np.ones(6, int)))
        values["kvd"].append(clips.kernel()(np.ones(6, int)))
    error = np.std(values["kvd"]) / 300**0.5
    assert abs(np.mean(values["kvd"])) < 3 * error
    assert np.mean(values["fvd"]) > 1


def test_the_interval_of_a_paired_difference_covers_zero_as_often_as_it_says() -> None:
    """Two conditions of equal quality on the same windows, and one that is worse."""
    of, covered, seen = np.repeat(np.arange(8), 4), 0, 0
    for seed in range(60):
        targets = in_recordings(seed, 8, 0.5)
        outputs = [targets + 0.7 * normal(1000 + 3 * seed + i, 32) + shift for i, shift in enumerate((0, 0, 1.5))]
        first, second, worse = (with_redrawn(ClipSet(output, targets, of, of).kernel(), 8) for output in outputs)
        equal = set_estimate(first - second, 8, 32)
        different = set_estimate(worse - first, 8, 32)
        assert equal is not None
        assert different is not None
        assert equal["low"] is not None
        assert equal["high"] is not None
        assert different["low"] is not None
        covered += equal["low"] < 0 < equal["high"]
        seen += different["low"] > 0
    assert covered >= 52  # of 60, at 95 %: fewer than 52 has a probability of 0.2 %
    assert seen >= 50


def test_a_recording_is_redrawn_with_all_its_clips() -> None:
    of = np.repeat(np.arange(4), 3)
    outputs, targets = normal(0, 12), normal(1, 12)
    counts = np.array([2, 0, 1, 1])
    chosen = np.concatenate([np.flatnonzero(of == r) for r in (0, 0, 2, 3)])
    expected = frechet(outputs[chosen], targets[chosen])
    assert ClipSet(outputs, targets, of, of).frechet(counts) == pytest.approx(expected)
    assert all(counts.sum() == 4 for counts in redrawn(4))


def test_two_recordings_have_no_interval() -> None:
    of = np.array([0, 0, 1, 1])
    clips = ClipSet(normal(0, 4), normal(1, 4), of, of)
    estimate = set_estimate(with_redrawn(clips.frechet, 2), 2, 4)
    assert estimate is not None
    assert estimate["low"] is None
    assert estimate["mean"] > 0


@pytest.mark.parametrize(("recordings", "defined"), [(["a"] * 4, {"fvd"}), (["a", "a", "b", "c"], {"fvd", "kvd"})])
def test_each_distance_of_a_row_is_computed_once_and_an_undefined_one_is_left_out(
    recordings: list[str], defined: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[float] = []

    def counted(*sets: np.ndarray) -> float:
        computed.append(frechet(*sets))
        return computed[-1]

    monkeypatch.setattr("eval.statistics.clip_sets.frechet", counted)
    clip_sets = ClipSets(
        ClipFeatures("means", lambda frames: frames.mean((1, 2, 3))[:4].astype(np.float64)), recordings
    )
    levels = {"target": 0.0, "adapter+reference": 8.0, "input": 16.0}
    with ThreadPoolExecutor(2) as pool:
        for row, level in levels.items():
            clip_sets.submit(pool, row, range(4), [noise(scene(i), level) for i in range(4)].__getitem__)
        clip_sets.finish()
    text = StringIO()
    sets = clip_sets.compared(Console(file=text, width=200))
    assert sets is not None
    assert sets["rows"].keys() == {"adapter+reference", "input"}
    assert sets["paired"].keys() == {"input"}
    for row in (*sets["rows"].values(), *sets["paired"].values()):
        assert row.keys() == defined
        assert {estimate["clips"] for estimate in row.values()} == {4}
    own, other = (sets["rows"][row]["fvd"]["mean"] for row in ("adapter+reference", "input"))
    assert sets["paired"]["input"]["fvd"]["mean"] == own - other
    json.dumps(sets, allow_nan=False)
    assert len(computed) == 2 * (1 if len(set(recordings)) == 1 else 201)
    assert f"comparing sets of clips {2 * len(computed)}/{2 * len(computed)}" in text.getvalue()
    assert ("\N{EN DASH}" in clip_sets_table({"sets": sets, "cells": sets["rows"]})) == ("kvd" not in defined)


# --- the networks ---


class TinyI3D(torch.nn.Module):
    """The interface of the TorchScript file of I3D."""

    def forward(
        self, clip: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        assert clip.shape == (1, 3, 16, 224, 224)
        assert not rescale
        assert not resize
        assert return_features
        return torch.stack([clip.mean((2, 3, 4)), clip.amax((2, 3, 4))], dim=-1).flatten(1)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_i3d_gets_sixteen_frames_from_minus_one_to_one(tmp_path: Path) -> None:
    torch.jit.script(TinyI3D()).save(tmp_path / "i3d.pt")
    network, embed = video_features(tmp_path / "i3d.pt")
    white = np.full((9, 32, 48, 3), 255, np.uint8)
    white[..., 2] = 0
    assert network == "I3D"
    assert embed(white) == pytest.approx([1, 1, 1, 1, -1, -1])


def test_features_of_videomae_tell_clips_apart(tmp_path: Path) -> None:
    settings = Eval(metrics=["fvd"], weights=Weights(fvd=str(write_videomae(tmp_path / "videomae"))))
    features = clip_features(settings)
    assert features is not None
    assert features.network == "VideoMAE"
    clip = scene(frames=5)  # fewer than the network reads
    same, other, reversed_ = (features.embed(c) for c in (clip, noise(clip, 40), clip[::-1]))
    assert same.shape == (16,)
    assert (same == features.embed(clip)).all()
    assert np.abs(same - other).max() > 1e-3
    assert np.abs(same - reversed_).max() > 1e-4


def test_weights_that_are_no_network_for_fvd_are_refused(tmp_path: Path) -> None:
    (tmp_path / "i3d.pt").write_bytes(b"no network")
    for path, message in ((tmp_path / "i3d.pt", "is not a TorchScript file"), (write_dino(tmp_path / "d"), "dinov2")):
        with pytest.raises(ConfigError, match=rf"eval.weights.fvd=.*{message}"):
            clip_features(Eval(metrics=["fvd"], weights=Weights(fvd=str(path))))
    assert clip_features(Eval()) is None

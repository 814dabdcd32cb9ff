"""Synthetic probes: detectors are exact on the scene, fail on noise, and measure the dose; references of every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_prep.makers.base import MAKERS
from eval.synthetic import detect, shapes
from eval.synthetic.plan import ProbePlan, ProbeSample, split_applicable
from eval.synthetic.probes import Probe, Scale, all_probes, track_by_flow
from eval.synthetic.references import reference, reference_kind
from eval.synthetic.run import MakeClips, ProbeClips, ProbeSampler, score_probes
from iclora_train.config import Task
from iclora_train.core.types import Geometry, VideoShape
from iclora_train.data.reference_kinds import REFERENCE_KINDS
from iclora_train.diffusion.sampler import SamplerSettings
from iclora_train.ltx2.base_model import BaseModel
from tests.tiny import TEXT, write_tiny_base

NANO = (VideoShape(9, 64, 64, 12.5), Scale.of(Geometry(32, 8, 4), 1))
LTX = (VideoShape(9, 288, 480, 25.0), Scale.of(Geometry(128, 32, 8), 1))
NAMES = ["square", "line", "dot", "ramp", "step", "hold"]
ALL, LARGE = ({probe.name: probe for probe in all_probes(*size)} for size in (NANO, LTX))


def error(probe: Probe, clip: np.ndarray) -> float:
    return probe.error(probe.measure(clip))


def noise(shape: VideoShape, seed: int = 0) -> np.ndarray:
    size = (shape.frames, shape.height, shape.width, 3)
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def task(maker: str, family: str = "structure", **more: object) -> Task:
    return Task(name="t", family=family, maker=maker, **more)  # type: ignore[arg-type]


def test_there_are_six_probes() -> None:
    assert [probe.name for probe in all_probes(*NANO)] == NAMES


# ---- detectors


@pytest.mark.parametrize("name", NAMES)
def test_the_scene_itself_passes(name: str) -> None:
    for probe in (ALL[name], LARGE[name]):
        assert error(probe, probe.scene) < probe.threshold / 50


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_noise_and_an_empty_picture_pass_no_probe(name: str, seed: int) -> None:
    probe = ALL[name]
    assert error(probe, noise(NANO[0], seed)) > probe.threshold
    assert error(probe, np.full_like(probe.scene, 128)) > probe.threshold


@pytest.mark.parametrize("name", NAMES)
def test_the_scene_of_another_probe_does_not_pass(name: str) -> None:
    donor = ALL["dot" if name == "line" else "line"]
    assert error(ALL[name], donor.scene) > ALL[name].threshold


@pytest.mark.parametrize("name", ["square", "line", "dot"])
def test_a_position_error_equals_the_shift(name: str) -> None:
    for shift in (1, 3, 6, 9):
        shifted = ALL[name].scene[:, :, np.maximum(np.arange(64) - shift, 0)]
        assert error(ALL[name], shifted) == pytest.approx(shift, abs=0.3)


@pytest.mark.parametrize("name", ["square", "dot"])
def test_the_error_of_a_followed_point_grows_with_its_lag(name: str) -> None:
    probe = track_by_flow(ALL[name])
    errors = [error(probe, probe.scene[np.maximum(np.arange(9) - lag, 0)]) for lag in (0, 1, 2, 4, 8)]
    assert errors[0] < 0.3
    assert errors == sorted(errors)
    assert errors[-1] > probe.threshold  # the point never moves


@pytest.mark.parametrize("name", ["square", "line", "dot", "step"])
def test_detection_ignores_colours_and_tolerates_blur(name: str) -> None:
    probe = ALL[name]
    assert error(probe, 255 - probe.scene) < probe.threshold / 50
    blurred = reference(probe, task("degrade.defocus", "restoration"), NANO[0])
    assert error(probe, blurred) < probe.threshold / 10


def test_a_slope_error_equals_the_lost_contrast() -> None:
    scene = ALL["ramp"].scene
    doses = [
        error(ALL["ramp"], np.rint(128 + contrast * (scene - 128.0)).astype(np.uint8)) for contrast in (1, 0.8, 0.5, 0)
    ]
    assert doses == pytest.approx([0, 0.2, 0.5, 1], abs=0.01)


def test_a_moment_error_equals_the_shift_in_frames() -> None:
    scene = ALL["step"].scene
    for shift in (-2, -1, 1, 2):
        assert error(ALL["step"], scene[np.clip(np.arange(9) + shift, 0, 8)]) == abs(shift)
    assert error(ALL["step"], scene[:1].repeat(9, axis=0)) == 9 - ALL["step"].requested[0]  # the step never appears


def test_unrest_is_0_for_a_still_and_grows_with_motion() -> None:
    still = ALL["hold"].scene
    doses = [
        detect.unrest(np.stack([np.roll(still[0], t * step, axis=1) for t in range(9)])).mean() for step in range(4)
    ]
    assert doses[0] < 0.001
    assert doses == sorted(doses)
    assert doses[1] > ALL["hold"].threshold / 2


def test_a_position_has_subpixel_accuracy() -> None:
    shape, scale = NANO
    columns = np.linspace(20.25, 40.25, shape.frames)
    clip = shapes.picture(shapes.left_of(shape, columns), shape.frames)
    assert ALL["line"].measure(clip) == pytest.approx(columns, abs=0.15)
    assert scale.token / 2 == ALL["line"].threshold == 4  # half of nano's token


def test_thresholds_grow_with_the_token_size() -> None:
    shape = NANO[0]
    thresholds = {probe.name: probe.threshold for probe in all_probes(shape, Scale.of(Geometry(32, 8, 4), 2))}
    assert thresholds["square"] == 8
    assert LARGE["square"].threshold == 16


# ---- references


@pytest.mark.parametrize(
    ("maker", "family", "kind"),
    [
        ("control.canny", "structure", "edges"),
        ("control.soft_edges", "structure", "edges"),
        ("union", "structure", "edges"),
        ("control.depth_given", "structure", "depth"),
        ("control.pose", "structure", "pose"),
        ("control.tracks", "structure", "tracks"),
        ("degrade.grey", "colorize", "grey"),
        ("degrade.defocus", "restoration", "degraded"),
        ("edit.outpaint", "restoration", "hole"),
        ("given", "restoration", "given"),
        ("given", "structure", "edges"),
        ("degrade.chain", "colorize", "grey"),
        ("degrade.grey", "restoration", "degraded"),
        ("my.depth_of_field", "restoration", None),
        ("control.flow", "structure", None),
    ],
)
def test_the_maker_decides_the_kind_of_reference(maker: str, family: str, kind: str | None) -> None:
    assert reference_kind(task(maker, family)) == kind


def test_a_probe_that_cannot_be_drawn_is_listed_with_its_reason() -> None:
    every = all_probes(*NANO)
    probes, not_run = split_applicable(every, task("control.canny"))
    assert [probe.name for probe in probes] == ["square", "line", "dot", "step", "hold"]
    assert not_run == [{"signal": "ramp", "reason": "a ramp has no edges"}]
    assert [probe.name for probe in split_applicable(every, task("control.tracks"))[0]] == ["square", "dot"]
    assert split_applicable(every, task("control.pose"))[0] == []
    assert split_applicable(every, task("degrade.defocus", "restoration")) == (every, [])


def test_every_maker_has_a_kind_except_these() -> None:
    assert set(MAKERS) - set(REFERENCE_KINDS) == {"control.flow", "edit.frame", "edit.loop", "none"}
    assert set(REFERENCE_KINDS) <= set(MAKERS)


def test_probes_are_skipped_with_a_reason_for_an_unknown_maker() -> None:
    plan = ProbePlan.of(task("my.depth_of_field", "restoration"), Geometry(32, 8, 4), (3, 8, 8), 25.0)
    assert (plan.probes, plan.samples) == ([], [])
    assert [entry["signal"] for entry in plan.not_run] == NAMES
    assert all("my.depth_of_field" in entry["reason"] for entry in plan.not_run)
    result, clips = score_probes(plan, copied(plan), 4)
    assert (result["passed"], result["of"], clips) == (0, 0, {})


def test_references_have_the_size_and_rate_of_the_task() -> None:
    shape = NANO[0]
    small = task("degrade.low_resolution", "restoration", reference_downscale=2, reference_temporal_scale=2)
    assert reference(ALL["square"], small, shape).shape == (5, 32, 32, 3)
    drawn = reference(ALL["square"], task("control.canny", maker_args={"thickness": 2, "soft": 0.6}), shape)
    assert drawn.shape == ALL["square"].scene.shape
    assert drawn.max() > 128 > drawn.mean()  # lines on black
    grey = reference(ALL["dot"], task("degrade.grey", "colorize"), shape)
    assert np.ptp(grey, axis=3).max() == 0
    hole = reference(ALL["hold"], task("edit.hole", "restoration"), shape)
    assert (hole[:, -1, 0] == [102, 255, 0]).all()


@pytest.mark.parametrize("kind", ["control.canny", "control.depth_given"])
def test_a_drawing_passes_its_own_probe(kind: str) -> None:
    for name in ("square", "line", "dot"):
        assert error(ALL[name], reference(ALL[name], task(kind), NANO[0])) < 1


# ---- running the probes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel.open(str(write_tiny_base(tmp_path_factory.mktemp("base"))))


def run_base(base: BaseModel, batch_size: int = 24) -> tuple[dict[str, object], dict[str, ProbeClips]]:
    text, defocus = torch.zeros(TEXT["tokens"], TEXT["output"]), task("degrade.defocus", "restoration")
    sampler = ProbeSampler(
        base.transformer(), base.vae(), base.geometry, defocus, (3, 8, 8), 25.0, text, SamplerSettings([1.0, 0.0])
    )
    return score_probes(sampler.plan, lambda samples: (sampler.clips(samples).numpy(), 1.0), batch_size)


def test_a_random_base_passes_no_probe(base: BaseModel) -> None:
    result, shown = run_base(base)
    assert (result["passed"], result["of"]) == (0, 6)
    assert list(shown) == NAMES
    for clips in shown.values():
        assert (
            clips.requested.shape == clips.reference.shape == clips.output.shape == clips.floor.shape == (9, 64, 64, 3)
        )


def test_scores_do_not_depend_on_the_batch_size(base: BaseModel) -> None:
    (large_batch, shown_large), (small_batch, shown_small) = run_base(base), run_base(base, batch_size=5)
    for first, second in zip(large_batch["signals"], small_batch["signals"], strict=True):
        assert (first["name"], first["passed"]) == (second["name"], second["passed"])
        assert second["value"] == pytest.approx(first["value"], abs=0.05)
    differences = [np.abs(shown_large[name].floor.astype(int) - shown_small[name].floor).max() for name in NAMES]
    assert max(differences) <= 1  # different order of summation before rounding


def copied(plan: ProbePlan) -> MakeClips:
    """A model that returns its reference."""
    return lambda samples: (np.stack([plan.references[sample.donor] for sample in samples]), 0.5)


def test_a_copy_of_the_scene_passes_all_probes() -> None:
    plan = ProbePlan.of(task("given", "restoration"), Geometry(32, 8, 4), (3, 8, 8), 25.0)
    progress: list[tuple[int, int]] = []
    result, _ = score_probes(plan, copied(plan), 10, lambda *counts: progress.append(counts))
    assert (result["passed"], result["of"], result["seconds"]) == (6, 6, 1.5)
    assert progress == [(10, 24), (20, 24), (24, 24)]


def test_a_probe_that_also_passes_with_another_reference_fails() -> None:
    plan = ProbePlan.of(task("given", "restoration"), Geometry(32, 8, 4), (3, 8, 8), 25.0)
    lenient = replace(plan, probes=[replace(probe, threshold=1e9) for probe in plan.probes])
    assert score_probes(lenient, copied(plan), 24)[0]["passed"] == 0


def test_the_median_of_the_seeds_counts() -> None:
    plan = ProbePlan.of(task("given", "restoration"), Geometry(32, 8, 4), (3, 8, 8), 25.0)

    def spoilt(seeds: tuple[int, ...]) -> MakeClips:
        def make(samples: Sequence[ProbeSample]) -> tuple[np.ndarray, float]:
            clips, _ = copied(plan)(samples)
            replaced = [sample.probe == sample.donor and sample.seed in seeds for sample in samples]
            return np.where(np.array(replaced)[:, None, None, None, None], noise(NANO[0]), clips), 0.0

        return make

    assert score_probes(plan, spoilt((1,)), 24)[0]["passed"] == 6
    assert score_probes(plan, spoilt((0, 2)), 24)[0]["passed"] == 0


def test_the_cache_key_contains_reference_and_noise() -> None:
    plan = ProbePlan.of(task("control.canny"), Geometry(32, 8, 4), (3, 8, 8), 25.0)
    assert len({tuple(key) for key in plan.identity(plan.samples)}) == len(plan.samples) == 20
    floors = [sample for sample in plan.samples if sample.probe != sample.donor]
    probe_noise = {sample.noise_seed for sample in plan.samples if sample.probe == sample.donor}
    assert len(floors) == 5
    assert {sample.noise_seed for sample in floors} < probe_noise

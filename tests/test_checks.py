"""The checks of pairs: problems that they detect, good pairs that they accept, and the effect of verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from data_prep.checks import (
    CheckLog,
    Report,
    check_pair,
    check_vae,
    evenly_spaced,
    find_duplicates,
    frames_to_hash,
    make_signature,
    pair_picture,
    require_no_failure,
    write_results,
)
from data_prep.checks.captions import find_phrases
from iclora_train.config import Config, ConfigError, Model, Task, to_config
from iclora_train.config.checks import PHRASES, Checks, Limit
from iclora_train.core.records import from_json
from iclora_train.core.types import Pair
from iclora_train.media.codec_round_trip import round_trip
from iclora_train.media.frame_times import temporal_subsample
from iclora_train.media.pixels import from_uint8
from tests.clips import moving

DEGRADATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blur": lambda frame: cv2.GaussianBlur(frame, (0, 0), 3),
    "edges": lambda frame: cv2.cvtColor(cv2.Canny(frame, 60, 120), cv2.COLOR_GRAY2RGB),
    "grey": lambda frame: cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
}


def config(family: str = "restoration", trigger: str = "", checks: Checks | None = None, **task: int) -> Config:
    return Config(
        task=Task(name="a task", maker="given", family=family, trigger=trigger, **task),
        model=Model(name="ltx2_3", checkpoint="model.safetensors"),
        checks=checks or Checks(),
    )


def footage(frames: int, seed: int = 0) -> np.ndarray:
    """A realistic clip (F,72,96,3): a still textured background and two moving objects."""
    back, front = moving(1, 72, 96, seed)[0], moving(1, 72, 96, seed + 100)[0]
    clip = np.stack([back] * frames)
    for t in range(frames):
        clip[t, 10:34, 2 + 3 * t % 60 : 26 + 3 * t % 60] = front[10:34, :24]
        bounce = round(20 + 14 * np.sin(t / 3 + seed))
        clip[t, bounce : bounce + 26, 60:84] = 255 - front[20:46, 30:54]
    noise = np.random.default_rng(seed).normal(0, 2, clip.shape)
    return np.clip(clip + noise, 0, 255).astype(np.uint8)


def degraded(clip: np.ndarray, kind: str) -> np.ndarray:
    return np.stack([DEGRADATIONS[kind](frame) for frame in clip])


def report(reference: np.ndarray, target: np.ndarray, setting: Config | None = None, **more: object) -> Report:
    pair = Pair("clip-00000", target, (reference,), str(more.get("caption", "a ball moves")), 24.0)
    pair = replace(pair, record={"drawn": more.get("drawn", {})})
    return check_pair(pair, "clip", "train", setting or config())


def value_of(pair_report: Report, check: str) -> float | None:
    return next(finding.value for finding in pair_report.findings if finding.check == check)


def verdicts(pair_report: Report) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in pair_report.findings if finding.verdict != "ok"}


# --- offset ---


@pytest.mark.parametrize("kind", DEGRADATIONS)
@pytest.mark.parametrize("shift", [-3, -2, -1, 0, 1, 2, 3])
def test_an_offset_is_detected_in_every_kind_of_reference(kind, shift):
    clip = footage(31)
    pair_report = report(degraded(clip, kind)[3 + shift : 28 + shift], clip[3:28])
    assert value_of(pair_report, "offset") == abs(shift)
    assert verdicts(pair_report).get("offset") == ("drop" if shift else None)
    if shift:
        assert ("early" if shift > 0 else "late") in pair_report.reason


def test_a_reference_with_fewer_frames_is_compared_at_its_own_times():
    clip, half_rate = footage(57), config(reference_temporal_scale=2)
    for shift in (-2, -1, 0, 1, 2):
        pair_report = report(
            temporal_subsample(degraded(clip, "blur")[3 + shift : 52 + shift], 2), clip[3:52], half_rate
        )
        assert value_of(pair_report, "offset") == abs(shift)


def test_undecidable_clips_have_no_offset():
    still = np.stack([footage(1)[0]] * 17)
    other = footage(17, seed=5)
    assert value_of(report(degraded(still, "blur"), still), "offset") is None
    assert value_of(report(other, footage(17)), "offset") == 0
    assert value_of(report(footage(3), footage(3)), "offset") is None


# --- content of a reference ---


def test_blank_and_static_references_are_detected():
    clip = footage(17)
    assert verdicts(report(np.zeros_like(clip), clip)) == {"blank": "drop", "static": "warn", "clipped": "warn"}
    assert verdicts(report(np.stack([clip[0]] * 17), clip)) == {"static": "warn"}
    still = np.stack([clip[0]] * 17)
    assert verdicts(report(still, still)) == {}


def test_clipping_is_measured_relative_to_the_target():
    clip = footage(9)
    bright = np.clip(clip.astype(int) + 140, 0, 255).astype(np.uint8)
    assert verdicts(report(bright, clip)) == {"clipped": "warn"}
    assert verdicts(report(bright, bright)) == {}


def test_injected_flicker_raises_the_measure_step_by_step():
    clip = footage(17)
    edges = degraded(clip, "edges")
    calm, rng = cv2.GaussianBlur(edges.reshape(-1, 96, 3), (0, 0), 0.6).reshape(edges.shape), np.random.default_rng(0)
    missing = rng.random(edges.shape[:3])[..., None]  # a pixel is lost if its value is below the dose
    values = [
        value_of(report(np.where(missing < p, 0, calm), clip, config("structure")), "flicker") for p in (0, 0.2, 0.5)
    ]
    assert values == sorted(values)
    assert values[2] > 1.3 * values[0]
    assert value_of(report(clip, clip, config("structure")), "flicker") == pytest.approx(1)


def test_a_faint_control_signal_is_named_and_coverage_is_read_wherever_makers_put_it():
    clip = footage(9)
    faint = (clip // 16 + 100).astype(np.uint8)
    assert verdicts(report(faint, clip, config("structure")))["contrast"] == "warn"
    drawn = {"steps": [{"coverage": 0.9}, {"drawn": {"coverage": 0.25}}]}
    pair_report = report(degraded(clip, "edges"), clip, config("structure"), drawn=drawn)
    assert value_of(pair_report, "coverage") == 0.25
    assert pair_report.verdict == "drop"


def test_shape_and_rate_must_match_the_declared_factors():
    clip = footage(17)
    half = np.stack([cv2.resize(frame, (48, 36), interpolation=cv2.INTER_AREA) for frame in clip])
    declared = config(reference_downscale=2)
    assert value_of(report(half, clip, declared), "shape") == 0
    assert value_of(report(half, clip), "shape") == 2
    assert "frames 16 instead of 17" in report(clip[:16], clip).reason
    last = config(reference_frame=-1)
    assert value_of(report(clip[-1:], clip, last), "shape") == 0
    assert "frames 9 instead of 1" in report(clip[:9], clip, last).reason
    pair = Pair("clip-00000", clip, (clip,), "", 24.0)
    assert "fps 30 instead of 24" in check_pair(pair, "clip", "train", config(), reference_fps=30.0).reason


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 1, 1), (5, 3, 200), (9, 64, 64)])
@pytest.mark.parametrize("family", ["structure", "restoration"])
def test_odd_pairs_get_a_report_and_never_an_error(size, family):
    target = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for reference in (target, target[:1], np.zeros((3, 7, 5, 3), np.uint8)):
        pair_report = report(reference, target, config(family))
        assert from_json(json.dumps(pair_report.record()), Report) == pair_report
        assert pair_picture(Pair("clip-00000", target, (reference,), "", 24.0))[:2] == b"\xff\xd8"


# --- captions ---


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A depth map of a street", ["depth map"]),
        ("White edges on black, a skeleton waves", ["white edges", "edges on black", "skeleton"]),
        ("Two stick-figures dance", ["stick figure"]),
        ("A man walks along the edge of a deep lake", []),
        ("The canny shopkeeper counts", ["canny"]),
    ],
)
def test_a_caption_must_not_mention_the_control_signal(caption, phrases):
    assert find_phrases(caption, PHRASES) == phrases
    clip = footage(9)
    assert value_of(report(clip, clip, config("structure"), caption=caption), "caption_control") == len(phrases)
    assert "caption_control" not in {finding.check for finding in report(clip, clip, caption=caption).findings}


def test_missing_triggers_and_empty_or_long_captions_are_reported():
    clip, deblur = footage(9), config(trigger="DEBLUR")

    def wrong(caption: str) -> set[str]:
        return set(verdicts(report(clip, clip, deblur, caption=caption)))

    assert wrong("DEBLUR a cat") == set()
    assert wrong("a cat") == {"caption_trigger"}
    assert wrong("DEBLUR a DEBLUR cat") == {"caption_trigger"}
    assert wrong("DEBLURRED cat") == {"caption_trigger"}
    assert wrong("DEBLUR") == {"caption_empty"}
    assert wrong("DEBLUR " + "cat " * 301) == {"caption_long"}
    deblur.model.checkpoint = "nano"
    assert wrong("DEBLUR") == set()


# --- the VAE ---


def test_the_vae_round_trip_is_measured_for_target_and_reference():
    clip, checks = footage(9), Checks(vae=Limit(least=30))
    pair = Pair("clip-00000", clip, (degraded(clip, "edges"),), "", 24.0)
    videos = [from_uint8(torch.from_numpy(stream)[None])[0] for stream in (pair.target, *pair.references)]
    exact = check_vae(pair, videos, lambda latents: latents, checks)
    assert [finding.value for finding in exact] == [100, 100]
    small = [torch.nn.functional.avg_pool3d(video, (1, 4, 4)) for video in videos]
    coarse = check_vae(pair, small, torch.nn.Upsample(scale_factor=(1, 4, 4)), checks)
    assert [finding.verdict for finding in coarse] == ["warn", "warn"]
    assert coarse[0].value > coarse[1].value  # thin lines are lost first
    assert [evenly_spaced(100, 4), evenly_spaced(2, 16), evenly_spaced(9, 0)] == [[12, 37, 62, 87], [0, 1], []]


# --- duplicates ---


def signature_of(name: str, split: str, clip: np.ndarray, digest: str = ""):
    return make_signature(name, split, digest or name, (clip[i] for i in frames_to_hash(len(clip), 24.0)))


def test_duplicates_across_splits_are_detected_after_resizing_encoding_and_trimming():
    clips = [footage(48, seed) for seed in range(4)]
    heldout = [signature_of(f"held{i}", "heldout", clip) for i, clip in enumerate(clips[:3])]
    small = np.stack([cv2.resize(frame, (64, 48), interpolation=cv2.INTER_AREA) for frame in clips[0]])
    train = [
        signature_of("again", "train", round_trip(small, 24.0, "h264", crf=35)),
        signature_of("trimmed", "train", clips[1][20:]),
        signature_of("same", "val", clips[3], "held2"),
        signature_of("other", "train", clips[3]),
    ]
    reports = {pair_report.key: pair_report for pair_report, _ in find_duplicates([*train, *heldout], Checks())}
    assert {key: pair_report.verdict for key, pair_report in reports.items()} == dict.fromkeys(
        ("again", "trimmed", "same", "other"), "drop"
    )
    assert "held0 (heldout)" in reports["again"].reason
    assert "held1 (heldout)" in reports["trimmed"].reason
    assert "same bytes as held2" in reports["same"].reason
    assert "shows the same as same (val)" in reports["other"].reason
    unrelated = find_duplicates([train[3], *heldout], Checks())
    assert [pair_report.verdict for pair_report, _ in unrelated] == ["ok"]
    assert [
        pair_report.verdict for pair_report, _ in find_duplicates([train[0], *heldout], Checks(duplicate=Limit(most=1)))
    ] == ["ok"]


def test_flat_clips_match_only_identical_bytes():
    black = np.zeros((24, 40, 40, 3), np.uint8)
    pair = [signature_of("one", "train", black), signature_of("two", "heldout", black)]
    assert [value_of(pair_report, "duplicate") for pair_report, _ in find_duplicates(pair, Checks())] == [0]


# --- settings and the effect of verdicts ---


def test_actions_are_configured_and_bad_settings_name_their_key():
    clip = footage(31)
    shifted = degraded(clip, "blur")[:25], clip[3:28]
    for action in ("warn", "drop", "fail"):
        pair_report = report(*shifted, config(checks=Checks(offset=Limit(most=0, action=action))))
        assert (pair_report.verdict, pair_report.kept) == (action, action == "warn")
    assert report(*shifted, config(checks=Checks(offset=Limit(most=3, action="fail")))).verdict == "ok"
    for settings, key in (
        ({"offset": Limit(action="explode")}, "checks.offset.action"),
        ({"blank": Limit(least=3, most=2)}, "checks.blank.least"),
        ({"vae": Limit(least=20, action="drop")}, "checks.vae.action"),
        ({"search": 0}, "checks.search"),
    ):
        with pytest.raises(ConfigError, match=key):
            Checks(**settings)


def test_limits_are_set_on_the_command_line():
    required = ["task.name=t", "task.maker=given", "model.name=m", "model.checkpoint=c", "data.clips=d", "data.root=r"]

    def composed(*overrides: str) -> Config:
        schema = OmegaConf.structured(replace(Config(), run="r"))
        return to_config(OmegaConf.merge(schema, OmegaConf.from_dotlist([*required, *overrides])))

    limits = composed("checks.offset.action=fail", "checks.static.most=null", "checks.phrases=[dots]").checks
    assert (limits.offset.action, limits.offset.most, limits.static.most, limits.phrases) == ("fail", 0, None, ["dots"])
    with pytest.raises(ConfigError, match=r"checks.blank.action='maybe' is not one of warn, drop, fail"):
        composed("checks.blank.action=maybe")


def test_the_report_is_complete_when_everything_is_dropped(tmp_path: Path, capsys):
    clip, setting = footage(17), config(checks=Checks(blank=Limit(least=8, action="fail")))
    bad = report(np.zeros_like(clip), clip, setting)
    log = CheckLog(tmp_path, "0123456789")
    picture = pair_picture(Pair("clip-00000", clip, (clip,), "", 24.0))
    log.write("train-000000", [(replace(bad, key=f"clip-{i:05d}"), picture) for i in range(3)])
    assert log.has("train-000000")
    totals = write_results(tmp_path, log, {"kept": {}, "dropped": []}, setting)
    lines = [json.loads(line) for line in (tmp_path / "checks.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["fail"] * 3
    assert totals["pairs"] == {"ok": 0, "warn": 0, "drop": 0, "fail": 3}
    assert totals["checks"]["blank"] | {"low": 0, "fail": 3, "ok": 0} == totals["checks"]["blank"]
    assert [entry["key"] for entry in totals["left_out"]] == [f"clip-{i:05d}" for i in range(3)]
    assert "blank" in capsys.readouterr().out
    assert json.loads(json.dumps(totals)) == totals
    with pytest.raises(ConfigError, match=r"checks.blank.action=fail: 3 pairs or clips do not pass, first clip-00000"):
        require_no_failure(totals, tmp_path)


def test_a_report_without_pairs(tmp_path: Path):
    totals = write_results(tmp_path, CheckLog(tmp_path, "0123456789"), {"kept": {}, "dropped": []}, config())
    assert (tmp_path / "checks.jsonl").read_bytes() == b""
    require_no_failure(totals, tmp_path)


def test_vae_findings_are_added_to_their_pair(tmp_path: Path):
    clip, log = footage(9), CheckLog(tmp_path, "0123456789")
    pair = Pair("clip-00000", clip, (clip,), "a ball moves", 24.0)
    pair_report = check_pair(pair, "clip", "train", config())
    log.write("train-000000", [(pair_report, b"")])
    video = from_uint8(torch.from_numpy(clip)[None])[0]
    vae_findings = check_vae(pair, [video, video], lambda latents: latents, Checks())
    log.add([replace(pair_report, findings=tuple(vae_findings))])
    [(merged, _)] = log.entries()
    assert [finding.check for finding in merged.findings][-2:] == ["vae", "vae"]
    assert len(merged.findings) == len(pair_report.findings) + 2

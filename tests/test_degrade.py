"""Degradations: the effect of each, no shift in time, and deterministic results."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from data_prep.clips.windows import Window
from data_prep.makers import build_maker
from data_prep.makers.colour_space import LINEAR
from data_prep.makers.degrade.blur_kernels import aperture, disk, line
from data_prep.makers.degrade.interpolation import FrameInterpolator
from data_prep.makers.degrade.resize import FILTERS, resize_frame
from data_prep.makers.trajectory import random_trajectory
from data_prep.pairs import ReferenceScale, SourceVideo, make_reference
from iclora_train.config import Config, ConfigError, to_config
from iclora_train.config.hydra_app import conf_dir
from iclora_train.media.codec_round_trip import CODECS, round_trip
from iclora_train.media.shard_clip import encode_clip
from tests.clips import moving
from tests.prep import remake, whole_clip

ROUND = {
    "steps": [
        {"maker": "degrade.defocus", "args": {"radius": [0.5, 2.0]}, "p": 0.8},
        {"maker": "degrade.resize", "args": {"scale": [0.4, 0.9], "course": "walk"}},
        {"maker": "degrade.one_of", "args": {"steps": [{"maker": "degrade.noise"}, {"maker": "degrade.shot"}]}},
        {"maker": "degrade.jpeg", "args": {"course": "walk"}},
    ]
}
TWICE = {"steps": [{"maker": "degrade.chain", "args": ROUND}, {"maker": "degrade.chain", "args": ROUND, "p": 0.7}]}
MAKERS = [
    ("degrade.defocus", {"radius": [1, 5], "course": "walk"}),
    ("degrade.defocus", {"linear": True, "blades": 6, "bloom": [1, 4], "ring": [0.2, 0.8]}),
    ("degrade.gaussian", {"sigma": [0.5, 3], "course": "walk"}),
    ("degrade.motion", {"trace": "shake", "linear": True}),
    ("degrade.exposure", {"course": "ease"}),
    ("degrade.grey", {"gamma": [0.7, 1.4], "contrast": [0.6, 1.2], "tint": [0, 0.2], "hue": [0, 360]}),
    ("degrade.noise", {"grey_p": 0.5}),
    ("degrade.shot", {}),
    ("degrade.grain", {"colour": True}),
    ("degrade.resize", {}),
    ("degrade.low_resolution", {"factor": 2, "after": [{"maker": "degrade.noise"}]}),
    ("degrade.interlace", {"second": "flow"}),
    ("degrade.jpeg", {"course": "ease"}),
    *(("degrade.codec", {"codecs": [name], "keyframes": 4}) for name in CODECS),
    ("degrade.codec", {"codecs": ["h264"], "crf": None, "bits_per_pixel": [0.05, 1.0]}),
    ("degrade.chain", {**ROUND, "shuffle": True}),
    ("degrade.chain", TWICE),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def degrade(name: str, args: dict, frames: np.ndarray, seed: int = 0) -> np.ndarray:
    return build_maker(name, args)(frames, rng(seed), whole_clip(frames))[0]


def flat(level: int, frames: int = 4, side: int = 96) -> np.ndarray:
    return np.full((frames, side, side, 3), level, np.uint8)


def sharpness(frames: np.ndarray) -> float:
    return float(np.abs(np.diff(frames.astype(float), axis=2)).mean())


# --- every maker ---


@pytest.mark.parametrize(("name", "args"), MAKERS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(MAKERS)])
def test_a_reference_is_remade_from_its_record(name, args, tmp_path):
    """The same record gives the same bytes; another seed gives other bytes. The drawn parameters survive JSON."""
    (tmp_path / "clip.mp4").write_bytes(encode_clip(moving(5, 60, 80), 25.0))
    window = Window("a", 0, (0, 1, 2, 3, 4), (60, 80), (10, 14), (32, 48), True, 25.0)
    maker, scales = build_maker(name, args), ReferenceScale(2 if name == "degrade.low_resolution" else 1)
    video, frames = SourceVideo(tmp_path / "clip.mp4"), list(moving(5, 60, 80))
    reference, drawn = make_reference(frames, window, maker, video, [3, 1], scales)
    assert reference.shape == (5, 32 // scales.downscale, 48 // scales.downscale, 3)
    assert reference.dtype == np.uint8
    facts = {"window": asdict(window), "maker": name, "args": asdict(maker), "seed": [3, 1], "drawn": drawn}
    record = json.loads(json.dumps({**facts, **asdict(scales)}))
    assert (remake(video, record) == reference).all()
    references = {make_reference(frames, window, maker, video, [3, i], scales)[0].tobytes() for i in range(5)}
    assert len(references) > 1


PUBLISHED = {  # first 16 digits of the sha256 of references behind published results
    ("degrade.defocus", ()): "0e0ed58c42683fc7",
    ("degrade.defocus", (("radius", (1.0, 6.0)), ("rack", True), ("linear", True))): "a7d4e7937c423733",
    ("degrade.gaussian", (("sigma", (0.5, 3.0)), ("rack", True))): "f6ae2b33b0b863a3",
    ("degrade.motion", (("average", 3), ("linear", True))): "8505ff6220bbce7d",
    ("degrade.grey", ()): "deec4a1af513848b",
}


@pytest.mark.parametrize(("case", "digest"), PUBLISHED.items(), ids=[name for name, _ in PUBLISHED])
def test_published_references_are_reproduced(case, digest):
    name, args = case
    args = {key: list(value) if isinstance(value, tuple) else value for key, value in args}
    reference = degrade(name, args, moving(5, 24, 32), 7)
    assert hashlib.sha256(reference.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("course", ["constant", "ease", "walk"])
def test_trajectories_are_smooth_and_stay_in_their_range(course):
    paths = np.stack([random_trajectory([2.0, 5.0], course, 97, rng(seed), step=0.04) for seed in range(50)])
    assert paths.min() >= 2.0
    assert paths.max() <= 5.0
    assert np.abs(np.diff(paths, axis=1)).max() <= {"constant": 0.0, "ease": 3 * np.pi / 2 / 96, "walk": 0.12}[course]
    assert np.ptp(paths[:, 0]) > 2  # clips start at different values
    assert (np.ptp(paths, axis=1) > 0).all() == (course != "constant")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("degrade.defocus", {"blades": 4}, "blades=4 must be 0 .a disk. or a whole number of at least 5"),
        ("degrade.defocus", {"bloom": [0, 2]}, "bloom needs linear: true"),
        ("degrade.defocus", {"rack": True, "course": "walk"}, "rack: true cannot be combined with course: walk"),
        ("degrade.gaussian", {"course": "jump"}, "course='jump' is not one of constant, ease, walk"),
        ("degrade.motion", {"trace": "arc"}, "trace='arc' is not one of line, shake"),
        ("degrade.exposure", {"samples": 0}, r"samples=0 must lie in \[1"),
        ("degrade.noise", {"grey_p": 2}, r"grey_p=2 must lie in \[0, 1\]"),
        ("degrade.codec", {"codecs": ["divx"]}, "codecs='divx' is not one of h264, hevc, mpeg4, vp9"),
        ("degrade.codec", {"bits_per_pixel": [0.1, 0.2]}, "one of crf and bits_per_pixel"),
        ("degrade.resize", {"down": "area"}, "down='area' must be a list of filters"),
        ("degrade.chain", {}, "steps is empty"),
        ("degrade.chain", {"steps": [{"args": {}}]}, r"steps\[0\]=.* must have the key maker"),
        ("degrade.chain", {"steps": [{"maker": "control.canny"}]}, r"steps\[0\].maker=control.canny must be a degrad"),
        (
            "degrade.chain",
            {"steps": [{"maker": "degrade.grey"}, {"maker": "degrade.jpeg", "p": 3}]},
            r"steps\[1\]: .*p=3",
        ),
        ("degrade.one_of", {"steps": [{"maker": "degrade.grey", "p": 0}]}, "at least one step with p above 0"),
        ("degrade.low_resolution", {"factor": 1.5}, "factor=1.5 must be a whole number"),
    ],
)
def test_wrong_arguments_are_named(name, args, message):
    with pytest.raises(ConfigError, match=message):
        build_maker(name, args)


TASKS = {  # task -> downscale factor of its references
    **dict.fromkeys(("motion_deblur", "decompress", "denoise", "deinterlace", "restore", "inpaint", "outpaint"), 1),
    **dict.fromkeys(("day_to_night", "water", "shave", "cross_eyed"), 1),
    "upscale_x2": 2,
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_and_makes_its_references(task):
    ConfigStore.instance().store(name="schema", node=Config)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed_task = to_config(hydra.compose("prep", [f"conf={task}"])).task
    assert (composed_task.name, composed_task.reference_downscale) == (task, TASKS[task])
    maker = build_maker(composed_task.maker, composed_task.maker_args)
    scales = ReferenceScale(composed_task.reference_downscale, composed_task.reference_temporal_scale)
    frames = list(moving(9, 96, 128))
    window = Window("a", 0, tuple(range(9)), (96, 128), (16, 20), (64, 64), False, 25.0)
    reference, _ = make_reference(frames, window, maker, SourceVideo(Path()), [1], scales)
    assert reference.shape == (9, 64 // TASKS[task], 64 // TASKS[task], 3)


# --- blur ---


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("shape", [{}, {"blades": 5}, {"blades": 8, "ring": [0.9, 0.9]}])
def test_defocus_keeps_the_light_and_a_larger_radius_is_less_sharp(shape, linear):
    frames = np.pad(moving(1, 64, 64), ((0, 0), (24, 24), (24, 24), (0, 0)))
    light = LINEAR if linear else np.arange(256)
    output = []
    for radius in (0.0, 1.0, 2.5, 5.0, 9.0):
        blurred = degrade("degrade.defocus", {"radius": [radius, radius], "linear": linear, **shape}, frames)
        assert light[blurred].mean() == pytest.approx(light[frames].mean(), rel=5e-3)
        output.append(sharpness(blurred))
    assert output == sorted(output, reverse=True)
    assert len(set(output)) == len(output)


def test_apertures_have_the_area_of_the_disk_and_a_bright_rim():
    size = {blades: float(1 / (aperture(12.0, blades, 0.3, 0.0) ** 2).sum()) for blades in (0, 5, 6, 9)}
    assert all(area == pytest.approx(np.pi * 12**2, rel=0.05) for area in size.values())
    assert (aperture(6.0, 0, 0.0, 0.0) == disk(6.0)).all()
    ring = aperture(12.0, 0, 0.0, 0.8)
    middle = len(ring) // 2
    assert ring[middle, middle + 10] > 3 * ring[middle, middle]
    assert all(
        kernel.sum() == pytest.approx(1, abs=1e-5) for kernel in (ring, aperture(9.0, 7, 1.0, 0.5), line(9, 1.0))
    )


def test_bloom_makes_clipped_highlights_brighter_than_their_mean():
    lamp = flat(20, 1)
    lamp[:, 44:52, 44:52] = 255
    args = {"radius": [6, 6], "linear": True}
    plain = degrade("degrade.defocus", args, lamp)
    bloomed = degrade("degrade.defocus", {**args, "bloom": [3.0, 3.0]}, lamp)
    assert LINEAR[bloomed].max() > 1.5 * LINEAR[plain].max()
    assert (bloomed[:, :20] == plain[:, :20]).all()


def test_a_shaken_camera_does_not_shift_the_picture():
    point = np.zeros((6, 61, 61, 3), np.uint8)
    point[:, 29:32, 29:32] = 255
    shaken = degrade("degrade.motion", {"length": [16, 16], "trace": "shake"}, point)[..., 0].astype(float)
    grid = np.arange(61)
    for frame in shaken:
        centre = [(frame.sum(axis) * grid).sum() / frame.sum() for axis in (0, 1)]
        assert centre == pytest.approx([30, 30], abs=0.7)
    assert len({frame.tobytes() for frame in shaken}) == 6
    assert (shaken > 4).sum(axis=(1, 2)).min() > 30  # a trace, not a point


@pytest.mark.parametrize("between", ["flow", "blend"])
def test_an_exposure_does_not_change_a_still_clip(between):
    still = np.repeat(moving(1, 48, 64), 5, axis=0)
    assert (degrade("degrade.exposure", {"between": between, "shutter": [3, 3]}, still) == still).all()


def test_flow_moves_objects_half_way_and_blending_leaves_ghosts():
    picture = moving(1, 64, 160)[0]
    clip = np.stack([picture[:, 8 * i : 8 * i + 96] for i in range(3)])
    truth = picture[:, 12 : 12 + 96] / 255
    error = {
        method: np.abs(FrameInterpolator(clip, method, False).frame_at(1.5) - truth)[:, 16:-16].mean()
        for method in ("flow", "blend")
    }
    assert error["flow"] < 0.4 * error["blend"]


def test_an_exposure_is_a_mean_of_light_over_the_shutter():
    ramp = np.stack([flat(level, 1)[0] for level in (0, 255, 0)])
    output = degrade("degrade.exposure", {"shutter": [1, 1], "between": "blend"}, ramp)
    # 0.75 is the mean of 1 - |t| over half a frame on each side; the first frame also stands before the clip
    assert LINEAR[output[1]].mean() == pytest.approx(0.75, abs=0.01)
    assert LINEAR[output[0]].mean() == pytest.approx(0.125, abs=0.01)


def test_exposures_of_changing_length_stay_in_order():
    brightening = np.stack([flat(20 * i, 1, 32)[0] for i in range(12)])
    for seed in range(4):
        args = {"shutter": [0.05, 6], "course": "walk", "step": 1.0, "between": "blend", "linear": False}
        means = degrade("degrade.exposure", args, brightening, seed).mean(axis=(1, 2, 3))
        assert (np.diff(means) > 0).all()


# --- noise ---


def test_gaussian_noise_has_its_deviation_and_may_be_grey():
    noise = degrade("degrade.noise", {"sigma": [10, 10]}, flat(128)).astype(float) - 128
    assert noise.std() == pytest.approx(10, rel=0.02)
    assert abs(noise.mean()) < 0.2
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.03
    grey = degrade("degrade.noise", {"grey_p": 1}, flat(128))
    assert (grey == grey[..., :1]).all()


def test_shot_noise_varies_as_the_light():
    for level in (80, 140, 200):
        output = LINEAR[degrade("degrade.shot", {"photons": [200, 200], "read": 3.0}, flat(level))].astype(float)
        light = float(LINEAR[level])
        assert output.mean() == pytest.approx(light, rel=0.02)
        assert output.var() == pytest.approx(light / 200 + (3 / 200) ** 2, rel=0.08)


def test_grain_is_strongest_in_middle_tones_lumpy_and_new_in_every_frame():
    args = {"strength": [10, 10], "size": [1.2, 1.2]}
    deviation = {level: float(degrade("degrade.grain", args, flat(level)).std()) for level in (0, 32, 128, 255)}
    assert deviation[128] == pytest.approx(10, rel=0.05)
    assert deviation[32] == pytest.approx(10 * np.sqrt(4 * 32 / 255 * (1 - 32 / 255)), rel=0.08)
    assert deviation[0] == deviation[255] == 0
    grains = degrade("degrade.grain", args, flat(128)).astype(float)[..., 0] - 128
    neighbour_correlation = np.corrcoef(grains[:, :, 1:].ravel(), grains[:, :, :-1].ravel())[0, 1]
    white_noise_after_blur = np.exp(-1 / (4 * 1.2**2))  # a Gaussian blur of sigma 1.2
    assert neighbour_correlation == pytest.approx(white_noise_after_blur, abs=0.05)
    assert abs(np.corrcoef(grains[0].ravel(), grains[1].ravel())[0, 1]) < 0.05


# --- colour ---


def test_a_tint_keeps_luma_and_leaves_black_and_white_unchanged():
    frames = moving(2, 48, 64)
    luma = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]).astype(float)
    tinted = degrade("degrade.grey", {"tint": [0.15, 0.15], "hue": [140, 140]}, frames)
    inside = ((tinted > 0) & (tinted < 255)).all(axis=-1)  # a clipped channel cannot keep luma
    assert np.abs(tinted @ np.array([0.299, 0.587, 0.114]) - luma)[inside].max() <= 1
    assert inside.mean() > 0.9
    middle = tinted[np.abs(luma - 128) < 8].mean(axis=0)
    assert middle[0] > middle[1] > middle[2] + 20  # sepia
    for level in (0, 255):
        assert (degrade("degrade.grey", {"tint": [0.3, 0.3]}, flat(level)) == level).all()


def test_gamma_and_contrast_act_on_luma():
    dark = degrade("degrade.grey", {"gamma": [2, 2]}, flat(128))
    assert (dark == round(255 * (128 / 255) ** 2)).all()
    low = degrade("degrade.grey", {"contrast": [0.5, 0.5]}, np.stack([flat(0, 1)[0], flat(255, 1)[0]]))
    assert [int(frame.max()) for frame in low] == [64, 191]


# --- resolution, fields ---


@pytest.mark.parametrize("name", FILTERS)
def test_resampling_keeps_flat_areas_and_the_mean_and_does_not_shift(name):
    frame = moving(1, 48, 64)[0]
    assert (resize_frame(flat(77)[0], (31, 45), name) == 77).all()
    small = resize_frame(frame, (24, 32), name)
    assert small.mean() == pytest.approx(frame.mean(), abs=1)
    assert (resize_frame(frame[:, ::-1], (24, 32), name)[:, ::-1] == small).mean() > 0.999  # up to ties in rounding
    back = resize_frame(small, (48, 64), name)
    assert np.abs(back.astype(float) - frame).mean() < 12
    stripes = np.tile(np.array([0, 255], np.uint8)[None, :, None], (64, 32, 3))
    without_moire = resize_frame(stripes, (16, 16), name)[:, 2:-2]  # the stripes are finer than the new grid
    assert np.ptp(without_moire.astype(int)) < 12


def test_area_is_the_mean_of_the_source_pixels_of_each_pixel():
    frame = moving(1, 48, 64)[0]
    expected = frame.reshape(16, 3, 16, 4, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(resize_frame(frame, (16, 16), "area") - expected).max() <= 0.51
    for size in ((40, 61), (17, 30)):  # sizes that do not divide the frame's
        opencv = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(resize_frame(frame, size, "area") - opencv).max() <= 1


def test_low_resolution_is_stored_exactly_at_the_declared_factor():
    """The reference is the small picture itself, degraded at its own size, for any position of the window."""
    frames = list(moving(3, 64, 96))
    window = Window("a", 0, (0, 1, 2), (64, 96), (7, 13), (32, 64), False, 25.0)
    args = {"factor": 4, "filters": ["lanczos"]}
    stored, _ = make_reference(
        frames, window, build_maker("degrade.low_resolution", args), SourceVideo(Path()), [1], ReferenceScale(4)
    )
    for small, frame in zip(stored, frames, strict=True):
        assert (small == resize_frame(frame[7:39, 13:77], (8, 16), "lanczos")).all()
    noisy = {**args, "after": [{"maker": "degrade.noise", "args": {"sigma": [12, 12]}}]}
    output, _ = make_reference(
        frames, window, build_maker("degrade.low_resolution", noisy), SourceVideo(Path()), [1], ReferenceScale(4)
    )
    # noise that is added before the downscale would be a quarter as strong
    assert (output.astype(float) - stored).std() == pytest.approx(12, rel=0.15)


def test_interlaced_lines_come_from_two_times():
    frames = np.stack([flat(level, 1, 32)[0] for level in (10, 20, 40)])
    for first, order in (("upper", (0, 1)), ("lower", (1, 0))):
        woven = degrade("degrade.interlace", {"first": first}, frames)
        early, late = (woven[:, line::2, 0, 0] for line in order)
        assert (early == [[10], [20], [40]]).all()
        assert (late == [[20], [40], [40]]).all()
    half = degrade("degrade.interlace", {"first": "upper", "second": "blend"}, frames)
    assert (half[:, 1::2, 0, 0] == [[15], [30], [40]]).all()
    mixed = degrade("degrade.interlace", {"first": "upper", "shown": "blend"}, frames)
    assert (mixed[:, 1:-1] == np.array([15, 30, 40])[:, None, None, None]).all()


@pytest.mark.parametrize("args", [{}, {"second": "flow"}, {"second": "blend"}])
def test_interlacing_does_not_change_a_still_clip(args):
    still = np.repeat(moving(1, 48, 64), 3, axis=0)
    assert (degrade("degrade.interlace", args, still) == still).all()


@pytest.mark.parametrize(("first", "line"), [("upper", 0), ("lower", 1)])
def test_bob_shows_one_field(first, line):
    frames = moving(2, 48, 64)
    shown = degrade("degrade.interlace", {"shown": "bob", "first": first}, frames)
    assert (shown[:, line::2] == frames[:, line::2]).all()
    assert (shown[:, 2:-2:2] == shown[:, 3:-1:2]).all() if line == 0 else (shown[:, 1:-1:2] == shown[:, 2::2]).all()


# --- codecs ---


def barcode(count: int, height: int, width: int) -> np.ndarray:
    """Frames of a moving texture with eight thick bars that encode the frame number."""
    frames = moving(count, height, width) // 2 + 64
    for number, frame in enumerate(frames):
        for bit in range(8):
            frame[: height // 2, bit * width // 8 : (bit + 1) * width // 8] = 230 if number >> bit & 1 else 25
    return frames


def read_barcode(frames: np.ndarray) -> list[int]:
    width = frames.shape[2]
    bars = frames[:, 4 : frames.shape[1] // 2 - 4].mean(axis=(1, 3))
    middle = [(2 * bit + 1) * width // 16 for bit in range(8)]
    return [int(sum(1 << bit for bit, x in enumerate(middle) if row[x - 1 : x + 2].mean() > 128)) for row in bars]


@pytest.mark.parametrize("rate", [{"crf": 40.0}, {"bits_per_second": 40_000.0}], ids=["crf", "rate"])
@pytest.mark.parametrize("codec", CODECS)
def test_codecs_return_every_frame_in_order(codec, rate):
    for count, height, width in ((1, 64, 96), (17, 64, 96), (33, 51, 97)):
        frames = barcode(count, height, width)
        coded = round_trip(frames, 25.0, codec, keyframes=12, **rate)
        assert coded.shape == frames.shape
        assert read_barcode(coded) == list(range(count))
        assert (round_trip(frames, 25.0, codec, keyframes=12, **rate) == coded).all()


@pytest.mark.parametrize("codec", CODECS)
def test_a_lower_quality_has_a_larger_error_and_none_shifts_the_colours(codec):
    frames = moving(9, 64, 96)

    def error(**rate: float) -> float:
        return float(((round_trip(frames, 25.0, codec, **rate).astype(float) - frames) ** 2).mean())

    by_crf = [error(crf=crf) for crf in (5, 25, 40, 50)]
    assert by_crf == sorted(by_crf)
    assert by_crf[-1] > 3 * by_crf[0]
    assert error(bits_per_second=20_000) > error(bits_per_second=300_000)
    best = round_trip(frames, 25.0, codec, crf=5).astype(float)
    assert np.abs((best - frames).mean(axis=(0, 1, 2))).max() < 0.5


def test_jpeg_is_worse_at_a_lower_quality():
    frames = moving(3, 64, 96)
    error = [
        np.abs(degrade("degrade.jpeg", {"quality": [q, q]}, frames).astype(float) - frames).mean() for q in (90, 50, 10)
    ]
    assert error == sorted(error)


# --- chains ---


def steps_of(args: dict, name: str = "degrade.chain", count: int = 60) -> list[list[str]]:
    frames = moving(1, 32, 32)
    maker = build_maker(name, args)
    drawn = [maker(frames, rng(seed), whole_clip(frames))[1]["steps"] for seed in range(count)]
    return [[step["maker"] for step in steps] for steps in drawn]


def test_chains_follow_their_order_and_probabilities():
    three_steps = [{"maker": "degrade.grey"}, {"maker": "degrade.jpeg", "p": 0.5}, {"maker": "degrade.noise", "p": 0.0}]
    output = steps_of({"steps": three_steps})
    assert {tuple(steps) for steps in output} == {("degrade.grey",), ("degrade.grey", "degrade.jpeg")}
    assert 15 < sum(len(steps) == 2 for steps in output) < 45
    orders = {tuple(steps) for steps in steps_of({"steps": three_steps[:2], "shuffle": True}) if len(steps) == 2}
    assert orders == {("degrade.grey", "degrade.jpeg"), ("degrade.jpeg", "degrade.grey")}
    choice = {"steps": [{**three_steps[0], "p": 3.0 / 4}, {**three_steps[1], "p": 0.25}]}
    first_steps = [steps[0] for steps in steps_of(choice, "degrade.one_of")]
    assert 35 <= first_steps.count("degrade.grey") <= 55


def test_a_chain_is_its_steps_one_after_another():
    frames = moving(2, 48, 64)
    steps = [{"maker": "degrade.grey"}, {"maker": "degrade.interlace", "args": {"first": "upper"}}]
    expected = degrade("degrade.interlace", {"first": "upper"}, degrade("degrade.grey", {}, frames))
    assert (degrade("degrade.chain", {"steps": steps}, frames) == expected).all()


def test_the_margin_of_a_chain_is_the_sum_of_its_steps():
    blur = {"maker": "degrade.gaussian", "args": {"sigma": [2, 2]}}
    args = {"steps": [blur, blur]}
    frames = list(moving(1, 96, 128))
    inner = Window("a", 0, (0,), (96, 128), (30, 40), (32, 32), False, 25.0)
    output, _ = make_reference(
        frames, inner, build_maker("degrade.chain", args), SourceVideo(Path()), [1], ReferenceScale()
    )
    full = degrade("degrade.chain", args, np.stack(frames))
    assert np.abs(output.astype(int) - full[:, 30:62, 40:72]).max() <= 1


def test_hevc_of_narrow_pictures_gives_the_same_frames_in_every_call() -> None:
    """Sharp shapes of 32x32 pixels, which are padded to one column of x265's usual blocks: 18 of 20 calls differed."""
    frames = moving(24, 56, 72)[7:16, 12:44, 20:52].copy()
    frames[..., 0] = np.where(frames[..., 0] > 128, 230, 30)
    results = [round_trip(frames, 25.0, "hevc", crf=41.7) for _ in range(6)]
    assert all((result == results[0]).all() for result in results)

"""A generated region in its source clip: unchanged samples outside, no seam, the source's size, rate and depth."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from iclora_train.composite.blend import ColourMatch, blend
from iclora_train.composite.pyramid import bands_of, collapsed
from iclora_train.composite.region import region_of
from iclora_train.composite.run import composite
from iclora_train.composite.settings import CompositeSettings
from iclora_train.config import ConfigError
from iclora_train.media.frame_times import FrameTimes
from iclora_train.media.plate import Plate
from iclora_train.media.plate_clip import PlateClip
from iclora_train.media.plate_writer import VideoWriter

HEIGHT, WIDTH, FRAMES = 98, 162, 6  # odd numbers of chroma samples
NTSC = Fraction(24000, 1001)


def picture(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(0.2 + 0.6 * rng.random((12, 20, 3)), size[::-1]).astype(np.float32)


def write_source(path: Path, pixel_format: str, frames: int = FRAMES) -> list[Plate]:
    plates = [Plate.of_rgb(picture(seed), pixel_format) for seed in range(frames)]
    with VideoWriter(path, FrameTimes.constant(frames, NTSC), timecode="01:00:00:05") as writer:
        for plate in plates:
            writer.add(plate)
    return plates


def write_inputs(folder: Path, frames: int = 4) -> dict[str, str]:
    (folder / "generated").mkdir()
    for number in range(frames):
        levels = np.rint(picture(100 + number, (49, 81)) * 65535).astype(np.uint16)
        cv2.imwrite(str(folder / f"generated/f{number}.png"), levels)
    mask = np.zeros((49, 81), np.uint8)
    mask[15:30, 25:50] = 255
    cv2.imwrite(str(folder / "mask.png"), mask)
    return {"generated": str(folder / "generated"), "mask": str(folder / "mask.png")}


@pytest.mark.parametrize("size", [(64, 64), (37, 101), (5, 9)])
def test_a_pyramid_is_reconstructed(size: tuple[int, int]) -> None:
    image = picture(3, size)
    assert np.abs(collapsed(bands_of(image, 4)) - image).max() < 1e-5


@pytest.mark.parametrize(
    ("pixel_format", "name"),
    [
        ("yuv420p", "a.mp4"),
        ("yuv422p10le", "a.mp4"),
        ("yuv444p12le", "a.mkv"),
        ("gbrp16le", "a.mkv"),
        ("gbrp", "a.mp4"),
    ],
)
def test_samples_outside_of_the_feather_are_bit_equal(pixel_format: str, name: str, tmp_path: Path) -> None:
    plates = write_source(tmp_path / name, pixel_format)
    out = tmp_path / ("out" + Path(name).suffix)
    composite(
        CompositeSettings(**write_inputs(tmp_path), source=str(tmp_path / name), out=str(out), feather=8, start=1)
    )
    result = list(PlateClip.open(out).plates())
    assert len(result) == FRAMES
    near = np.zeros((HEIGHT, WIDTH), bool)
    near[30 - 10 : 60 + 10, 50 - 10 : 100 + 10] = True
    for number, (before, after) in enumerate(zip(plates, result, strict=True)):
        assert after.format == before.format
        for old, new in zip(before.planes, after.planes, strict=True):
            if not 1 <= number < 5:
                assert np.array_equal(old, new)
                continue
            part = cv2.resize(near.astype(np.uint8), old.shape[::-1], interpolation=cv2.INTER_AREA) > 0
            assert np.array_equal(old[~part], new[~part])
            assert (old[part] != new[part]).mean() > 0.3
    with av.open(str(out)) as container:
        assert container.streams.video[0].average_rate == NTSC
        if out.suffix == ".mp4":
            assert container.streams.video[0].metadata["timecode"] == "01:00:00:05"


def test_the_hole_shows_the_generated_picture_and_the_seam_is_soft() -> None:
    source, offset = picture(1), np.float32(0.08)
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    mask[35:65, 60:110] = 1
    damaged = np.where(mask[..., None] > 0, 1, source).astype(np.float32)  # what is to be removed is white
    region = region_of(mask, 16, False, (slice(0, HEIGHT), slice(0, WIDTH)))
    assert region is not None
    area = region.rows, region.columns
    generated = source[area] + offset  # the round trip of a VAE that is too bright

    def seam(kind: str, feather: float) -> float:
        matched = ColourMatch(kind, mask.shape).apply(damaged[area], generated, region)
        result = damaged[area] + blend(damaged[area], matched, region, feather)[0]
        return float(np.abs(np.diff(result - source[area], axis=1)).max())

    hard = region_of(mask, 0, False, (slice(0, HEIGHT), slice(0, WIDTH)))
    assert hard is not None
    cut = float(np.abs(np.diff(hard.levels, axis=1)).max() * offset)
    assert seam("none", 16) < cut / 4
    assert seam("mean", 16) < cut / 20
    assert seam("smooth", 16) < cut / 20


def test_frames_of_16_bits_carry_more_levels_than_8(tmp_path: Path) -> None:
    write_source(tmp_path / "a.mp4", "yuv422p10le")
    inputs = write_inputs(tmp_path)
    composite(CompositeSettings(**inputs, source=str(tmp_path / "a.mp4"), out=str(tmp_path / "out")))
    levels = cv2.imread(str(tmp_path / "out/frame-00000.png"), cv2.IMREAD_UNCHANGED)
    assert levels.dtype == np.uint16
    assert len(np.unique(levels)) > 256


@pytest.mark.parametrize("level", [0, 255])
def test_masks_without_an_edge(level: int, tmp_path: Path) -> None:
    plates = write_source(tmp_path / "a.mp4", "gbrp")
    inputs = write_inputs(tmp_path) | {"mask": str(tmp_path / "flat.png")}
    cv2.imwrite(inputs["mask"], np.full((HEIGHT, WIDTH), level, np.uint8))
    composite(CompositeSettings(**inputs, source=str(tmp_path / "a.mp4"), out=str(tmp_path / "out.mp4")))
    first = next(PlateClip.open(tmp_path / "out.mp4").plates())
    is_source = all(np.array_equal(a, b) for a, b in zip(first.planes, plates[0].planes, strict=True))
    assert is_source == (level == 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 3}, "start"),
        ({"mask": "wide.png"}, "mask=.*wide.png has 400x100"),
        ({"source": "none.mp4"}, "source=.*none.mp4 does not exist"),
        ({"out": "a.mp4", "overwrite": True}, "is the source"),
    ],
)
def test_errors_name_the_setting(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    write_source(tmp_path / "a.mp4", "yuv420p")
    inputs: dict[str, object] = {**write_inputs(tmp_path), "source": "a.mp4", "out": "out.mp4", **changes}
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((100, 400), np.uint8))
    for key in ("source", "mask", "out"):
        inputs[key] = str(tmp_path / Path(str(inputs[key])).name)
    with pytest.raises(ConfigError, match=message):
        composite(CompositeSettings(**inputs))  # type: ignore[arg-type]
    assert not (tmp_path / "out.mp4").exists()


def write_record(folder: Path, **settings: object) -> None:
    shape = {"frames": 4, "height": 49, "width": 81, "fps": 24000 / 1001}
    (folder / "generated.json").write_text(json.dumps({"settings": {"fit": "crop", **settings}, "shape": shape}))


def test_the_record_names_source_and_mask(tmp_path: Path) -> None:
    plates = write_source(tmp_path / "a.mp4", "yuv444p")
    inputs = write_inputs(tmp_path)
    write_record(tmp_path, source=str(tmp_path / "a.mp4"), regenerate=inputs["mask"], regenerate_frames=[1, 3])
    composite(CompositeSettings(generated=inputs["generated"], out=str(tmp_path / "out.mp4")))
    changed = [
        not np.array_equal(before.planes[0], after.planes[0])
        for before, after in zip(plates, PlateClip.open(tmp_path / "out.mp4").plates(), strict=True)
    ]
    assert changed == [False, True, True, False, False, False]


def test_borders_are_added_around_a_source_that_stays_bit_equal(tmp_path: Path) -> None:
    plates = write_source(tmp_path / "a.mp4", "yuv420p10le")
    inputs = write_inputs(tmp_path)
    window = {"indices": [0, 1, 2, 3], "scaled": [49, 97], "crop": [0, 8], "size": [49, 81]}
    made = {"file": str(tmp_path / "signal.mp4"), "maker": "edit.outpaint", "args": {}}
    made["drawn"] = {"borders": [32, 0, 0, 0]}
    signal = {"clip": str(tmp_path / "a.mp4"), "window": window, "references": [made]}
    (tmp_path / "signal.json").write_text(json.dumps(signal))
    write_record(tmp_path, reference=[made["file"]])
    composite(CompositeSettings(generated=inputs["generated"], out=str(tmp_path / "out.mp4")))
    result = list(PlateClip.open(tmp_path / "out.mp4").plates())
    assert [plate.size for plate in result] == [
        (98, 162)
    ] * 4  # 16 of the 32 pixels were generated, and 16 on the right were not
    for before, after in zip(plates, result, strict=False):
        assert np.array_equal(after.planes[0][:, 16:], before.planes[0][:, :146])
        assert np.array_equal(after.planes[1][:, 8:], before.planes[1][:, :73])
        assert after.planes[0][:, :16].min() > 100  # not black

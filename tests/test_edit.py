"""Edits: painted pixels equal the mask, other pixels are unchanged, and stills last as long as the clip."""

import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.checks import check_pair
from data_prep.clips.windows import Window
from data_prep.makers import build_maker
from data_prep.makers.edit.masks import dilate, mask_from_colour, random_mask
from data_prep.makers.trajectory import Trajectory
from data_prep.pairs import ReferenceScale, SourceVideo, make_reference
from iclora_train.config import Config, ConfigError, Data, Model, Task
from iclora_train.core.types import Pair
from iclora_train.data.reference_kinds import MASK_COLOUR
from iclora_train.media.shard_clip import encode_clip
from tests.clips import moving
from tests.prep import remake, whole_clip


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def edit(name: str, args: dict, frames: np.ndarray, seed: int = 0, **files: Path) -> np.ndarray:
    return build_maker(name, args)(frames, rng(seed), whole_clip(frames, **files))[0]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("edit.hole", {"course": "ease", "dilate": [0, 4]}),
        ("edit.hole", {"course": "walk", "shapes": ["free"]}),
        ("edit.outpaint", {"aspect": [0.5, 3.0]}),
        ("edit.loop", {"still": "any"}),
    ],
)
def test_an_edit_is_remade_from_its_record(name, args, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(encode_clip(moving(5, 60, 80), 25.0))
    window = Window("a", 0, (0, 1, 2, 3, 4), (60, 80), (10, 14), (32, 48), True, 25.0)
    maker, video, frames = build_maker(name, args), SourceVideo(tmp_path / "clip.mp4"), list(moving(5, 60, 80))
    reference, drawn = make_reference(frames, window, maker, video, [3, 1], ReferenceScale())
    facts = {"window": asdict(window), "maker": name, "args": asdict(maker), "seed": [3, 1], "drawn": drawn}
    assert (remake(video, json.loads(json.dumps({**facts, **asdict(ReferenceScale())}))) == reference).all()
    references = {make_reference(frames, window, maker, video, [3, i], ReferenceScale())[0].tobytes() for i in range(5)}
    assert len(references) > 1


@pytest.mark.parametrize("shape", ["box", "ellipse", "free"])
def test_random_masks_have_the_set_cover_and_move_smoothly(shape):
    shares = []
    for seed in range(20):
        still = random_mask((64, 96), shape, 0.15, Trajectory(), 4, rng(seed))
        assert (still == still[0]).all()
        shares.append(still.mean())
        moves = random_mask((64, 96), shape, 0.15, Trajectory("ease"), 25, rng(seed))
        assert (moves[0] != moves[-1]).any()
        centres = np.array([np.argwhere(frame).mean(axis=0) for frame in moves])
        # the centre moves at most 0.7 of 96 pixels in 24 steps, 1.6 times as fast midway
        assert np.abs(np.diff(centres, axis=0)).max() < 8
    assert np.mean(shares) == pytest.approx(0.15, abs=0.06 if shape == "free" else 0.02)


def test_only_the_hole_has_the_mask_colour():
    frames = moving(5, 64, 96)
    frames[:, :8, :8] = MASK_COLOUR  # the picture itself may contain the mask colour
    maker = build_maker("edit.hole", {"shapes": ["box"], "cover": [0.2, 0.2]})
    painted, drawn = maker(frames, rng(), whole_clip(frames))
    mask = mask_from_colour(painted)
    assert MASK_COLOUR == (0x66, 0xFF, 0x00)
    assert mask.mean() == drawn["covered"] == pytest.approx(0.2, abs=0.02)
    painted_pixels = np.argwhere(mask[0])
    (top, left), (bottom, right) = painted_pixels.min(axis=0), painted_pixels.max(axis=0)
    assert mask[:, top : bottom + 1, left : right + 1].all()  # a filled box
    recoloured = (frames == MASK_COLOUR).all(axis=-1) & ~mask
    assert (painted[recoloured] == (0x66, 0xFE, 0x00)).all()
    assert (painted == frames)[~mask & ~recoloured].all()


def test_a_mask_grows_by_the_set_pixels():
    mask = np.zeros((1, 41, 41), bool)
    mask[0, 20, 20] = True
    grown = np.argwhere(dilate(mask, 6)[0]) - 20
    assert np.abs(grown).max() == 6
    assert np.hypot(*grown.T).max() < 7
    assert len(grown) == pytest.approx(np.pi * 6.5**2, rel=0.15)


def write_masks(folder: Path, frames: int) -> tuple[Path, Path]:
    """Masks of half the size of a 48x64 clip: a video with a white column at frame number + 4, and a still."""
    masks = np.zeros((frames, 24, 32, 3), np.uint8)
    for number, mask in enumerate(masks):
        mask[:, number + 4] = 255
    (folder / "mask.mp4").write_bytes(encode_clip(masks, 25.0))
    cv2.imwrite(str(folder / "mask.png"), masks[0])
    return folder / "mask.mp4", folder / "mask.png"


def test_the_mask_of_a_clip_follows_its_frames_crop_and_mirroring(tmp_path):
    video, still = write_masks(tmp_path, 12)
    frames = [np.full((48, 64, 3), 50, np.uint8)] * 3
    window = Window("a", 0, (2, 5, 9), (48, 64), (8, 4), (32, 40), True, 25.0)
    maker = build_maker("edit.hole", {"mask": "column"})
    assert maker.needs == ("mask",)
    reference, _ = make_reference(frames, window, maker, SourceVideo(Path(), {"mask": video}), [1], ReferenceScale())
    columns = [np.flatnonzero(mask_from_colour(frame).all(axis=0)).tolist() for frame in reference]
    right_edges = [39 - (2 * (number + 4) - 4) for number in window.indices]
    assert columns == [[x - 1, x] for x in right_edges]
    reference, _ = make_reference(frames, window, maker, SourceVideo(Path(), {"mask": still}), [1], ReferenceScale())
    assert [np.flatnonzero(mask_from_colour(frame).all(axis=0)).tolist() for frame in reference] == [[34, 35]] * 3


def test_missing_or_short_masks_are_named(tmp_path):
    video, _ = write_masks(tmp_path, 4)
    frames = moving(6, 48, 64)
    with pytest.raises(ConfigError, match=r"mask\.mp4 ends before frame 5; give a mask for every frame"):
        edit("edit.hole", {"mask": "column"}, frames, mask=video)
    with pytest.raises(ConfigError, match="clip a: its row names no `mask`"):
        edit("edit.hole", {"mask": "column"}, frames)


def test_outpainting_leaves_the_middle_unchanged():
    frames = moving(2, 64, 96)
    maker = build_maker("edit.outpaint", {"aspect": [1.0, 1.0], "scale": [0.5, 0.5]})
    painted, drawn = maker(frames, rng(), whole_clip(frames))
    assert drawn["kept"] == [16, 32, 32, 32]
    visible = ~mask_from_colour(painted)
    assert visible[:, 16:48, 32:64].all()
    assert visible.sum() == 2 * 32 * 32
    assert (painted[visible] == frames[visible]).all()
    wide, _ = build_maker("edit.outpaint", {"aspect": [3.0, 3.0], "scale": [1, 1]})(frames, rng(), whole_clip(frames))
    assert (~mask_from_colour(wide)).sum(axis=(1, 2)).tolist() == [96 * 32] * 2


def test_a_still_lasts_as_long_as_the_clip(tmp_path):
    frames = moving(5, 48, 64)
    assert (edit("edit.loop", {}, frames) == frames[:1]).all()
    different_stills = {edit("edit.loop", {"still": "any"}, frames, seed).tobytes() for seed in range(40)}
    assert len(different_stills) == 5
    sheet = np.zeros((40, 20, 3), np.uint8)
    sheet[:20] = (10, 20, 200)
    cv2.imwrite(str(tmp_path / "sheet.png"), sheet[..., ::-1])
    shown = edit("edit.loop", {"still": "sheet", "background": 128}, frames, sheet=tmp_path / "sheet.png")
    assert shown.shape == frames.shape
    assert (shown == shown[:1]).all()
    assert (shown[0, :, [0, 19, 44, 63]] == 128).all()  # 40x20 becomes 48x24, in the middle
    assert (shown[0, 4:20, 22:42] == (10, 20, 200)).all()
    assert (shown[0, 30:44, 22:42] == 0).all()


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("edit.hole", {"mask": "mine"}, "mask='mine' is not one of drawn, column"),
        ("edit.hole", {"shapes": ["star"]}, "shapes='star' is not one of box, ellipse, free"),
        ("edit.hole", {"colour": [102, 255]}, r"colour=\[102, 255\] must be \[red, green, blue\]"),
        ("edit.outpaint", {"scale": [0.5, 2]}, r"scale=2 must lie in \[0.1, 1\]"),
        ("edit.loop", {"still": "last"}, "still='last' is not one of first, any, sheet"),
    ],
)
def test_wrong_arguments_are_named(name, args, message):
    with pytest.raises(ConfigError, match=message):
        build_maker(name, args)


def test_a_frame_of_the_clip_is_a_reference_of_one_frame():
    frames = moving(5, 60, 80)
    for number, expected in ((-1, 4), (0, 0), (2, 2), (-5, 0)):
        assert (edit("edit.frame", {"frame": number}, frames) == frames[[expected]]).all()
    for number in (5, -6):
        with pytest.raises(ConfigError, match=rf"maker_args.frame={number} does not exist in a clip of 5 frames"):
            edit("edit.frame", {"frame": number}, frames)
    with pytest.raises(ConfigError, match=r"maker_args\.frame='last' must be the number of a frame"):
        build_maker("edit.frame", {"frame": "last"})


def test_a_pair_with_one_frame_passes_the_checks(tmp_path):
    frames = moving(9, 64, 64)
    task = Task("in_between", family="edit", maker="edit.frame", reference_frame=-1)
    config = Config(task=task, model=Model("nano", "nano"), data=Data(clips="samples", root=str(tmp_path)))
    pair = Pair("a", frames, (frames[-1:],), "", 25.0)
    findings = {finding.check: finding for finding in check_pair(pair, "a", "train", config).findings}
    assert findings["shape"].value == 0
    assert findings["offset"].value is None
    assert all(finding.verdict == "ok" for name, finding in findings.items() if name in ("shape", "blank", "clipped"))

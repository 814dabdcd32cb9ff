"""Flow and soft edges: the Middlebury colours of directions; contours are bright, texture is dark."""

import cv2
import numpy as np
import pytest

from data_prep.makers import build_maker
from data_prep.makers.control.optical_flow import colour_wheel, flow_to_colour
from iclora_train.config import ConfigError
from tests.prep import whole_clip


def run_maker(name: str, frames: np.ndarray, **args: object) -> tuple[np.ndarray, dict]:
    return build_maker(name, args)(frames, np.random.default_rng(0), whole_clip(frames))


def sliding(x: int, y: int, count: int = 4) -> np.ndarray:
    """A blotchy picture that moves by (x, y) pixels per frame: (F,64,96,3)."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    large = cv2.resize(noise, (200, 160), interpolation=cv2.INTER_CUBIC)
    return np.stack([large[48 - y * i : 112 - y * i, 52 - x * i : 148 - x * i] for i in range(count)])


@pytest.mark.parametrize(
    ("x", "y", "hue"),
    [(4, 0, (255, 28, 28)), (-4, 0, (28, 214, 255)), (0, 4, (255, 232, 28)), (0, -4, (106, 28, 255))],
    ids=["right", "left", "down", "up"],
)
def test_directions_have_their_colours(x: int, y: int, hue: tuple[int, int, int]) -> None:
    pictures, _ = run_maker("control.flow", sliding(x, y), scale=4.5)
    middle = np.median(pictures[0, 16:-16, 16:-16].reshape(-1, 3), axis=0)
    assert np.abs(middle - hue).max() < 25


def test_saturation_is_speed_on_one_scale_for_the_clip() -> None:
    """The picture moves 1, then 3 pixels per frame: the first frames are paler."""
    slow, fast = sliding(1, 0, 3), sliding(3, 0, 3)
    pictures, drawn = run_maker("control.flow", np.concatenate([slow, fast]))
    inner = pictures[:, 16:-16, 16:-16].astype(float)
    pale, full = (np.median(inner[i, ..., 2]) for i in (0, 3))
    assert drawn["scale"] >= 3
    assert full < pale - 100


def test_still_frames_are_white_and_noise_is_not_amplified() -> None:
    still = sliding(0, 0)
    assert (run_maker("control.flow", still)[0] >= 254).all()
    noisy = np.clip(still + np.random.default_rng(0).normal(0, 1, still.shape), 0, 255).astype(np.uint8)
    pictures, drawn = run_maker("control.flow", noisy)
    assert drawn["scale"] == 1.0
    assert pictures.mean() > 240


def test_the_last_frame_repeats_and_a_single_picture_is_still() -> None:
    pictures, _ = run_maker("control.flow", sliding(2, 1))
    assert (pictures[-1] == pictures[-2]).all()
    assert (pictures[0] != pictures[-1]).any()
    single, _ = run_maker("control.flow", sliding(2, 1)[:1])
    assert single.shape == (1, 64, 96, 3)
    assert (single == 255).all()


def test_flow_is_deterministic() -> None:
    frames = sliding(3, -2)
    assert (run_maker("control.flow", frames)[0] == run_maker("control.flow", frames)[0]).all()


def test_the_wheel_is_middleburys() -> None:
    """55 colours with the pure colours at 0, 15, 21, 25, 36 and 49 (Baker et al. 2011)."""
    colours = colour_wheel()
    assert colours.shape == (55, 3)
    pure = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]]
    assert colours[[0, 15, 21, 25, 36, 49]].tolist() == pure


def test_vectors_beyond_the_scale_are_darker() -> None:
    flow = np.array([[[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
    assert flow_to_colour(flow)[0].tolist() == [[255, 255, 255], [255, 0, 0], [191, 0, 0]]


def test_contours_are_bright_and_texture_is_dark() -> None:
    """A grey square on black, next to a one-pixel checkerboard of the same contrast."""
    frame = np.zeros((96, 160, 3), np.uint8)
    frame[32:64, 32:64] = 128
    frame[16:80, 96:144] = (np.indices((64, 48)).sum(axis=0) % 2 * 128)[..., None]
    edges, _ = run_maker("control.soft_edges", frame[None])
    assert edges[0, 48, 31:33].min() > 200
    assert edges[0, 40:56, 112:128].max() < 30
    assert (edges == edges[..., :1]).all()


def test_edges_have_one_range_for_the_clip() -> None:
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[0, :, 32:], frames[1, :, 32:] = 200, 50
    edges, _ = run_maker("control.soft_edges", frames, gamma=1.0)
    assert edges[1].max() == pytest.approx(edges[0].max() / 4, abs=2)


@pytest.mark.parametrize(
    ("name", "args", "key"),
    [
        ("control.flow", {"scale": 0}, "scale"),
        ("control.soft_edges", {"scales": []}, "scales"),
        ("control.soft_edges", {"white": 10}, "white"),
    ],
)
def test_bad_arguments_are_named(name: str, args: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"task\.maker_args\.{key}"):
        build_maker(name, args)

"""MediaPipe's BlazePose (full), which comes with the project: people and their landmarks in one picture.

Sizes, anchors and thresholds are those of MediaPipe's graphs (mediapipe/modules/pose_detection, pose_landmark; 0.10):
a detector on 224 pixels gives each person's hip centre, size and tilt; the landmark network looks at the upright square
around that person on 256 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import local
from typing import Any

import cv2
import numpy as np

from iclora_train.config import require

MODEL_FOLDER = Path(__file__).parent / "models"
DETECTOR_SIZE, LANDMARK_SIZE = 224, 256  # pixels
STRIDES = (8, 16, 32, 32, 32)  # of the detector's layers; two anchors per cell of each
NMS_IOU = 0.3  # detections that overlap more are one person
MAX_TILE_SHARE = 0.6  # who fills more of a tile than this share is left to the view of the whole picture
SQUARE_MARGIN = 1.25  # side of the landmark network's square, in diameters of the circle around the body
REFINE_WINDOW = 7  # cells of the heat map that a landmark is refined from

_OF_THREAD = local()


@dataclass(frozen=True)
class Square:
    """A tilted square of a picture: centre (x, y) and side in pixels, clockwise angle in radians."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Points (...,2) of the square, 0 to 1 along its sides, in pixels of the picture."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[cos, sin], [-sin, cos]])
        return (points - 0.5) * self.side @ turn + (self.x, self.y)

    def crop(self, picture: np.ndarray, size: int, border: int) -> np.ndarray:
        """The square of a picture, upright, as (size,size,3) uint8."""
        corners = self.to_picture(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).astype(np.float32)
        ends = np.array([[0, 0], [size, 0], [0, size]], np.float32)
        warp = cv2.getAffineTransform(corners, ends)
        return cv2.warpAffine(picture, warp, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)


@dataclass(frozen=True)
class Body:
    """One person: landmarks (33,3) as x, y in pixels and confidence (that it is in the picture and not hidden), and the
    square in which to look for them in the next frame.
    """

    landmarks: np.ndarray
    square: Square


class BlazePose:
    """Both networks. `load` gives the one instance of a thread."""

    def __init__(self) -> None:
        self._detector = _interpreter(MODEL_FOLDER / "pose_detection.tflite")
        self._landmarks = _interpreter(MODEL_FOLDER / "pose_landmark_full.tflite")
        self._anchors = anchor_centres()

    def detect(self, picture: np.ndarray, part: Square, confidence: float) -> list[Square]:
        """Where people are in a part of a picture (H,W,3) uint8 RGB, the surest first."""
        pixels = part.crop(picture, DETECTOR_SIZE, cv2.BORDER_CONSTANT)
        raw, logits = self._run(self._detector, pixels.astype(np.float32) / 127.5 - 1)  # (1,2254,12), (1,2254,1)
        scores = _sigmoid(logits[0, :, 0])
        sure = scores >= confidence
        found = np.concatenate([raw[0] / DETECTOR_SIZE, scores[:, None]], axis=1)[sure]  # (n,13)
        found[:, [0, 4, 6, 8, 10]] += self._anchors[sure, :1]
        found[:, [1, 5, 7, 9, 11]] += self._anchors[sure, 1:]
        return [body_square(*part.to_picture(person[4:8].reshape(2, 2))) for person in weighted_nms(found)]

    def find_people(self, picture: np.ndarray, tiles: int, confidence: float) -> Iterator[Square]:
        """Where people are in a picture. The detector does not see people much smaller than the square it looks at, so
        that it looks at `tiles` x `tiles` overlapping squares too, when that is more than one, for small people.
        """
        whole, *rest = detection_tiles(picture.shape[:2], tiles)
        yield from self.detect(picture, whole, confidence)
        for part in rest:
            yield from (s for s in self.detect(picture, part, confidence) if s.side < MAX_TILE_SHARE * part.side)

    def landmarks(self, picture: np.ndarray, square: Square, confidence: float) -> Body | None:
        """The person in a square, or None if the network says with less than `confidence` that there is one."""
        pixels = square.crop(picture, LANDMARK_SIZE, cv2.BORDER_REPLICATE)
        raw, presence, _, heat, _ = self._run(self._landmarks, pixels.astype(np.float32) / 255)
        if presence.item() < confidence:
            return None
        points = raw.reshape(39, 5)  # x, y, z in pixels; logits that it is visible, that it is inside
        places = square.to_picture(refine_landmarks(points[:, :2] / LANDMARK_SIZE, _sigmoid(heat[0])))
        sure = _sigmoid(points[:33, 3:]).min(axis=1, keepdims=True)
        return Body(np.concatenate([places[:33], sure], axis=1), body_square(places[33], places[34]))

    @staticmethod
    def _run(network: Any, pixels: np.ndarray) -> list[np.ndarray]:
        network.set_tensor(network.get_input_details()[0]["index"], pixels[None])
        network.invoke()
        return [network.get_tensor(output["index"]) for output in network.get_output_details()]


def load() -> BlazePose:
    """The networks, read once per thread, as an interpreter serves one at a time."""
    if not hasattr(_OF_THREAD, "networks"):
        _OF_THREAD.networks = BlazePose()
    networks: BlazePose = _OF_THREAD.networks
    return networks


def is_installed() -> bool:
    """Whether the package that runs the networks is there."""
    return find_spec("ai_edge_litert") is not None


def require_installed() -> None:
    """ConfigError when the package that runs the networks is missing."""
    require(is_installed(), "task.maker=control.pose needs ai-edge-litert: pip install 'iclora_train[pose]'")


def detection_tiles(size: tuple[int, int], tiles: int) -> list[Square]:
    """The square around a picture (height, width), and its `tiles` x `tiles` overlapping squares if more than one."""
    (height, width), long = size, max(size)
    whole = Square(width / 2, height / 2, long)
    if tiles == 1:
        return [whole]
    side = 1.25 * long / tiles
    rows, columns = (np.unique(np.linspace(min(side, n) / 2, n - min(side, n) / 2, tiles)) for n in size)
    return [whole, *(Square(float(x), float(y), side) for y in rows for x in columns)]


def anchor_centres() -> np.ndarray:
    """Centres (2254,2) of the detector's anchors as x, y from 0 to 1: layer by layer, row by row; layers of one stride
    share their cells.
    """
    centres = []
    for stride in sorted(set(STRIDES)):
        cells = DETECTOR_SIZE // stride
        y, x = (np.mgrid[:cells, :cells].reshape(2, -1) + 0.5) / cells
        centres.append(np.repeat(np.stack([x, y], axis=1), 2 * STRIDES.count(stride), axis=0))
    return np.concatenate(centres)


def weighted_nms(found: np.ndarray) -> list[np.ndarray]:
    """Detections (n,13) as x, y, width, height of a box, four points, score -> one per person, the surest first: those
    that overlap the surest one are averaged with it, weighted by score.
    """
    left, people = found[np.argsort(-found[:, 12])], []
    while len(left):
        same = iou(left[0, :4], left[:, :4]) > NMS_IOU
        people.append(np.append(np.average(left[same, :12], axis=0, weights=left[same, 12]), left[0, 12]))
        left = left[~same]
    return people


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union (n,) of a box with boxes (n,4), all as centre x, y, width, height."""
    low = np.maximum(box[:2] - box[2:] / 2, boxes[:, :2] - boxes[:, 2:] / 2)
    high = np.minimum(box[:2] + box[2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2)
    shared = np.maximum(high - low, 0).prod(axis=1)
    return shared / (box[2:].prod() + boxes[:, 2:].prod(axis=1) - shared)


def body_square(hips: np.ndarray, top: np.ndarray) -> Square:
    """The square around a body from its hip centre and the point above it on the circle around the body."""
    x, y = top - hips
    return Square(
        float(hips[0]), float(hips[1]), 2 * SQUARE_MARGIN * float(np.hypot(x, y)), float(np.pi / 2 - np.arctan2(-y, x))
    )


def refine_landmarks(points: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Points (39,2) from 0 to 1 moved to the mean of the heat map (64,64,39) around them, unless its peak is low."""
    cells, reach, result = heat.shape[0], REFINE_WINDOW // 2, points.astype(np.float64)
    for number, (column, row) in enumerate((points * cells).astype(int)):
        if not (0 <= column < cells and 0 <= row < cells):
            continue
        top, left = max(row - reach, 0), max(column - reach, 0)
        near = heat[top : row + reach + 1, left : column + reach + 1, number].astype(np.float64)
        if near.max() >= 0.5:
            y, x = np.indices(near.shape)
            total = near.sum() * cells
            result[number] = ((x + left) * near).sum() / total, ((y + top) * near).sum() / total
    return result


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -100, 100)))


def _interpreter(path: Path) -> Any:
    """A TFLite network on one CPU thread, so that its results do not depend on the machine's cores."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  (an extra that only pose needs)

    network = Interpreter(str(path), num_threads=1)
    network.allocate_tensors()
    return network

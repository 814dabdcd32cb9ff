"""MediaPipe's BlazePose (full): detect people in one picture and estimate their landmarks. The project includes it.

Sizes, anchors and thresholds are from MediaPipe's graphs (mediapipe/modules/pose_detection, pose_landmark; 0.10). A
detector on 224 pixels gives each person's hip centre, size and tilt. The landmark network gets the upright square
around that person at 256 pixels.
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
STRIDES = (8, 16, 32, 32, 32)  # strides of the detector's layers; each cell of a layer has two anchors
NMS_IOU = 0.3  # detections with a higher intersection over union are one person
MAX_TILE_SHARE = 0.6  # people that fill more of a tile are ignored there: the whole picture shows them better
SQUARE_MARGIN = 1.25  # side of the landmark network's square, in diameters of the circle around the body
REFINE_WINDOW = 7  # side of the heat map window that refines a landmark, in cells

_thread = local()


@dataclass(frozen=True)
class Square:
    """A tilted square of a picture: centre (x, y) and side in pixels, clockwise angle in radians."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Convert points (...,2) in the square, 0 to 1 along its sides, to pixels of the picture."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        rotation = np.array([[cos, sin], [-sin, cos]])
        return (points - 0.5) * self.side @ rotation + (self.x, self.y)

    def crop(self, picture: np.ndarray, size: int, border: int) -> np.ndarray:
        """Cut the square out of a picture, upright, as (size,size,3) uint8."""
        return cv2.warpAffine(picture, self._warp(size), (size, size), flags=cv2.INTER_LINEAR, borderMode=border)

    def paste(self, square: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Put a square (n,n) back to its place in a picture of `size` (height, width), which is 0 elsewhere."""
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(square, self._warp(len(square)), size[::-1], flags=flags)

    def _warp(self, size: int) -> np.ndarray:
        """The affine map (2,3) from the picture to the square at `size` pixels."""
        corners = self.to_picture(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).astype(np.float32)
        destination = np.array([[0, 0], [size, 0], [0, size]], np.float32)
        return cv2.getAffineTransform(corners, destination)


@dataclass(frozen=True)
class Body:
    """One person: landmarks (33,3) and the square to search in the next frame.

    A landmark is x, y in pixels and the confidence that it is in the picture and not hidden.
    """

    landmarks: np.ndarray
    square: Square


class BlazePose:
    """Detector and landmark network. `load` returns the instance of the current thread."""

    def __init__(self) -> None:
        self._detector = _interpreter(MODEL_FOLDER / "pose_detection.tflite")
        self._landmarks = _interpreter(MODEL_FOLDER / "pose_landmark_full.tflite")
        self._anchors = anchor_centres()

    def detect(self, picture: np.ndarray, part: Square, confidence: float) -> list[Square]:
        """Detect people in a part of a picture (H,W,3) uint8 RGB; the most confident detection comes first."""
        pixels = part.crop(picture, DETECTOR_SIZE, cv2.BORDER_CONSTANT)
        raw, logits = self._run(self._detector, pixels.astype(np.float32) / 127.5 - 1)  # (1,2254,12), (1,2254,1)
        scores = _sigmoid(logits[0, :, 0])
        confident = scores >= confidence
        detections = np.concatenate([raw[0] / DETECTOR_SIZE, scores[:, None]], axis=1)[confident]  # (n,13)
        detections[:, [0, 4, 6, 8, 10]] += self._anchors[confident, :1]
        detections[:, [1, 5, 7, 9, 11]] += self._anchors[confident, 1:]
        return [body_square(*part.to_picture(person[4:8].reshape(2, 2))) for person in weighted_nms(detections)]

    def find_people(self, picture: np.ndarray, tiles: int, confidence: float) -> Iterator[Square]:
        """Detect people in a picture.

        The detector misses people much smaller than its input square. With `tiles` > 1 it also runs on `tiles` x
        `tiles` overlapping squares.
        """
        whole, *rest = detection_tiles(picture.shape[:2], tiles)
        yield from self.detect(picture, whole, confidence)
        for part in rest:
            yield from (s for s in self.detect(picture, part, confidence) if s.side < MAX_TILE_SHARE * part.side)

    def landmarks(self, picture: np.ndarray, square: Square, confidence: float) -> Body | None:
        """Landmarks of the person in a square, or None when the network's confidence in a person is too low."""
        pixels = square.crop(picture, LANDMARK_SIZE, cv2.BORDER_REPLICATE)
        raw, presence, _, heat, _ = self._run(self._landmarks, pixels.astype(np.float32) / 255)
        if presence.item() < confidence:
            return None
        points = raw.reshape(39, 5)  # x, y, z in pixels; logits of being visible and of being inside the picture
        positions = square.to_picture(refine_landmarks(points[:, :2] / LANDMARK_SIZE, _sigmoid(heat[0])))
        confidences = _sigmoid(points[:33, 3:]).min(axis=1, keepdims=True)
        return Body(np.concatenate([positions[:33], confidences], axis=1), body_square(positions[33], positions[34]))

    def outline(self, picture: np.ndarray, square: Square) -> np.ndarray:
        """The person in a square as a mask (H,W) fp32 of the picture: the network's probability of each pixel."""
        pixels = square.crop(picture, LANDMARK_SIZE, cv2.BORDER_REPLICATE)
        logits = self._run(self._landmarks, pixels.astype(np.float32) / 255)[2]  # (1,256,256,1)
        return square.paste(_sigmoid(logits[0, :, :, 0]).astype(np.float32), picture.shape[:2])

    @staticmethod
    def _run(network: Any, pixels: np.ndarray) -> list[np.ndarray]:
        network.set_tensor(network.get_input_details()[0]["index"], pixels[None])
        network.invoke()
        return [network.get_tensor(output["index"]) for output in network.get_output_details()]


def load() -> BlazePose:
    """The networks of the current thread. An interpreter serves one thread at a time."""
    if not hasattr(_thread, "networks"):
        _thread.networks = BlazePose()
    networks: BlazePose = _thread.networks
    return networks


def is_installed() -> bool:
    """Whether the package that runs the networks is installed."""
    return find_spec("ai_edge_litert") is not None


def require_installed() -> None:
    """ConfigError when the package that runs the networks is missing."""
    require(is_installed(), "task.maker=control.pose needs ai-edge-litert: pip install 'iclora_train[pose]'")


def detection_tiles(size: tuple[int, int], tiles: int) -> list[Square]:
    """The square around a picture (height, width), and with tiles > 1 its `tiles` x `tiles` overlapping squares."""
    (height, width), longer = size, max(size)
    whole = Square(width / 2, height / 2, longer)
    if tiles == 1:
        return [whole]
    side = 1.25 * longer / tiles
    rows, columns = (np.unique(np.linspace(min(side, n) / 2, n - min(side, n) / 2, tiles)) for n in size)
    return [whole, *(Square(float(x), float(y), side) for y in rows for x in columns)]


def anchor_centres() -> np.ndarray:
    """Centres (2254,2) of the detector's anchors as x, y from 0 to 1.

    The order is layer by layer, then row by row. Layers of equal stride share their cells.
    """
    centres = []
    for stride in sorted(set(STRIDES)):
        cells = DETECTOR_SIZE // stride
        y, x = (np.mgrid[:cells, :cells].reshape(2, -1) + 0.5) / cells
        centres.append(np.repeat(np.stack([x, y], axis=1), 2 * STRIDES.count(stride), axis=0))
    return np.concatenate(centres)


def weighted_nms(detections: np.ndarray) -> list[np.ndarray]:
    """Weighted non-maximum suppression: detections (n,13) -> one per person, the most confident first.

    A detection is x, y, width and height of a box, four points, and a score. Detections that overlap the most confident
    one are averaged with it, weighted by score.
    """
    remaining, people = detections[np.argsort(-detections[:, 12])], []
    while len(remaining):
        overlaps = iou(remaining[0, :4], remaining[:, :4]) > NMS_IOU
        mean = np.average(remaining[overlaps, :12], axis=0, weights=remaining[overlaps, 12])
        people.append(np.append(mean, remaining[0, 12]))
        remaining = remaining[~overlaps]
    return people


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union (n,) of a box with boxes (n,4), all as centre x, y, width, height."""
    low = np.maximum(box[:2] - box[2:] / 2, boxes[:, :2] - boxes[:, 2:] / 2)
    high = np.minimum(box[:2] + box[2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2)
    shared = np.maximum(high - low, 0).prod(axis=1)
    return shared / (box[2:].prod() + boxes[:, 2:].prod(axis=1) - shared)


def body_square(hips: np.ndarray, top: np.ndarray) -> Square:
    """The square around a body, from its hip centre and the point above it on the circle around the body."""
    x, y = top - hips
    return Square(
        float(hips[0]), float(hips[1]), 2 * SQUARE_MARGIN * float(np.hypot(x, y)), float(np.pi / 2 - np.arctan2(-y, x))
    )


def refine_landmarks(points: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Move points (39,2), 0 to 1, to the mean of the heat map (64,64,39) around them, unless its peak is below 0.5."""
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
    """A TFLite network on one CPU thread, so that its results do not depend on the number of cores."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  (an extra that only pose needs)

    network = Interpreter(str(path), num_threads=1)
    network.allocate_tensors()
    return network

"""RTMPose and DWPose from an ONNX file: keypoints of one person in a box, read from two 1-D classifications (SimCC)."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from iclora_train.config import ConfigError, require

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # of MMPose's preprocessor, RGB
PADDING = 1.25  # of boxes, as in MMPose's training
COCO = 17  # these keypoints come first in COCO, Halpe and COCO-WholeBody models alike


class RTMPose:
    """One top-down network. `load` gives the one instance of a file and process."""

    def __init__(self, path: Path) -> None:
        self._session = _session(path)
        self._input = self._session.get_inputs()[0]
        self._height, self._width = self._input.shape[2:]
        outputs = [output.name for output in self._session.get_outputs()]
        fixed = isinstance(self._height, int) and isinstance(self._width, int)
        require(
            fixed and outputs[:2] == ["simcc_x", "simcc_y"],
            f"task.maker_args.model={path}: inputs {self._input.shape}, outputs {outputs} are not those of an RTMPose "
            "or DWPose network (one picture of fixed size; simcc_x, simcc_y)",
        )

    def keypoints(self, picture: np.ndarray, people: np.ndarray) -> np.ndarray:
        """COCO keypoints (17,3) as x, y in pixels and confidence, of the person around whom points (n,2) lie."""
        low, high = people.min(axis=0), people.max(axis=0)
        (width, height), aspect = (high - low) * PADDING, self._width / self._height
        size = np.array([max(width, height * aspect), max(height, width / aspect)])
        corner = (low + high - size) / 2
        scale = size / (self._width, self._height)
        warp = np.array([[1 / scale[0], 0, -corner[0] / scale[0]], [0, 1 / scale[1], -corner[1] / scale[1]]])
        pixels = cv2.warpAffine(picture, warp, (self._width, self._height), flags=cv2.INTER_LINEAR)
        batch = ((pixels - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None]  # (1,3,h,w)
        found = decode_simcc(*self._session.run(["simcc_x", "simcc_y"], {self._input.name: batch}))
        found[:, :2] = found[:, :2] * size + corner
        return found


def decode_simcc(simcc_x: np.ndarray, simcc_y: np.ndarray) -> np.ndarray:
    """The first 17 keypoints (17,3) of SimCC outputs (1,K,bins): x and y from 0 to 1 are the places of the two maxima,
    confidence the lesser maximum (Li et al. 2022, arXiv 2107.03332).
    """
    x, y = simcc_x[0, :COCO], simcc_y[0, :COCO]
    places = np.stack([x.argmax(axis=1) / x.shape[1], y.argmax(axis=1) / y.shape[1]], axis=1)
    sure = np.minimum(x.max(axis=1), y.max(axis=1)).clip(0)
    return np.concatenate([places, sure[:, None]], axis=1)


@cache
def load(path: Path) -> RTMPose:
    """The network of a file, read once per process. ConfigError names what is wrong with it."""
    return RTMPose(path)


def require_usable(path: Path) -> None:
    """ConfigError when the file or the package that runs it is missing."""
    require(path.is_file(), f"task.maker_args.model={path} does not exist; give an ONNX file of RTMPose or DWPose")
    there = find_spec("onnxruntime") is not None
    require(there, f"task.maker_args.model={path} needs onnxruntime: pip install onnxruntime (or onnxruntime-gpu)")


def _session(path: Path) -> Any:
    """An ONNX session, on the GPU if onnxruntime was built for one."""
    import onnxruntime  # noqa: PLC0415  (only those who give a model need it)
    from onnxruntime.capi import onnxruntime_pybind11_state as problems  # noqa: PLC0415

    there = onnxruntime.get_available_providers()
    wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
    try:
        return onnxruntime.InferenceSession(str(path), providers=wanted)
    except (problems.Fail, problems.InvalidProtobuf, problems.InvalidGraph, problems.NotImplemented) as error:
        raise ConfigError(
            f"task.maker_args.model={path} is no ONNX network that onnxruntime can run ({error})"
        ) from error

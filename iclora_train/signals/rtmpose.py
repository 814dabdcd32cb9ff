"""RTMPose and DWPose from an ONNX file: keypoints of one person in a box, as two 1-D classifications (SimCC)."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from iclora_train.config import ConfigError, require

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # RGB, MMPose's preprocessor
PADDING = 1.25  # factor by which the box is enlarged, as in MMPose's training
COCO = 17  # keypoints; they come first in COCO, Halpe and COCO-WholeBody models


class RTMPose:
    """A top-down pose network. `load` returns the instance of a file."""

    def __init__(self, path: Path) -> None:
        self._session = _session(path)
        self._input = self._session.get_inputs()[0]
        self._height, self._width = self._input.shape[2:]
        outputs = [output.name for output in self._session.get_outputs()]
        fixed = isinstance(self._height, int) and isinstance(self._width, int)
        require(
            fixed and outputs[:2] == ["simcc_x", "simcc_y"],
            f"task.maker_args.model={path}: inputs {self._input.shape}, outputs {outputs} do not match an RTMPose "
            "or DWPose network (one picture of fixed size; simcc_x, simcc_y)",
        )

    def keypoints(self, picture: np.ndarray, people: np.ndarray) -> np.ndarray:
        """COCO keypoints (17,3), x, y in pixels and confidence, of the person in the box around points (n,2)."""
        low, high = people.min(axis=0), people.max(axis=0)
        (width, height), aspect = (high - low) * PADDING, self._width / self._height
        size = np.array([max(width, height * aspect), max(height, width / aspect)])
        corner = (low + high - size) / 2
        scale = size / (self._width, self._height)
        warp = np.array([[1 / scale[0], 0, -corner[0] / scale[0]], [0, 1 / scale[1], -corner[1] / scale[1]]])
        pixels = cv2.warpAffine(picture, warp, (self._width, self._height), flags=cv2.INTER_LINEAR)
        batch = ((pixels - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None]  # (1,3,h,w)
        keypoints = decode_simcc(*self._session.run(["simcc_x", "simcc_y"], {self._input.name: batch}))
        keypoints[:, :2] = keypoints[:, :2] * size + corner
        return keypoints


def decode_simcc(simcc_x: np.ndarray, simcc_y: np.ndarray) -> np.ndarray:
    """The first 17 keypoints (17,3) of SimCC outputs (1,K,bins) (Li et al. 2022, arXiv 2107.03332).

    x and y, from 0 to 1, are the positions of the two maxima. The confidence is the lower maximum.
    """
    x, y = simcc_x[0, :COCO], simcc_y[0, :COCO]
    positions = np.stack([x.argmax(axis=1) / x.shape[1], y.argmax(axis=1) / y.shape[1]], axis=1)
    confidence = np.minimum(x.max(axis=1), y.max(axis=1)).clip(0)
    return np.concatenate([positions, confidence[:, None]], axis=1)


@cache
def load(path: Path) -> RTMPose:
    """The network of a file, loaded once per process. ConfigError when the file is not a usable network."""
    return RTMPose(path)


def require_usable(path: Path, key: str = "task.maker_args.model") -> None:
    """ConfigError when the file or the package that runs it is missing. key: the setting that names the file."""
    require(path.is_file(), f"{key}={path} does not exist; give an ONNX file of RTMPose or DWPose")
    installed = find_spec("onnxruntime") is not None
    require(installed, f"{key}={path} needs onnxruntime: pip install onnxruntime (or onnxruntime-gpu)")


def _session(path: Path) -> Any:
    """An ONNX session, on the GPU if this onnxruntime supports one."""
    import onnxruntime  # noqa: PLC0415  (optional: only with a model file)
    from onnxruntime.capi import onnxruntime_pybind11_state as errors  # noqa: PLC0415

    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cv2.getNumThreads()  # one in a worker of data_prep
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except (errors.Fail, errors.InvalidProtobuf, errors.InvalidGraph, errors.NotImplemented) as error:
        raise ConfigError(
            f"task.maker_args.model={path} is not an ONNX network that onnxruntime can run ({error})"
        ) from error

"""Monocular depth estimation with a network from the package transformers, of one of the types in `KINDS`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation, PreTrainedModel

from iclora_train.config import require
from iclora_train.core.device import default_device
from iclora_train.core.networks import load_whole, refuse_unsuitable

KINDS = ("depth_anything", "dpt", "zoedepth", "depth_pro")  # model types
METRIC = ("zoedepth", "depth_pro")  # model types whose output is always in metres
# tensors that do not affect the depth, and that published folders lack: the mask token is for training; the first
# layer of a fusion has no second input, so its unit for that one is never applied (transformers issue 28292)
UNUSED = (r"(^|\.)mask_token$", r"^neck\.fusion_stage\.layers\.0\.residual_layer1\.")
BATCH = 8  # frames per pass
NEAREST = 1e-3  # metres; nearer depths are clamped to this
REMEDY = "give a folder with config.json, preprocessor_config.json and model.safetensors"


class DepthNetwork:
    """A depth network in fp32, on the GPU if there is one. `load` returns the instance of a folder."""

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.kind: str = model.config.model_type
        self.metric = (
            model.config.model_type in METRIC or model.config.to_dict().get("depth_estimation_type") == "metric"
        )

    @classmethod
    def open(cls, folder: Path, key: str) -> DepthNetwork:
        """Load a folder in transformers' format. Only safetensors are read, and no code from the folder runs.

        ConfigError when the folder does not hold such a network. key: the setting that names the folder.
        """
        with refuse_unsuitable(key, folder, "a depth network", REMEDY):
            kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            require(kind in KINDS, f"{key}={folder} is a {kind}; supported types: {', '.join(KINDS)}")
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model = load_whole(AutoModelForDepthEstimation.from_pretrained, key, folder, torch.float32, UNUSED)
        return cls(model.to(default_device()), processor)

    def nearness(self, frames: np.ndarray) -> np.ndarray:
        """Inverse depth of frames (F,H,W,3) uint8 RGB: fp32 (F,H,W), larger is nearer; `BATCH` frames per pass.

        Metric networks give 1/metres. For other networks the scale and shift are unknown and may differ between frames.
        """
        return np.concatenate([self._nearness(frames[i : i + BATCH]) for i in range(0, len(frames), BATCH)])

    @torch.inference_mode()
    def _nearness(self, frames: np.ndarray) -> np.ndarray:
        inputs = self.processor(images=list(frames), return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        sizes = [frames.shape[1:3]] * len(frames)
        results = self.processor.post_process_depth_estimation(outputs, target_sizes=sizes)
        depth = torch.stack([result["predicted_depth"] for result in results]).float()  # (F,H,W)
        return (1 / depth.clamp(min=NEAREST) if self.metric else depth).cpu().numpy()


@cache
def load(folder: Path, key: str = "task.maker_args.model") -> DepthNetwork:
    """The network of a folder, loaded once per process. ConfigError as `DepthNetwork.open`."""
    return DepthNetwork.open(folder, key)

"""Monocular depth estimation with a network from the package transformers, of one of the types in `KINDS`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, PreTrainedModel

from iclora_train.config import ConfigError, require
from iclora_train.core.device import default_device

KINDS = ("depth_anything", "dpt", "zoedepth", "depth_pro")  # model types
METRIC = ("zoedepth", "depth_pro")  # model types whose output is always in metres
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
        try:
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model = AutoModelForDepthEstimation.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"{key}={folder} is not a depth network ({reason}): {REMEDY}") from error
        kind = model.config.model_type
        require(kind in KINDS, f"{key}={folder} is a {kind}; supported types: {', '.join(KINDS)}")
        return cls(model.eval().to(default_device()), processor)

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

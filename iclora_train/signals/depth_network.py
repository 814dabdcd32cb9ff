"""A monocular depth network: any that transformers knows and whose output is understood here."""

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
METRIC = ("zoedepth", "depth_pro")  # those whose output is always in metres
BATCH = 8  # frames that the network sees at once
NEAREST = 1e-3  # metres; nothing is taken to be nearer
REMEDY = "give a folder with config.json, preprocessor_config.json and model.safetensors"


class DepthNetwork:
    """The network in memory, on the GPU if there is one, in fp32. `load` gives the one instance of a folder."""

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.metric = (
            model.config.model_type in METRIC or model.config.to_dict().get("depth_estimation_type") == "metric"
        )

    @classmethod
    def open(cls, folder: Path) -> DepthNetwork:
        """Load a folder in transformers' format; only safetensors are read, and no code from the folder is run.
        ConfigError when it holds no such network.
        """
        try:
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model = AutoModelForDepthEstimation.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            why = str(error).strip().splitlines()[0]
            raise ConfigError(f"task.maker_args.model={folder} is no depth network ({why}): {REMEDY}") from error
        kind = model.config.model_type
        require(kind in KINDS, f"task.maker_args.model={folder} is a {kind}; known are {', '.join(KINDS)}")
        return cls(model.eval().to(default_device()), processor)

    def nearness(self, frames: np.ndarray) -> np.ndarray:
        """Of frames (F,H,W,3) uint8 RGB, fp32 (F,H,W): larger is nearer, up to a scale and shift that may differ from
        frame to frame; 1/metres of metric networks. A few frames at a time.
        """
        return np.concatenate([self._nearness(frames[i : i + BATCH]) for i in range(0, len(frames), BATCH)])

    @torch.inference_mode()
    def _nearness(self, frames: np.ndarray) -> np.ndarray:
        inputs = self.processor(images=list(frames), return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        sizes = [frames.shape[1:3]] * len(frames)
        found = self.processor.post_process_depth_estimation(outputs, target_sizes=sizes)
        depth = torch.stack([one["predicted_depth"] for one in found]).float()  # (F,H,W)
        return (1 / depth.clamp(min=NEAREST) if self.metric else depth).cpu().numpy()


@cache
def load(folder: Path) -> DepthNetwork:
    """The network of a folder, read once per process. ConfigError as `DepthNetwork.open`."""
    return DepthNetwork.open(folder)

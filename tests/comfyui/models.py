"""Tiny files with random weights under the names that workflows ask for, in ComfyUI's folders."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from iclora_train.ltx2.weights.versions import VERSIONS
from scripts.synthetic_checkpoint import write_checkpoint

SAMPLES = Path(__file__).parents[2] / "data_prep" / "samples" / "clips"
CLIP = SAMPLES / "talk_red_shirt_close.mp4"


def write_models(models: Path, work: Path) -> dict[str, Path]:
    """The base of each version, with a text encoder's file. Returns the checkpoint of each version for our own code."""
    checkpoints = {}
    for version in VERSIONS:
        names = VERSIONS[version].comfyui
        layout = "unified" if names.vae is None else "split"
        checkpoint = write_checkpoint(work / version, version, layout, size="comfyui")
        checkpoints[version] = checkpoint
        if names.vae is None:
            _link(checkpoint, models / "checkpoints" / names.model)
            text = {"text": torch.zeros(1)}
        else:
            (transformer,) = (checkpoint / "diffusion_models").glob("*.safetensors")
            _link(transformer, models / "diffusion_models" / names.model)
            for file in (checkpoint / "vae").glob("*.safetensors"):
                _link(file, models / "vae" / file.name)
            (projection,) = (checkpoint / "text_encoders").glob("*.safetensors")
            text = load_file(projection)
        (models / "text_encoders").mkdir(parents=True, exist_ok=True)
        save_file(text, models / "text_encoders" / names.text_encoder)
    return checkpoints


def write_input(path: Path) -> None:
    """A clip of a person with sound, or a picture: black with a white box, so that it is of use as a mask too."""
    if path.suffix == ".mp4":
        path.write_bytes(CLIP.read_bytes())
        return
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[32:96, 48:112] = 255
    cv2.imwrite(str(path), picture)


def _link(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(source.resolve())

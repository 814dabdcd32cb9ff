"""Similarity of clips by CLIP and DINO, and the features of clips for FVD. The user names the folder of the network.

Folders are in transformers' format, as published on Hugging Face. Only safetensors are read, and no code of a folder
runs. The one exception is I3D for FVD, a TorchScript file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from eval.metrics.base import CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, Values, framewise
from iclora_train.config import ConfigError, require
from iclora_train.core.device import default_device
from iclora_train.core.networks import load_whole, refuse_unsuitable

BATCH = 8  # frames per pass
CLIP = ("clip",)  # types of models, as config.json names them
DINO = ("dinov2", "dinov2_with_registers", "dinov3_vit")
VIDEOMAE = ("videomae",)
# tensors that no feature depends on, so they may be missing: for training (the mask token, the scale of CLIP's loss)
UNUSED = (r"(^|\.)mask_token$", r"^logit_scale$")
I3D_FRAMES, I3D_SIDE = 16, 224  # of the clips that I3D is given
Embed = Callable[[Clip], Tensor]


def _open(key: str, path: Path, kinds: tuple[str, ...]) -> tuple[Any, Any]:
    """Model and image processor of a folder. ConfigError, with the setting `key`, if it holds no model of `kinds`."""
    remedy = "give a folder with config.json, preprocessor_config.json and model.safetensors"
    with refuse_unsuitable(key, path, "a network", remedy):
        kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        require(kind in kinds, f"{key}={path} is a {kind}; supported types: {', '.join(kinds)}")
        processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)
        model = load_whole(AutoModel.from_pretrained, key, path, torch.float32, UNUSED)
    return model.to(default_device()), processor


def _framewise(of_pictures: Callable[[Tensor], Tensor], processor: Any) -> Embed:
    """Embeddings of unit length (F,D) of the frames of a clip, after the folder's own preparation of pictures."""

    @torch.inference_mode()
    def embed(clip: Clip) -> Tensor:
        parts = [
            of_pictures(processor(images=list(clip[i : i + BATCH]), return_tensors="pt")["pixel_values"])
            for i in range(0, len(clip), BATCH)
        ]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()

    return embed


def _remembered(embed: Embed) -> Callable[[GroundTruth], Tensor]:
    """The embedding of a window's target, computed once for all of the window's clips."""
    known: WeakKeyDictionary[GroundTruth, Tensor] = WeakKeyDictionary()

    def of_target(truth: GroundTruth) -> Tensor:
        if truth not in known:
            known[truth] = embed(truth.target)
        return known[truth]

    return of_target


def clip(path: Path) -> MetricGroup:
    """CLIP (Radford et al. 2021, arXiv 2103.00020): cosine of the pictures of output and target, and of picture and
    caption. The caption is cut at the length that the model reads."""
    model, processor = _open("eval.weights.clip", path, CLIP)
    with refuse_unsuitable("eval.weights.clip", path, "a folder with a tokenizer", "copy tokenizer.json of the model"):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    embed = _framewise(
        lambda pixels: model.visual_projection(model.vision_model(pixels.to(model.device)).pooler_output), processor
    )
    of_target = _remembered(embed)

    @torch.inference_mode()
    def of_caption(caption: str) -> Tensor:
        length = model.config.text_config.max_position_embeddings
        tokens = tokenizer([caption], truncation=True, max_length=length, return_tensors="pt").to(model.device)
        pooled = model.text_model(tokens["input_ids"], tokens["attention_mask"]).pooler_output
        return F.normalize(model.text_projection(pooled).float(), dim=-1).cpu()

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        pictures = embed(output.clip)
        values = framewise("clip", (pictures * of_target(truth)).sum(-1).numpy()).values
        if truth.caption:
            values["clip_text"] = float((pictures @ of_caption(truth.caption).T).mean())
        return Measurement(values)

    return MetricGroup(
        (
            Metric("clip", "CLIP similarity to the target", "", "high", "learned"),
            Metric("clip_text", "CLIP similarity to the caption", "", "high", "learned"),
        ),
        measure,
    )


def dino(path: Path) -> MetricGroup:
    """DINO (Oquab et al. 2023, arXiv 2304.07193): cosine of the class tokens of output and target, frame by frame."""
    model, processor = _open("eval.weights.dino", path, DINO)
    embed = _framewise(lambda pixels: model(pixels.to(model.device)).pooler_output, processor)
    of_target = _remembered(embed)

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        return framewise("dino", (embed(output.clip) * of_target(truth)).sum(-1).numpy())

    return MetricGroup((Metric("dino", "DINO similarity to the target", "", "high", "learned"),), measure)


def video_features(path: Path) -> tuple[str, Callable[[Clip], Values]]:
    """The name of a network, and clip -> features (D,) for FVD (Unterthiner et al. 2018, arXiv 1812.01717)."""
    network, embed = ("I3D", _i3d(path)) if path.is_file() else ("VideoMAE", _videomae(path))
    return network, lambda frames: embed(frames).numpy().astype(np.float64)


def _videomae(path: Path) -> Embed:
    """The mean over the tokens of VideoMAE's encoder (D,), as content-debiased FVD has it (arXiv 2404.12391)."""
    model, processor = _open("eval.weights.fvd", path, VIDEOMAE)

    @torch.inference_mode()
    def embed(frames: Clip) -> Tensor:
        chosen = list(_evenly(frames, model.config.num_frames))
        pixels = processor(chosen, return_tensors="pt")["pixel_values"]
        return model(pixels.to(model.device)).last_hidden_state[0].mean(0).float().cpu()

    return embed


def _i3d(path: Path) -> Embed:
    """The features (400,) of I3D in the TorchScript file that FVD is commonly computed with."""
    try:
        network = torch.jit.load(path, map_location=default_device()).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"eval.weights.fvd={path} is not a TorchScript file") from error

    @torch.inference_mode()
    def embed(frames: Clip) -> Tensor:
        size, chosen = (I3D_SIDE, I3D_SIDE), _evenly(frames, I3D_FRAMES)
        resized = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in chosen]
        pixels = torch.from_numpy(np.stack(resized)).to(default_device()).permute(3, 0, 1, 2)[None].float()
        return network(pixels / 127.5 - 1, rescale=False, resize=False, return_features=True)[0].float().cpu()

    return embed


def _evenly(frames: Clip, count: int) -> Clip:
    """`count` frames at equal steps over a clip; a shorter clip repeats frames."""
    return frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]

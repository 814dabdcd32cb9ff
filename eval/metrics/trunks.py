"""LPIPS and DISTS: distances between features of an ImageNet network whose file the user names.

The learned weights of the two metrics come with torchmetrics; the network is a file of torchvision, read as tensors.
torchvision itself is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
import torchmetrics.functional.image
from safetensors import SafetensorError
from torch import Tensor, nn

from eval.metrics.base import CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, framewise
from iclora_train.config import ConfigError, first_line, require
from iclora_train.core.device import default_device

BATCH = 4  # frames per pass
ALEXNET, VGG16 = "AlexNet", "VGG16"
TAPS = {ALEXNET: (1, 4, 7, 9, 11), VGG16: (3, 8, 15, 22, 29)}  # layers whose outputs are compared
LEAST_SIDE = {ALEXNET: 31, VGG16: 16}  # pixels that the poolings leave one pixel of
TORCHMETRICS = Path(torchmetrics.functional.image.__file__).parent
LPIPS_WEIGHTS = {ALEXNET: "lpips_models/alex.pth", VGG16: "lpips_models/vgg.pth"}  # in the package torchmetrics
DISTS_WEIGHTS = "dists_models/weights.pt"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of R, G, B in [0, 1]
LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # shift and scale of R, G, B in [-1, 1]

Convolution = tuple[int, int, int, int, int]  # channels in and out, kernel, stride, padding


def layers_of(kind: str) -> nn.Sequential:
    """The layers `features` of torchvision's network of that name, with random weights, without the last pooling."""
    if kind == ALEXNET:
        shapes: list[Convolution | None] = [(3, 64, 11, 4, 2), None, (64, 192, 5, 1, 2), None]
        shapes += [(192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
        pooling = (3, 2)
    else:
        widths = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512]
        inputs = [3, *(width for width in widths if width)]
        numbers = iter(range(len(inputs)))
        shapes = [(inputs[next(numbers)], width, 3, 1, 1) if width else None for width in widths]
        pooling = (2, 2)
    layers: list[nn.Module] = []
    for shape in shapes:
        layers += [nn.MaxPool2d(*pooling)] if shape is None else [nn.Conv2d(*shape), nn.ReLU()]
    return nn.Sequential(*layers)


def load_trunk(key: str, path: Path, kinds: tuple[str, ...]) -> tuple[str, nn.Sequential]:
    """Name and layers of the network in a file of torchvision's weights. ConfigError, with the setting `key`, if the
    file holds none of `kinds`."""
    weights = {name[9:]: value for name, value in _tensors(key, path).items() if name.startswith("features.")}
    for kind in kinds:
        layers = layers_of(kind)
        expected = {name: value.shape for name, value in layers.state_dict().items()}
        if expected == {name: value.shape for name, value in weights.items()}:
            layers.load_state_dict(weights)
            return kind, layers.requires_grad_(False).eval().to(default_device())
    raise ConfigError(f"{key}={path} does not hold the weights of torchvision's {' or '.join(kinds)}")


def _tensors(key: str, path: Path) -> dict[str, Any]:
    """The tensors of a .safetensors file, or of a .pth file, from which nothing but tensors is read."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise ConfigError(f"{key}={path} is not a file of weights ({first_line(error)[:200]})") from error
    require(isinstance(content, dict), f"{key}={path} is not a file of weights: it holds a {type(content).__name__}")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def features(layers: nn.Sequential, taps: tuple[int, ...], pictures: Tensor) -> list[Tensor]:
    """The outputs of the layers `taps` for pictures (N,3,H,W)."""
    outputs = []
    for number, layer in enumerate(layers):
        pictures = layer(pictures)
        if number in taps:
            outputs.append(pictures)
    return outputs


def _normalised(pictures: Tensor, shift_and_scale: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    shift, scale = (torch.tensor(values, device=pictures.device)[:, None, None] for values in shift_and_scale)
    return (pictures - shift) / scale


class Lpips(nn.Module):
    """LPIPS 0.1 (Zhang et al. 2018, arXiv 1801.03924) of pictures (N,3,H,W) in [0, 1]: (N,)."""

    def __init__(self, kind: str, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers, self.taps = layers, TAPS[kind]
        stored = torch.load(TORCHMETRICS / LPIPS_WEIGHTS[kind], map_location="cpu", weights_only=True)
        self.weights = [stored[f"lin{i}.model.1.weight"].to(default_device()) for i in range(len(self.taps))]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Sum over layers of the mean over positions of w . (a - b)^2, for features a, b of unit length."""
        pair = [features(self.layers, self.taps, _normalised(2 * x - 1, LPIPS_SCALE)) for x in (first, second)]
        distance = torch.zeros(len(first), device=first.device)
        for a, b, weight in zip(*pair, self.weights, strict=True):
            distance += F.conv2d((_unit(a) - _unit(b)) ** 2, weight).mean((1, 2, 3))
        return distance


def _unit(feature: Tensor) -> Tensor:
    """Every position's features (N,C,H,W) divided by their length."""
    return feature / torch.sqrt(1e-8 + (feature**2).sum(1, keepdim=True))


class L2Pool(nn.Module):
    """Root of the weighted mean of squares, Hann window of 3x3 with stride 2: the pooling of DISTS."""

    def forward(self, feature: Tensor) -> Tensor:
        """(N,C,H,W) -> (N,C,H/2,W/2)."""
        window = torch.hann_window(5, periodic=False, device=feature.device)[1:-1]
        kernel = torch.outer(window, window) / window.sum() ** 2
        channels = feature.shape[1]
        pooled = F.conv2d(feature**2, kernel.expand(channels, 1, 3, 3), stride=2, padding=1, groups=channels)
        return (pooled + 1e-12).sqrt()


class Dists(nn.Module):
    """DISTS (Ding et al. 2020, arXiv 2004.07728) of pictures (N,3,H,W) in [0, 1], at their own size: (N,)."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(L2Pool() if isinstance(layer, nn.MaxPool2d) else layer for layer in layers))
        stored = torch.load(TORCHMETRICS / DISTS_WEIGHTS, map_location="cpu", weights_only=True)
        total = stored["alpha"].sum() + stored["beta"].sum()
        self.alpha, self.beta = (
            (stored[name] / total).flatten().to(default_device()) for name in ("alpha", "beta")
        )  # weights of texture and structure, for the channels of all stages

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """1 - sum over channels of alpha * similarity of means + beta * similarity of the rest (equations 4 to 6)."""
        pair = [[x, *features(self.layers, TAPS[VGG16], _normalised(x, IMAGENET))] for x in (first, second)]
        similarities = [torch.stack(_similarity(a, b)) for a, b in zip(*pair, strict=True)]
        texture, structure = torch.cat(similarities, dim=2)  # (N, channels of all stages) each
        return 1 - (self.alpha * texture + self.beta * structure).sum(1)


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity of the means and of the deviations of features (N,C,H,W), as SSIM has them: (N,C) each."""
    mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
    var_a, var_b = (((x - mean[..., None, None]) ** 2).mean((2, 3)) for x, mean in ((a, mean_a), (b, mean_b)))
    covariance = (a * b).mean((2, 3)) - mean_a * mean_b
    texture = (2 * mean_a * mean_b + 1e-6) / (mean_a**2 + mean_b**2 + 1e-6)
    return texture, (2 * covariance + 1e-6) / (var_a + var_b + 1e-6)


def lpips(path: Path) -> MetricGroup:
    """LPIPS with the network of a file. AlexNet is the usual one for metrics; figures of the two do not compare."""
    kind, layers = load_trunk("eval.weights.lpips", path, (ALEXNET, VGG16))
    return _metric("lpips", f"LPIPS ({kind})", Lpips(kind, layers), LEAST_SIDE[kind])


def dists(path: Path) -> MetricGroup:
    """DISTS with the VGG16 of a file."""
    _, layers = load_trunk("eval.weights.dists", path, (VGG16,))
    return _metric("dists", "DISTS", Dists(layers), LEAST_SIDE[VGG16])


def _metric(key: str, title: str, network: nn.Module, side: int) -> MetricGroup:
    @torch.inference_mode()
    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        batches = zip(_batches(output.clip), _batches(truth.target), strict=True)
        return framewise(key, np.concatenate([network(a, b).cpu().numpy() for a, b in batches]))

    return MetricGroup((Metric(key, title, "", "low", "learned"),), measure, side=side)


def _batches(clip: Clip) -> Iterator[Tensor]:
    """Frames (N,3,H,W) in [0, 1], BATCH at a time."""
    for start in range(0, len(clip), BATCH):
        yield torch.from_numpy(clip[start : start + BATCH]).to(default_device()).permute(0, 3, 1, 2).float() / 255

"""Metrics that `eval.metrics` adds on request, and what each of them needs: a package, or weights that the user names.

Nothing is downloaded. What is missing is an error before anything is sampled. No torch import here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec

from iclora_train.config.errors import require
from iclora_train.config.paths import expand_home, user_path

EXTRA = "pip install 'iclora_train[metrics]'"


@dataclass(frozen=True)
class Need:
    """What a metric needs. packages: optional modules that it imports, and `install`, the command that installs them.
    weights: what `eval.weights.<metric>` must name; empty if the metric needs none. distribution: whose version decides
    its values."""

    packages: tuple[str, ...] = ()
    install: str = EXTRA
    weights: str = ""
    distribution: str = ""


NEEDS = {  # name in eval.metrics -> what it needs
    "vmaf": Need(("vmaf_torch",), distribution="vmaf-torch"),
    "vmaf_neg": Need(("vmaf_torch",), distribution="vmaf-torch"),
    "ssimulacra2": Need(("ssimulacra2",), distribution="ssimulacra2"),
    "flip": Need(("flip_evaluator",), distribution="flip-evaluator"),
    "cvvdp": Need(
        ("pycvvdp", "torchvision"), "pip install cvvdp with the torchvision of your torch version", distribution="cvvdp"
    ),
    "lpips": Need(
        weights="the file of torchvision's AlexNet or VGG16 (.pth or .safetensors)", distribution="torchmetrics"
    ),
    "dists": Need(weights="the file of torchvision's VGG16 (.pth or .safetensors)", distribution="torchmetrics"),
    "clip": Need(weights="the folder of a CLIP model", distribution="transformers"),
    "dino": Need(weights="the folder of a DINOv2 or DINOv3 model", distribution="transformers"),
    "fvd": Need(
        weights="the folder of a VideoMAE model, or a TorchScript file of I3D (.pt)", distribution="transformers"
    ),
    "warp_own": Need(),
}


@dataclass
class Weights:
    """Files and folders of the networks of `eval.metrics`, by metric. They are yours to get; nothing is downloaded."""

    lpips: str | None = None  # torchvision's AlexNet or VGG16
    dists: str | None = None  # torchvision's VGG16
    clip: str | None = None  # folder of a CLIP model
    dino: str | None = None  # folder of a DINOv2 or DINOv3 model
    fvd: str | None = None  # folder of a VideoMAE model, or a TorchScript file of I3D

    def __post_init__(self) -> None:
        for key, path in asdict(self).items():
            setattr(self, key, None if path is None else expand_home(path))


def check_names(metrics: Sequence[str]) -> None:
    """ConfigError for a name that is no metric of NEEDS, or that is given twice."""
    unknown = [name for name in metrics if name not in NEEDS]
    require(not unknown, f"eval.metrics names {', '.join(unknown)}, which is not one of {', '.join(NEEDS)}")
    require(len(set(metrics)) == len(metrics), f"eval.metrics={list(metrics)} names a metric twice")


def require_at_hand(metrics: Sequence[str], weights: Weights) -> None:
    """ConfigError, with the remedy, for a metric whose package is not installed or whose weights are not there."""
    for name in metrics:
        need = NEEDS[name]
        missing = [package for package in need.packages if find_spec(package) is None]
        require(not missing, f"eval.metrics: {name} needs {', '.join(missing)}, not installed here: {need.install}")
        if need.weights:
            key = f"eval.weights.{name}"
            path = getattr(weights, name)
            require(path is not None, f"eval.metrics: {name} needs weights: set {key} to {need.weights}")
            require(user_path(path).exists(), f"{key}={path} does not exist: set it to {need.weights}")

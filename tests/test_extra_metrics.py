"""Metrics of `eval.metrics`: values, damage, agreement with their reference code, and messages if one is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import torchmetrics.functional.image.dists as dists_reference
import torchmetrics.functional.image.lpips as lpips_reference
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    VideoMAEConfig,
    VideoMAEModel,
)

from eval.metrics import Clip, GroundTruth, Suite, trunks
from eval.metrics.base import CachedClip, MetricGroup
from eval.metrics.extra import extra_metrics, with_extra_metrics
from eval.metrics.libraries import vmaf_of_frames
from iclora_train.config import ConfigError, Eval, Task, Weights
from iclora_train.config import extra_metrics as needs
from tests import doses
from tests.damage import drop_tensors
from tests.doses import scene

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN_AND_STD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
PREPARATION = {"do_resize": True, "do_rescale": True, "do_normalize": True, **MEAN_AND_STD}
LARGE = 256  # pixels, for SSIMULACRA2


def write_trunk(path: Path, kind: str) -> Path:
    """A file as torchvision publishes them, with random weights."""
    torch.manual_seed(0)
    weights = {f"features.{name}": value for name, value in trunks.layers_of(kind).state_dict().items()}
    weights["classifier.1.weight"] = torch.zeros(2, 2)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


def write_clip(folder: Path) -> Path:
    """The folder of a tiny CLIP with random weights and a tokenizer of a few words."""
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"<pad>": 0, "<end>": 1, "moving": 2, "blocks": 3, "a": 4, "dog": 5}
    text = {**tiny, "vocab_size": 8, "max_position_embeddings": 6, "eos_token_id": 1, "bos_token_id": 0}
    vision = {**tiny, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    preparation = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, **PREPARATION}
    preparation |= {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return folder


def write_dino(folder: Path) -> Path:
    """The folder of a tiny DINOv2 with random weights."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32)
    Dinov2Model(config).save_pretrained(folder)
    preparation = {"image_processor_type": "BitImageProcessor", "size": {"height": 32, "width": 32}, **PREPARATION}
    (folder / "preprocessor_config.json").write_text(json.dumps({**preparation, "do_center_crop": False}))
    return folder


def write_videomae(folder: Path) -> Path:
    """The folder of a tiny VideoMAE with random weights that reads 8 frames."""
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    VideoMAEModel(VideoMAEConfig(**tiny, image_size=32, patch_size=16, num_frames=8)).save_pretrained(folder)
    preparation = {"image_processor_type": "VideoMAEImageProcessor", "size": {"shortest_edge": 32}, **PREPARATION}
    preparation |= {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    root = tmp_path_factory.mktemp("weights")
    return Weights(
        lpips=str(write_trunk(root / "alexnet.pth", trunks.ALEXNET)),
        dists=str(write_trunk(root / "vgg16.safetensors", trunks.VGG16)),
        clip=str(write_clip(root / "clip")),
        dino=str(write_dino(root / "dino")),
    )


def group_of(name: str, weights: Weights) -> MetricGroup:
    """The group of a metric; skips the test if its package is not installed."""
    for package in needs.NEEDS[name].packages:
        pytest.importorskip(package)
    return extra_metrics(Eval(metrics=[name], weights=weights))[0]


def measured(group: MetricGroup, output: Clip, target: Clip) -> float:
    """The first metric of a group."""
    truth = GroundTruth(target, target, target, caption="moving blocks")
    return group.measure(CachedClip(output), truth).values[group.metrics[0].key]


PERFECT = {  # value of an output that equals its target
    **{"vmaf": (99, 100), "vmaf_neg": (99, 100), "ssimulacra2": (100, 100), "flip": (0, 0), "cvvdp": (10, 10)},
    **{"lpips": (0, 0), "dists": (0, 1e-5), "clip": (1, 1), "dino": (1, 1), "warp_own": (0, 0)},
}
RESPONSES: list[tuple[str, Callable[[Clip, float], Clip], list[float]]] = [  # metric, damage, growing doses
    *((name, doses.blur, [1.0, 2.0, 4.0]) for name in ("vmaf", "vmaf_neg", "ssimulacra2", "flip", "cvvdp", "lpips")),
    *((name, doses.noise, [4.0, 16.0, 64.0]) for name in ("ssimulacra2", "flip", "cvvdp", "lpips", "dists")),
    *((name, doses.noise, [8.0, 32.0, 128.0]) for name in ("clip", "dino", "warp_own")),
]


def test_every_extra_metric_is_in_the_tables() -> None:
    """FVD has no value per clip: tests/test_clip_sets.py."""
    assert set(PERFECT) == {name for name, *_ in RESPONSES} == set(needs.NEEDS) - {"fvd"}


@pytest.mark.parametrize(("name", "damage", "levels"), RESPONSES, ids=lambda value: getattr(value, "__name__", value))
def test_identity_is_perfect_and_every_dose_of_damage_is_worse(
    name: str, damage: Callable[[Clip, float], Clip], levels: list[float], weights: Weights
) -> None:
    group = group_of(name, weights)
    target = scene(frames=4, size=LARGE if name == "ssimulacra2" else 64)
    values = [measured(group, output, target) for output in (target, *(damage(target, dose) for dose in levels))]
    low, high = PERFECT[name]
    assert low - 1e-6 <= values[0] <= high + 1e-6
    sign = 1 if group.metrics[0].better == "low" else -1
    assert all(sign * a < sign * b for a, b in pairwise(values)), values


@pytest.mark.parametrize("name", PERFECT)
def test_a_clip_has_the_same_value_alone_and_after_another_one(name: str, weights: Weights) -> None:
    group = group_of(name, weights)
    size = LARGE if name == "ssimulacra2" else 64
    first, second = (scene(seed, frames=9, size=size) for seed in (0, 1))
    alone = measured(group, doses.noise(first, 20), first)
    measured(group, doses.blur(second, 2), second)
    assert measured(group, doses.noise(first, 20), first) == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("name", ["lpips", "dists", "clip", "dino", "flip"])
def test_the_value_of_a_clip_is_the_mean_of_its_frames(name: str, weights: Weights) -> None:
    """So frames of different passes do not mix."""
    group, target = group_of(name, weights), scene(frames=9)
    output = doses.noise(target, 20)
    by_frame = [measured(group, output[i : i + 1], target[i : i + 1]) for i in range(9)]
    assert measured(group, output, target) == pytest.approx(np.mean(by_frame), abs=1e-5)


def test_vmaf_of_a_long_clip_does_not_depend_on_the_frames_per_pass() -> None:
    vmaf = pytest.importorskip("vmaf_torch").VMAF(clip_score=True)
    target = scene(frames=11)
    output = doses.blur(target, 1)
    whole = vmaf_of_frames(vmaf, output, target, at_once=11)
    assert vmaf_of_frames(vmaf, output, target, at_once=4) == pytest.approx(whole, abs=1e-3)
    assert whole.std() > 0.1


# --- LPIPS and DISTS against the code of torchmetrics, which takes its networks from torchvision ---


def pictures(seed: int) -> torch.Tensor:
    return torch.from_numpy(scene(seed, frames=3)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(("kind", "net"), [(trunks.ALEXNET, "alex"), (trunks.VGG16, "vgg")])
def test_lpips_agrees_with_torchmetrics(kind: str, net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, layers = trunks.load_trunk("x", write_trunk(tmp_path / "net.pth", kind), (kind,))
    monkeypatch.setattr(lpips_reference, "_get_tv_model_features", lambda *_: layers)
    reference = lpips_reference._LPIPS(net=net)
    expected = reference(pictures(0), pictures(1), normalize=True).flatten()
    assert trunks.Lpips(kind, layers)(pictures(0), pictures(1)).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert expected.min() > 1e-4


def test_dists_agrees_with_torchmetrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, layers = trunks.load_trunk("x", write_trunk(tmp_path / "net.pth", trunks.VGG16), (trunks.VGG16,))
    monkeypatch.setattr(dists_reference, "_TORCHVISION_AVAILABLE", True)
    network = lambda weights: SimpleNamespace(features=layers)  # noqa: E731
    monkeypatch.setattr(dists_reference, "vgg16", network, raising=False)
    monkeypatch.setattr(dists_reference, "VGG16_Weights", SimpleNamespace(DEFAULT=None), raising=False)
    expected = dists_reference.DISTSNetwork()(pictures(0), pictures(1)).flatten().tolist()
    assert trunks.Dists(layers)(pictures(0), pictures(1)).tolist() == pytest.approx(expected, abs=1e-5)
    assert min(expected) > 0.01


# --- CLIP and captions ---


def test_clip_compares_pictures_with_the_caption(weights: Weights) -> None:
    group, target = group_of("clip", weights), scene()

    def value(caption: str) -> float | None:
        truth = GroundTruth(target, target, target, caption=caption)
        return group.measure(CachedClip(target), truth).values.get("clip_text")

    first, second = value("moving blocks"), value("a dog a dog a dog a dog a dog a dog")  # longer than the model reads
    assert first is not None
    assert second is not None
    assert -1 <= first <= 1
    assert first != second
    assert value("") is None


# --- what is not at hand ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["vmav"]}, r"eval.metrics names vmav, which is not one of vmaf, vmaf_neg, ssimulacra2"),
        ({"metrics": ["flip", "flip"]}, "names a metric twice"),
    ],
)
def test_a_wrong_name_is_refused_with_the_settings(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Eval(**settings)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("vmaf", r"pip install 'iclora_train\[metrics\]'"), ("cvvdp", "torchvision of your torch version")],
)
def test_a_missing_package_is_named_with_its_remedy(name: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"{name} needs .* not installed here: .*{remedy}"):
        extra_metrics(Eval(metrics=[name]))


def test_a_package_that_cannot_be_imported_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "find_spec", lambda package: True)
    monkeypatch.setitem(__import__("sys").modules, "flip_evaluator", None)
    with pytest.raises(ConfigError, match=r"flip cannot be used here .*pip install 'iclora_train\[metrics\]'"):
        extra_metrics(Eval(metrics=["flip"]))


@pytest.mark.parametrize("name", [name for name, need in needs.NEEDS.items() if need.weights])
def test_missing_weights_are_named_with_their_key(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} needs weights: set eval.weights.{name} to the f"):
        extra_metrics(Eval(metrics=[name]))
    gone = Weights(**{name: str(tmp_path / "gone")})
    with pytest.raises(ConfigError, match=f"eval.weights.{name}=.*gone does not exist"):
        extra_metrics(Eval(metrics=[name], weights=gone))


class Malicious:
    """Its pickle would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_weights_of_another_network_or_kind_of_file_are_refused_and_run_no_code(tmp_path: Path) -> None:
    other, pickled, text = (tmp_path / name for name in ("vgg.pth", "pickled.pth", "text.safetensors"))
    write_trunk(other, trunks.VGG16)
    torch.save({"features.0.weight": Malicious(tmp_path / "ran")}, pickled)
    text.write_text("no weights")
    with pytest.raises(ConfigError, match="does not hold the weights of torchvision's VGG16"):
        extra_metrics(Eval(metrics=["dists"], weights=Weights(dists=str(write_trunk(tmp_path / "a.pth", "AlexNet")))))
    for path in (pickled, text):
        with pytest.raises(ConfigError, match=r"eval.weights.lpips=.* is not a file of weights"):
            extra_metrics(Eval(metrics=["lpips"], weights=Weights(lpips=str(path))))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("name", "other"), [("clip", "dino"), ("dino", "clip")])
def test_the_folder_of_another_model_is_refused(name: str, other: str, weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"eval.weights.{name}=.* is a \w+; supported types"):
        extra_metrics(Eval(metrics=[name], weights=Weights(**{name: getattr(weights, other)})))
    with pytest.raises(ConfigError, match=rf"eval.weights.{name}=.* is not a network"):
        extra_metrics(Eval(metrics=[name], weights=Weights(**{name: str(tmp_path)})))


@pytest.mark.parametrize(("name", "part"), [("clip", "visual_projection"), ("dino", "encoder.layer.1.")])
def test_a_folder_without_some_of_its_tensors_is_refused(
    name: str, part: str, weights: Weights, tmp_path: Path
) -> None:
    """transformers would give random values to them."""
    whole = Path(getattr(weights, name))
    partial = drop_tensors(whole, tmp_path / "partial", part)
    with pytest.raises(ConfigError, match=rf"eval\.weights\.{name}=.*partial lacks tensors of a {name}.*{part}"):
        extra_metrics(Eval(metrics=[name], weights=Weights(**{name: str(partial)})))
    os.truncate(partial / "model.safetensors", 2000)
    with pytest.raises(ConfigError, match=rf"eval\.weights\.{name}=.*partial is not a network"):
        extra_metrics(Eval(metrics=[name], weights=Weights(**{name: str(partial)})))


def test_a_folder_may_lack_the_mask_token_of_training(weights: Weights, tmp_path: Path) -> None:
    published = Weights(dino=str(drop_tensors(Path(str(weights.dino)), tmp_path / "published", "mask_token")))
    values = [measured(group_of("dino", w), doses.noise(scene(), 40), scene()) for w in (weights, published)]
    assert values[0] == values[1] < 1


def test_clips_that_are_too_small_are_listed_as_not_run(weights: Weights) -> None:
    pytest.importorskip("ssimulacra2")
    task = Task(name="a", maker="degrade.defocus")
    settings = Eval(metrics=["ssimulacra2", "lpips", "warp_own"], weights=weights)
    suite = with_extra_metrics(Suite.of(task, 24, 1), settings, 24, 1)
    reasons = {entry.metric: entry.reason for entry in suite.not_run}
    assert "at least 225 pixels; the shorter side has 24" in reasons["ssimulacra2"]
    assert "at least 31 pixels" in reasons["lpips"]
    assert "needs 2 of them" in reasons["warp_own"]
    target = np.zeros((1, 24, 24, 3), np.uint8)
    assert not {"ssimulacra2", "lpips"} & set(suite.measure(target, GroundTruth(target, target, target)).values)


def test_metrics_with_a_network_say_which_and_come_last(weights: Weights) -> None:
    task = Task(name="a", maker="degrade.defocus")
    suite = with_extra_metrics(Suite.of(task), Eval(metrics=["lpips", "clip"], weights=weights), 64, 9)
    assert [metric.key for metric in suite.metrics][-3:] == ["lpips", "clip", "clip_text"]
    assert suite.metrics[-3].title == "LPIPS (AlexNet)"
    assert with_extra_metrics(Suite.of(task), Eval(), 64, 9) == Suite.of(task)

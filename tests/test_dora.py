"""A DoRA is converted to a LoRA, against peft's DoRA layer; without the base's weights it is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from safetensors.torch import save_file
from torch import Tensor, nn

from iclora_train.adapters.base_spec import BaseSpec, model_tensors, open_checkpoint
from iclora_train.adapters.check import check
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import read
from iclora_train.adapters.low_rank import LowRank
from iclora_train.config import ConfigError
from tests.adapter_files import LTX
from tests.test_adapters import run

NAMES = [f"transformer_blocks.0.{name}" for name in ("attn1.to_q", "attn2.to_k", "ff.net.0.proj")]
PREFIXES: dict[str, Callable[[str, str], str]] = {  # module, part of the LoRA or magnitude -> key
    "dora_scale": lambda name, part: "lora_unet_" + name.replace(".", "_") + f".{part}",
    "lora_magnitude_vector": lambda name, part: f"transformer.{name}.{part}",
    "lora_magnitude_vector.weight": lambda name, part: f"base_model.model.{name}.{part}",
}


def weights_of(base: Path) -> Callable[[str], Tensor]:
    tensors = model_tensors(open_checkpoint(str(base)))
    return lambda name: tensors.tensor(f"{name}.weight", torch.device("cpu"))


def dora(weight: Tensor, rslora: bool, seed: int) -> tuple[dict[str, Tensor], Linear]:
    """Random factors and magnitudes of a DoRA with alpha 6, and peft's layer with them."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[0].weight.data = weight.float()
    settings = LoraConfig(r=4, lora_alpha=6, use_dora=True, use_rslora=rslora, target_modules=["0"])
    inject_adapter_in_model(settings, model)
    layer = model[0]
    assert isinstance(layer, Linear)
    a, b, magnitude = layer.lora_A["default"], layer.lora_B["default"], layer.lora_magnitude_vector["default"]
    for parameter in (a.weight, b.weight):
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)  # type: ignore[operator, arg-type]
    magnitude.weight.data *= 1 + 0.1 * torch.randn(len(weight), generator=generator)  # type: ignore[operator, union-attr]
    parts = {"lora_A.weight": a.weight, "lora_B.weight": b.weight, "magnitude": magnitude.weight}
    return {key: value.detach() for key, value in parts.items()}, layer.eval()  # type: ignore[union-attr, operator]


def dora_file(path: Path, base: Path, style: str, rslora: bool = False) -> dict[str, Linear]:
    """A DoRA file, with the settings where the style has them. Returns peft's layers by module."""
    tensors, layers = {}, {}
    metadata = dict(LTX)
    for seed, name in enumerate(NAMES):
        parts, layers[name] = dora(weights_of(base)(name), rslora, seed)
        magnitude = parts.pop("magnitude")
        tensors |= {PREFIXES[style](name, key): value for key, value in parts.items()}
        shaped = magnitude[:, None] if style == "dora_scale" else magnitude
        tensors[PREFIXES[style](name, style)] = shaped.clone()
        if style == "dora_scale":
            tensors[PREFIXES[style](name, "alpha")] = torch.tensor(6.0 * (2 if rslora else 1))  # LyCORIS: effective
    settings = {"lora_alpha": 6, "r": 4, "use_dora": True, "use_rslora": rslora}
    if style == "lora_magnitude_vector":
        metadata["lora_adapter_metadata"] = json.dumps({f"transformer.{key}": v for key, v in settings.items()})
    elif style == "lora_magnitude_vector.weight":
        path.with_name("adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, path, metadata)
    return layers


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("style", PREFIXES)
def test_at_full_rank_the_linear_computes_what_peft_computes(
    tmp_path: Path, official: Path, spec: BaseSpec, style: str, rslora: bool
) -> None:
    layers = dora_file(tmp_path / "a.safetensors", official, style, rslora)
    into = LowRank(1000, torch.Generator().manual_seed(0), weights_of(official))
    adapter = import_adapter(tmp_path / "a.safetensors", spec, low_rank=into)
    assert adapter.weights.keys() == layers.keys()
    for name, (a, b) in adapter.weights.items():
        weight = weights_of(official)(name).float()
        x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            torch.testing.assert_close(x @ (weight + b @ a).T, layers[name](x), rtol=1e-4, atol=1e-5)
    assert into.error < 1e-5


def test_magnitudes_of_columns_are_told_from_those_of_rows(tmp_path: Path, official: Path, spec: BaseSpec) -> None:
    """As LyCORIS stored them before it had rows: (1,in), and the norm of each column."""
    name, generator = NAMES[2], torch.Generator().manual_seed(0)
    weight = weights_of(official)(name).float()
    a, b = torch.randn(2, weight.shape[1], generator=generator), torch.randn(weight.shape[0], 2, generator=generator)
    lengths = torch.rand(1, weight.shape[1], generator=generator) + 1
    key = f"diffusion_model.{name}"
    save_file({f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b, f"{key}.dora_scale": lengths}, tmp_path / "a", LTX)
    into = LowRank(1000, torch.Generator().manual_seed(0), weights_of(official))
    new_a, new_b = import_adapter(tmp_path / "a", spec, low_rank=into).weights[name]
    result = weight + new_b @ new_a
    torch.testing.assert_close(result.norm(dim=0, keepdim=True), lengths, rtol=1e-4, atol=1e-4)
    cosine = nn.functional.cosine_similarity(result, weight + b @ a, dim=0)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_the_command_converts_with_a_base_and_says_what_is_left_out(
    tmp_path: Path, official: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    layers = dora_file(path, official, "dora_scale")
    arguments = ("convert", path, out, "--rank", "8", "--dtype", "fp32", "--base", official)
    code, text, err = run(*arguments, capsys=capsys)
    assert code == 0, err
    lost = total = 0.0
    for name, (a, b) in read(out).weights.items():
        weight = weights_of(official)(name).float()
        x = torch.eye(weight.shape[1])
        change = layers[name](x).detach().T - weight
        lost, total = lost + float((change - b @ a).square().sum()), total + float(change.square().sum())
    assert f"the LoRA leaves out {(lost / total) ** 0.5:.2%} of the adapter's change" in text
    assert run("check", out, "--base", official, capsys=capsys)[0] == 0


@pytest.mark.parametrize("style", PREFIXES)
def test_a_dora_is_never_read_as_a_plain_lora(
    tmp_path: Path, official: Path, spec: BaseSpec, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    dora_file(path, official, style)
    remedy = "convert FILE OUT --base BASE --rank N` makes a plain LoRA of it"
    with pytest.raises(ConfigError, match=r"of another kind of adapter \(DoRA\).*--base BASE --rank N`"):
        import_adapter(path, spec)  # as generate and eval
    assert any(remedy in finding for finding in check(path))
    code, _, err = run("combine", "--adapter", path, "1", tmp_path / "b.safetensors", capsys=capsys)
    assert code == 2
    assert remedy in err
    with pytest.raises(ConfigError, match="so give the base with --base"):
        import_adapter(path, spec, low_rank=LowRank(8, torch.Generator()))
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("magnitude", "message"),
    [
        (torch.ones(3), r"has a magnitude \(DoRA\) of shape \(3,\); it must be \(32\), \(32, 1\) or \(1, 32\)"),
        (torch.full((32,), torch.nan), r"has a magnitude \(DoRA\) that is not made of finite numbers"),
        (torch.ones(32, dtype=torch.int32), r"has a magnitude \(DoRA\) that is not made of finite numbers"),
        (torch.full((32,), 3e38), "the DoRA is larger than fp32 can hold"),
    ],
)
def test_wrong_magnitudes_are_refused(
    tmp_path: Path, official: Path, spec: BaseSpec, magnitude: Tensor, message: str
) -> None:
    key = f"diffusion_model.{NAMES[0]}"
    a, b = torch.ones(2, 32), torch.ones(32, 2)
    save_file(
        {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b, f"{key}.dora_scale": magnitude}, tmp_path / "a", LTX
    )
    into = LowRank(8, torch.Generator().manual_seed(0), weights_of(official))
    with pytest.raises(ConfigError, match=message):
        import_adapter(tmp_path / "a", spec, ReferenceFactors(), into)

"""The effect of our adapter file in ComfyUI, by its published rules: which weights are patched, and by how much.

The rules: keys `diffusion_model.<module>` and `lora_unet_<module, underscored>` exist for every `<module>.weight` of
the model, followed by `.lora_A.weight`/`.lora_B.weight` or `.lora_down.weight`/`.lora_up.weight`. The patch is
strength * scale * B A; scale is alpha / rank if the file has `<key>.alpha`, else 1. Other keys are ignored with a
warning, so a file without a matching key loads and changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclora_train.adapters.base_spec import BaseSpec
from iclora_train.adapters.check import check
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import Adapter, save
from scripts.synthetic_checkpoint import write_checkpoint

STYLES = ((".lora_B.weight", ".lora_A.weight"), (".lora_up.weight", ".lora_down.weight"))


def patches(file: dict[str, Tensor], model: list[str], strength: float = 1.0) -> tuple[dict[str, Tensor], set[str]]:
    """Apply the rules above: module -> change of its weight, and the unused keys of the file."""
    changes, unused = {}, set(file)
    for module in model:
        for key in (f"diffusion_model.{module}", "lora_unet_" + module.replace(".", "_")):
            for up, down in STYLES:
                if key + up in file:
                    b, a = file[key + up], file[key + down]
                    scale = float(file[f"{key}.alpha"]) / a.shape[0] if f"{key}.alpha" in file else 1.0
                    changes[module] = strength * scale * (b.float() @ a.float())
                    unused -= {key + up, key + down, f"{key}.alpha"}
    return changes, unused


@pytest.fixture(scope="module", params=["2.0", "2.3", "2.5"])
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseSpec:
    """The linears of each version's model, both streams."""
    return BaseSpec.open(str(write_checkpoint(tmp_path_factory.mktemp("ltx"), request.param)))


@pytest.fixture
def adapter(spec: BaseSpec) -> Adapter:
    """An adapter for every linear of the transformer, with ranks that differ."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for i, (name, (out_features, in_features)) in enumerate(spec.linears.items()):
        rank = 1 + i % 4
        weights[name] = (
            torch.randn(rank, in_features, generator=generator),
            torch.randn(out_features, rank, generator=generator),
        )
    return Adapter(weights, {"reference_downscale_factor": "2", **spec.metadata})


def test_every_weight_of_our_file_is_patched_at_full_scale(tmp_path: Path, spec: BaseSpec, adapter: Adapter) -> None:
    save(tmp_path / "a.safetensors", adapter)
    changes, unused = patches(load_file(tmp_path / "a.safetensors"), list(spec.linears), strength=0.5)
    assert unused == set()
    assert changes.keys() == adapter.weights.keys()
    for name, (a, b) in adapter.weights.items():
        assert torch.allclose(changes[name], 0.5 * b @ a, atol=1e-6)


def test_converted_files_have_the_same_effect_in_comfyui(tmp_path: Path, spec: BaseSpec, adapter: Adapter) -> None:
    """kohya-style files with alpha: the original and the converted file change the weights equally in ComfyUI."""
    foreign: dict[str, Tensor] = {}
    for i, (name, (a, b)) in enumerate(adapter.weights.items()):
        flat = "lora_unet_" + name.replace(".", "_")
        foreign |= {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b}
        foreign |= {f"{flat}.alpha": torch.tensor(0.5 * (1 + i % 3))} if i % 2 else {}
    save_file(foreign, tmp_path / "foreign.safetensors")
    save(
        tmp_path / "ours.safetensors",
        import_adapter(tmp_path / "foreign.safetensors", spec, ReferenceFactors(downscale=2)),
    )
    before, _ = patches(foreign, list(spec.linears))
    after, unused = patches(load_file(tmp_path / "ours.safetensors"), list(spec.linears))
    assert unused == set()
    assert before.keys() == after.keys() == spec.linears.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)


@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model."])
def test_check_refuses_the_keys_that_comfyui_would_ignore(
    tmp_path: Path, spec: BaseSpec, adapter: Adapter, prefix: str
) -> None:
    file = {
        f"{prefix}{name}.lora_{side}.weight": factor
        for name, factors in adapter.weights.items()
        for side, factor in zip("AB", factors, strict=True)
    }
    changes, unused = patches(file, list(spec.linears))
    assert (changes, unused) == ({}, set(file))
    save_file(file, tmp_path / "a.safetensors", adapter.metadata)
    assert check(tmp_path / "a.safetensors")


def test_comfyui_itself_follows_these_rules(tmp_path: Path, spec: BaseSpec, adapter: Adapter) -> None:
    """The real loader, where ComfyUI's `comfy` can be imported (it is not a dependency)."""
    comfy_lora: Any = pytest.importorskip("comfy.lora")
    save(tmp_path / "a.safetensors", adapter)
    file = load_file(tmp_path / "a.safetensors")
    key_map = {f"diffusion_model.{name}": f"diffusion_model.{name}.weight" for name in spec.linears}
    loaded = comfy_lora.load_lora(file, key_map)
    expected, _ = patches(file, list(spec.linears))
    assert loaded.keys() == set(key_map.values())
    for name, change in expected.items():
        key = f"diffusion_model.{name}.weight"
        added = loaded[key].calculate_weight(
            torch.zeros_like(change), key, 1.0, 1.0, None, lambda weight: weight, torch.float32
        )
        assert torch.allclose(added, change, atol=1e-5)

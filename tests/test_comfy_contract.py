"""What ComfyUI makes of our file, by its rules as published: which weights are patched, and by how much.

The rules: a key `diffusion_model.<module>` or `lora_unet_<module, underscored>` is known for every `<module>.weight` of
the model; behind it `.lora_A.weight`/`.lora_B.weight` or `.lora_down.weight`/`.lora_up.weight`; the patch is strength x
scale x B A with scale alpha / rank where `<key>.alpha` is in the file, and 1 where it is not. Other keys are passed
over with a warning, so that a file with nothing that fits loads and does nothing.
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
    """By the rules above: module -> what is added to its weight, and the keys of the file that nobody used."""
    found, unused = {}, set(file)
    for module in model:
        for key in (f"diffusion_model.{module}", "lora_unet_" + module.replace(".", "_")):
            for up, down in STYLES:
                if key + up in file:
                    b, a = file[key + up], file[key + down]
                    scale = float(file[f"{key}.alpha"]) / a.shape[0] if f"{key}.alpha" in file else 1.0
                    found[module] = strength * scale * (b.float() @ a.float())
                    unused -= {key + up, key + down, f"{key}.alpha"}
    return found, unused


@pytest.fixture(scope="module", params=["2.0", "2.3", "2.5"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseSpec:
    """The linears of each version's model, both streams."""
    return BaseSpec.open(str(write_checkpoint(tmp_path_factory.mktemp("ltx"), request.param)))


@pytest.fixture
def adapter(target: BaseSpec) -> Adapter:
    """An adapter for every linear of the transformer, with ranks that differ."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for i, (name, (out, wide)) in enumerate(target.linears.items()):
        rank = 1 + i % 4
        weights[name] = (torch.randn(rank, wide, generator=generator), torch.randn(out, rank, generator=generator))
    return Adapter(weights, {"reference_downscale_factor": "2", **target.metadata})


def test_every_weight_of_our_file_is_patched_at_full_scale(tmp_path: Path, target: BaseSpec, adapter: Adapter) -> None:
    save(tmp_path / "a.safetensors", adapter)
    found, unused = patches(load_file(tmp_path / "a.safetensors"), list(target.linears), strength=0.5)
    assert unused == set()
    assert found.keys() == adapter.weights.keys()
    for name, (a, b) in adapter.weights.items():
        assert torch.allclose(found[name], 0.5 * b @ a, atol=1e-6)


def test_converted_files_do_in_comfyui_what_their_originals_did(
    tmp_path: Path, target: BaseSpec, adapter: Adapter
) -> None:
    """kohya-style files, alpha included: ComfyUI adds the same with the original and with what convert makes of it."""
    theirs: dict[str, Tensor] = {}
    for i, (name, (a, b)) in enumerate(adapter.weights.items()):
        flat = "lora_unet_" + name.replace(".", "_")
        theirs |= {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b}
        theirs |= {f"{flat}.alpha": torch.tensor(0.5 * (1 + i % 3))} if i % 2 else {}
    save_file(theirs, tmp_path / "theirs.safetensors")
    save(
        tmp_path / "ours.safetensors",
        import_adapter(tmp_path / "theirs.safetensors", target, ReferenceFactors(downscale=2)),
    )
    before, _ = patches(theirs, list(target.linears))
    after, unused = patches(load_file(tmp_path / "ours.safetensors"), list(target.linears))
    assert unused == set()
    assert before.keys() == after.keys() == target.linears.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)


@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model."])
def test_what_comfyui_would_pass_over_is_what_check_refuses(
    tmp_path: Path, target: BaseSpec, adapter: Adapter, prefix: str
) -> None:
    file = {
        f"{prefix}{name}.lora_{side}.weight": half
        for name, pair in adapter.weights.items()
        for side, half in zip("AB", pair, strict=True)
    }
    found, unused = patches(file, list(target.linears))
    assert (found, unused) == ({}, set(file))
    save_file(file, tmp_path / "a.safetensors", adapter.metadata)
    assert check(tmp_path / "a.safetensors")


def test_comfyui_itself_patches_what_the_rules_say(tmp_path: Path, target: BaseSpec, adapter: Adapter) -> None:
    """The real loader, where ComfyUI's `comfy` can be imported (it is not a dependency)."""
    real: Any = pytest.importorskip("comfy.lora")
    save(tmp_path / "a.safetensors", adapter)
    file = load_file(tmp_path / "a.safetensors")
    known = {f"diffusion_model.{name}": f"diffusion_model.{name}.weight" for name in target.linears}
    loaded = real.load_lora(file, known)
    wanted, _ = patches(file, list(target.linears))
    assert loaded.keys() == set(known.values())
    for name, change in wanted.items():
        key = f"diffusion_model.{name}.weight"
        added = loaded[key].calculate_weight(
            torch.zeros_like(change), key, 1.0, 1.0, None, lambda whole: whole, torch.float32
        )
        assert torch.allclose(added, change, atol=1e-5)

"""ComfyUI's own rules: which weights our adapter file changes and by how much, and the nodes of the workflow.

The rules of the file: keys `diffusion_model.<module>` and `lora_unet_<module, underscored>`, and from version 0.25 on
`<module>` without a prefix, exist for every `<module>.weight` of the model, followed by `.lora_A.weight` and
`.lora_B.weight` or by `.lora_down.weight` and `.lora_up.weight`. The patch is strength * scale * B A; scale is alpha /
rank if the file has `<key>.alpha`, else 1. Other keys are ignored with a warning, so a file without a matching key
loads and changes nothing.

ComfyUI is not a dependency. Where its checkout is on PYTHONPATH, behind this project, the last tests compare the rules
and the table of node classes with ComfyUI itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclora_train.adapters.base_spec import BaseSpec
from iclora_train.adapters.check import check
from iclora_train.adapters.comfyui_nodes import COMFYUI, NODE_CLASSES, NodeInput
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import Adapter, save
from scripts.synthetic_checkpoint import write_checkpoint

STYLES = ((".lora_B.weight", ".lora_A.weight"), (".lora_up.weight", ".lora_down.weight"))
KEYS_WITHOUT_PREFIX = (0, 25)  # the first version of ComfyUI that loads them for LTX models


def patches(
    file: dict[str, Tensor], model: list[str], strength: float = 1.0, version: tuple[int, int] = KEYS_WITHOUT_PREFIX
) -> tuple[dict[str, Tensor], set[str]]:
    """Apply the rules above: module -> change of its weight, and the unused keys of the file."""
    changes, unused = {}, set(file)
    for module in model:
        bare = [module] if version >= KEYS_WITHOUT_PREFIX else []
        for key in (f"diffusion_model.{module}", "lora_unet_" + module.replace(".", "_"), *bare):
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


@pytest.mark.parametrize(
    ("prefix", "version", "loads"),
    [
        ("", (0, 24), False),
        ("", (0, 25), True),
        ("transformer.", (0, 25), False),
        ("base_model.model.", (0, 25), False),
    ],
)
def test_check_refuses_keys_that_some_program_would_ignore(
    tmp_path: Path, spec: BaseSpec, adapter: Adapter, prefix: str, version: tuple[int, int], loads: bool
) -> None:
    """Keys without a prefix: ComfyUI loads them from 0.25 on, diffusers does not."""
    file = {
        f"{prefix}{name}.lora_{side}.weight": factor
        for name, factors in adapter.weights.items()
        for side, factor in zip("AB", factors, strict=True)
    }
    changes, unused = patches(file, list(spec.linears), version=version)
    assert (changes.keys(), unused) == ((spec.linears.keys(), set()) if loads else (set(), set(file)))
    save_file(file, tmp_path / "a.safetensors", adapter.metadata)
    assert check(tmp_path / "a.safetensors")


# ---- ComfyUI itself


@pytest.fixture
def comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI can be imported, without a GPU too."""
    cli_args: Any = pytest.importorskip("comfy.cli_args")
    monkeypatch.setattr(cli_args.args, "cpu", not torch.cuda.is_available())


def full_model(spec: BaseSpec) -> Any:
    """What ComfyUI's `model_lora_keys_unet` reads of a model: its keys, its configuration and its kind."""
    kind: Any = importlib.import_module("comfy.model_base").LTXAV
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    model.model_config = type("Config", (), {"unet_config": {}})()
    keys = [f"diffusion_model.{name}.weight" for name in spec.linears]
    model.state_dict = lambda *args, **kwargs: dict.fromkeys(keys)
    return model


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
def test_comfyui_itself_follows_these_rules(tmp_path: Path, spec: BaseSpec, adapter: Adapter, prefix: str) -> None:
    lora, version = importlib.import_module("comfy.lora"), importlib.import_module("comfyui_version").__version__
    save(tmp_path / "a.safetensors", adapter)
    file = {
        key.replace("diffusion_model.", prefix): factor for key, factor in load_file(tmp_path / "a.safetensors").items()
    }
    major, minor, *_ = map(int, version.split("."))
    expected, _ = patches(file, list(spec.linears), version=(major, minor))
    loaded = lora.load_lora(file, lora.model_lora_keys_unet(full_model(spec), {}))
    assert loaded.keys() == {f"diffusion_model.{name}.weight" for name in expected}
    for name, change in expected.items():
        key = f"diffusion_model.{name}.weight"
        added = loaded[key].calculate_weight(
            torch.zeros_like(change), key, 1.0, 1.0, None, lambda weight: weight, torch.float32
        )
        assert torch.allclose(added, change, atol=1e-5)


NODE_MODULES = (
    "nodes",
    *(f"comfy_extras.nodes_{name}" for name in ("lt", "lt_audio", "custom_sampler", "video", "images")),
    *(f"comfy_extras.nodes_{name}" for name in ("post_processing", "latent", "mask")),  # latent imports the first
)


@pytest.mark.usefixtures("comfyui")
@pytest.mark.filterwarnings("ignore")  # of ComfyUI's own imports
def test_comfyui_has_the_nodes_of_the_table() -> None:
    """Every input that the workflow sets exists with its type, default, range and choices; widgets keep their order."""
    modules = [importlib.import_module(name) for name in NODE_MODULES]
    classes: dict[str, Any] = dict(modules[0].NODE_CLASS_MAPPINGS)
    for module in modules[1:]:
        schemas = (value for value in vars(module).values() if hasattr(value, "define_schema"))
        classes |= {node.define_schema().node_id: node for node in schemas if "define_schema" in vars(node)}
    own = {name: ours for name, ours in NODE_CLASSES.items() if ours.package == COMFYUI}
    assert len(NODE_CLASSES) - len(own) == 1
    for name, ours in own.items():
        inputs = classes[name].INPUT_TYPES()
        declared = {**inputs["required"], **inputs.get("optional", {})}
        listed = [spec.name for spec in ours.inputs]
        assert [key for key in declared if key in listed] == listed, name
        assert set(inputs["required"]) <= set(listed), name
        for spec in ours.inputs:
            _compare(spec, *declared[spec.name])
        outputs = [str(kind) for kind in classes[name].RETURN_TYPES]
        assert outputs[: len(ours.outputs)] == [kind for _, kind in ours.outputs], name


def _compare(spec: NodeInput, kind: Any, options: Mapping[str, Any] | None = None) -> None:
    """An input of the table against ComfyUI's declaration. A dynamic combo is a combo whose choices add widgets."""
    dynamic = kind == "COMFY_DYNAMICCOMBO_V3"
    listed = kind if isinstance(kind, list) else (options or {}).get("options", [])
    choices = [choice["key"] for choice in listed] if dynamic else listed
    assert ("COMBO" if isinstance(kind, list) or dynamic else str(kind)) == spec.type, spec
    assert all(choice in choices for choice in spec.choices), spec
    assert not dynamic or spec.default in choices, spec
    if spec.type in ("INT", "FLOAT", "FLOAT,INT"):
        assert options is not None
        assert spec.default == options["default"], spec
        assert spec.low is None or options["min"] <= spec.low, spec
        assert spec.high is None or spec.high <= options["max"], spec

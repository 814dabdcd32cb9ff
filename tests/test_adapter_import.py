"""Adapters of other programs are imported with the same weight difference, and diffusers loads our files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel
from peft.tuners.lora import Linear, LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from iclora_train.adapters.base_spec import BaseSpec
from iclora_train.adapters.check import check
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import Adapter, save
from iclora_train.config import ConfigError
from scripts.synthetic.published import TRANSFORMER, renamed, transformer_arguments
from tests.adapter_files import (
    AUDIO,
    BARE_QUERY,
    NO_WEIGHTS,
    PUBLISHED,
    QUERY,
    TOP_LEVEL,
    VIDEO,
    adapter_for,
    deltas,
    kohya,
    relative_error,
    same,
    tensors_of,
    write,
)


def peft(expected: Adapter, path: Path, rank_stabilised: bool = False) -> Adapter:
    """A folder as peft writes it; alpha is 6, for attn2.to_k 12; ranks are 3."""
    names = {"A": "lora_A", "B": "lora_B"}
    tensors = {
        f"base_model.model.{name}.{names[side]}.default.weight": factor
        for name, pair in expected.weights.items()
        for side, factor in zip("AB", pair, strict=True)
    }
    save_file(tensors, path, {"format": "pt"})
    settings = {"r": 3, "lora_alpha": 6, "alpha_pattern": {"attn2.to_k": 12}, "use_rslora": rank_stabilised}
    path.with_name("adapter_config.json").write_text(json.dumps(settings))
    divisor = math.sqrt(3) if rank_stabilised else 3
    alpha = {name: 12 if name.endswith("attn2.to_k") else 6 for name in expected.weights}
    return Adapter({n: (a, b * alpha[n] / divisor) for n, (a, b) in expected.weights.items()}, expected.metadata)


def diffusers(expected: Adapter, path: Path) -> Adapter:
    """diffusers' names, and its metadata with alpha 6 at rank 3: the weight difference is twice `expected`."""
    tensors = {}
    for name, (a, b) in expected.weights.items():
        module = "transformer." + renamed(f"{name}.weight", TRANSFORMER).removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    config = json.dumps({"transformer.r": 3, "transformer.lora_alpha": 6})
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": config})
    return Adapter({name: (a, 2 * b) for name, (a, b) in expected.weights.items()}, expected.metadata)


def bare(expected: Adapter, path: Path) -> Adapter:
    tensors = {key.removeprefix("diffusion_model."): tensor for key, tensor in tensors_of(expected).items()}
    save_file(tensors, path, {"reference_downscale_factor": "2.0"})
    return expected


def official_trainer(expected: Adapter, path: Path) -> Adapter:
    tensors = {key: tensor.bfloat16() for key, tensor in tensors_of(expected).items()}
    save_file(tensors, path, {"format": "pt", "reference_downscale_factor": "2"})
    return Adapter(
        {name: (a.bfloat16().float(), b.bfloat16().float()) for name, (a, b) in expected.weights.items()},
        expected.metadata,
    )


def peft_rank_stabilised(expected: Adapter, path: Path) -> Adapter:
    return peft(expected, path, rank_stabilised=True)


@pytest.mark.parametrize("style", [kohya, peft, peft_rank_stabilised, diffusers, bare, official_trainer])
@pytest.mark.parametrize("with_base", [True, False])
def test_adapters_of_other_programs_are_imported(
    tmp_path: Path, spec: BaseSpec, style: Callable[[Adapter, Path], Adapter], with_base: bool
) -> None:
    """For every style, the converted file has the weight difference of the original, alpha included, and passes
    check."""
    base = spec if with_base else None
    expected = style(adapter_for(base or PUBLISHED, VIDEO + AUDIO + TOP_LEVEL), tmp_path / "foreign.safetensors")
    imported = import_adapter(tmp_path / "foreign.safetensors", base, ReferenceFactors(downscale=2))
    assert same(imported, deltas(expected))
    assert imported.downscale == 2
    assert not any("alpha" in key or key.startswith("ss_ref") or "_metadata" in key for key in imported.metadata)
    save(tmp_path / "ours.safetensors", imported)
    assert check(tmp_path / "ours.safetensors", base) == []


def test_a_missing_reference_factor_must_be_set(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    adapter = adapter_for(PUBLISHED, VIDEO)
    for style in (kohya, bare):  # "2" under musubi's name, and "2.0"
        style(adapter, path)
        assert import_adapter(path).metadata["reference_downscale_factor"] == "2"
    for factor, message in ((None, "lacks reference_downscale_factor"), ("0.5", "'0.5' must be a whole number")):
        save_file(tensors_of(adapter), path, {} if factor is None else {"reference_downscale_factor": factor})
        with pytest.raises(ConfigError, match=r"a\.safetensors: metadata") as caught:
            import_adapter(path)
        assert message in str(caught.value)
        assert import_adapter(path, factors=ReferenceFactors(downscale=2, temporal=4)).temporal_scale == 4
    save_file(tensors_of(adapter), path, {})
    plain_lora = import_adapter(path, factors=ReferenceFactors(reference=False))
    assert (plain_lora.in_context, plain_lora.downscale) == (False, 1)
    assert import_adapter(path, factors=ReferenceFactors(downscale=1)).in_context


def test_an_import_for_another_base_is_refused(tmp_path: Path, spec: BaseSpec) -> None:
    path = tmp_path / "a.safetensors"
    save(path, adapter_for(spec, VIDEO, base_model_version="2.0"))
    assert import_adapter(path).metadata["base_model_version"] == "2.0"
    with pytest.raises(ConfigError, match=r"was trained on ltx 2\.0, this base is ltx 2\.3"):
        import_adapter(path, spec)
    save_file({"lora_unet_mid_block_attn.lora_down.weight": torch.ones(2, 2)}, path, {})
    with pytest.raises(ConfigError, match=r"mid_block_attn has lora_A without lora_B"):
        import_adapter(path, spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{QUERY}.alpha": torch.ones(2)}, "alpha of transformer_blocks.0.attn1.to_q has shape (2,)"),
        (NO_WEIGHTS | {f"{QUERY}.alpha": torch.ones(())}, "attn1.to_q has alpha and no weights"),
        (
            {f"{QUERY}.dora_scale": torch.ones(4)},
            "to_q.dora_scale' is of another kind of adapter (DoRA); `python -m iclora_train.adapters convert",
        ),
        ({f"{BARE_QUERY}.lora_A.weight": torch.ones(2, 4)}, "names transformer_blocks.0.attn1.to_q for a second time"),
        ({f"{QUERY}.lora_B.weight": None}, "has lora_A without lora_B"),
    ],
)
def test_an_adapter_that_cannot_be_converted_is_refused(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    with pytest.raises(ConfigError, match=r"a\.safetensors") as caught:
        import_adapter(write(tmp_path / "a.safetensors", changes))
    assert message in str(caught.value)


def test_adapter_config_applies_to_peft_style_keys_only(tmp_path: Path, spec: BaseSpec) -> None:
    """Our own file does not change its meaning next to an adapter_config.json."""
    expected = adapter_for(spec, VIDEO)
    peft(expected, tmp_path / "foreign.safetensors")
    save(tmp_path / "ours.safetensors", expected)
    assert same(import_adapter(tmp_path / "ours.safetensors", spec), deltas(expected))


@pytest.mark.parametrize("ranks", [(3, 3), (3, 5)])
def test_diffusers_loads_our_file_with_the_same_weight_difference(
    tmp_path: Path, official: Path, spec: BaseSpec, ranks: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Every module, including audio, loads without a warning, also with ranks that differ. A file without the prefix
    gives a warning, which shows that the check works."""
    names = [name for name in spec.linears if "connector" not in name]
    adapter = adapter_for(spec, names, ranks[0])
    adapter.weights.update(adapter_for(spec, names[::3], ranks[1]).weights)
    save(tmp_path / "a.safetensors", adapter)
    bare(adapter, tmp_path / "bare.safetensors")
    with safe_open(official, framework="pt") as opened:
        section = json.loads(opened.metadata()["config"])["transformer"]
    model = LTX2VideoTransformer3DModel(**transformer_arguments(section))
    model.load_lora_adapter(LTX2Pipeline.lora_state_dict(str(tmp_path / "bare.safetensors")), prefix="transformer")
    assert "No LoRA keys" in caplog.text
    caplog.clear()
    model.load_lora_adapter(LTX2Pipeline.lora_state_dict(str(tmp_path / "a.safetensors")), prefix="transformer")
    assert caplog.records == []
    loaded = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert len(loaded) == len(adapter.weights)
    for name, (a, b) in adapter.weights.items():
        module = loaded[renamed(f"{name}.weight", TRANSFORMER).removesuffix(".weight")]
        assert isinstance(module, Linear)
        delta = module.get_delta_weight(*module.active_adapters)
        assert relative_error(delta.detach(), b @ a) < 1e-6

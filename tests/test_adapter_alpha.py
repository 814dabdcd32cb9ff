"""alpha / rank of a module from every place where programs write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from iclora_train.adapters.check import check
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import Adapter
from iclora_train.config import ConfigError
from tests.adapter_files import PUBLISHED, VIDEO, adapter_for, deltas, same, tensors_of

QUERY, OUT, KEY = VIDEO[0], VIDEO[1], VIDEO[2]  # attn1.to_q, attn1.to_out.0, attn2.to_k of block 0


def imported(path: Path, adapter: Adapter, metadata: dict[str, str], prefix: str = "diffusion_model.") -> Adapter:
    tensors = {key.replace("diffusion_model.", prefix, 1): tensor for key, tensor in tensors_of(adapter).items()}
    save_file(tensors, path, metadata or None)
    return import_adapter(path, None, ReferenceFactors(1))


def set_metadata(path: Path, metadata: dict[str, str]) -> Path:
    save_file(load_file(path), path, metadata)
    return path


def scales(adapter: Adapter, result: Adapter) -> dict[str, float]:
    return {n: float((result.weights[n][1] / adapter.weights[n][1]).mean()) for n in adapter.weights}


def test_without_alpha_every_rank_has_scale_1(tmp_path: Path) -> None:
    """Also where ranks differ: diffusers took the first rank as alpha of all."""
    small, large = adapter_for(PUBLISHED, [QUERY], rank=2), adapter_for(PUBLISHED, [KEY], rank=8)
    mixed = Adapter(small.weights | large.weights)
    assert same(imported(tmp_path / "a.safetensors", mixed, {}), deltas(mixed))


@pytest.mark.parametrize("key", ["alpha", "lora_alpha", "network_alpha"])
def test_alpha_in_the_metadata_counts_if_nothing_else_says_it(tmp_path: Path, key: str) -> None:
    adapter = adapter_for(PUBLISHED, [QUERY], rank=8)
    result = imported(tmp_path / "a.safetensors", adapter, {key: "2"})
    assert scales(adapter, result)[QUERY] == pytest.approx(0.25)
    assert key not in result.metadata
    assert "metadata give transformer_blocks.0.attn1.to_q the scale 0.25" in " ".join(check(tmp_path / "a.safetensors"))
    assert check(set_metadata(tmp_path / "a.safetensors", {key: "8"})) == []  # alpha = rank
    with pytest.raises(ConfigError, match=rf"a.safetensors: metadata {key} is 'two'; it must be a number"):
        imported(tmp_path / "a.safetensors", adapter, {key: "two"})


def test_alpha_of_the_training_settings_is_not_applied_twice(tmp_path: Path) -> None:
    """musubi-tuner's converter multiplies alpha into B and keeps ss_network_alpha in the metadata."""
    adapter = adapter_for(PUBLISHED, [QUERY], rank=8)
    assert scales(adapter, imported(tmp_path / "a.safetensors", adapter, {"ss_network_alpha": "2"}))[QUERY] == 1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("attn1.to_q", {QUERY: 2.0, OUT: 1.0, KEY: 1.0}),  # the end of the name
        (r"attn1\.to_q$", {QUERY: 2.0, OUT: 1.0, KEY: 1.0}),
        (rf"^{QUERY}", {QUERY: 2.0, OUT: 1.0, KEY: 1.0}),  # the whole name
        ("^attn1.to_q", {QUERY: 1.0, OUT: 1.0, KEY: 1.0}),  # peft: ^ means the whole name
        ("ttn1.to_q", {QUERY: 1.0, OUT: 1.0, KEY: 1.0}),  # not after a dot
        ("to_out.0", {QUERY: 1.0, OUT: 2.0, KEY: 1.0}),
    ],
)
def test_alpha_pattern_means_what_it_means_in_peft(tmp_path: Path, pattern: str, expected: dict[str, float]) -> None:
    adapter = adapter_for(PUBLISHED, [QUERY, OUT, KEY], rank=4)
    config = json.dumps({"transformer.lora_alpha": 4, "transformer.alpha_pattern": {pattern: 8}})
    result = imported(tmp_path / "a.safetensors", adapter, {"lora_adapter_metadata": config}, "transformer.")
    assert scales(adapter, result) == pytest.approx(expected)


def test_alpha_pattern_has_diffusers_names(tmp_path: Path) -> None:
    adapter = adapter_for(PUBLISHED, ["patchify_proj"], rank=4)
    config = json.dumps({"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"proj_in": 8}})
    result = imported(tmp_path / "a.safetensors", adapter, {"lora_adapter_metadata": config}, "transformer.")
    assert scales(adapter, result)["patchify_proj"] == pytest.approx(2)


def test_alpha_that_makes_b_infinite_is_refused(tmp_path: Path) -> None:
    adapter = adapter_for(PUBLISHED, [QUERY])
    with pytest.raises(ConfigError, match="alpha makes lora_B larger than fp32 can hold"):
        imported(tmp_path / "a.safetensors", adapter, {"alpha": "1e300"})
    with pytest.raises(ConfigError, match=r"metadata alpha is .nan.; it must be a"):
        imported(tmp_path / "a.safetensors", adapter, {"alpha": "nan"})
    assert torch.isfinite(adapter.weights[QUERY][1]).all()

"""Adapters that can be evaluated (ours, of other programs, untrained, none) and adapters that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.clips.conditions import ADAPTER_ONLY, ADAPTER_REFERENCE, BASE, BASE_REFERENCE, batches
from eval.clips.judged_adapter import open_adapter
from eval.run import open_source, results_folder
from iclora_train.adapters import lora
from iclora_train.config import ConfigError
from iclora_train.ltx2.base_model import BaseModel
from tests.eval_world import World, build, write_adapter


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world without an evaluation."""
    return build(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def base(world: World) -> BaseModel:
    return BaseModel.open(str(world.root / "base"))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"base_model_version": "2.5"}, "was trained on tiny 2.5, this base is tiny 2.3"),
        ({"base_model_family": "ltx"}, "was trained on ltx 2.3"),
        ({"reference_downscale_factor": "2"}, "needs references at downscale 2"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    world: World, base: BaseModel, tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    path = tmp_path / "foreign.safetensors"
    write_adapter(path, base, **metadata)
    with pytest.raises(ConfigError, match=message):
        open_adapter(world.config(f"adapter={path}"), base)


def test_an_adapter_for_a_wider_base_is_refused(world: World, base: BaseModel, tmp_path: Path) -> None:
    """The metadata does not declare another base, but the shapes differ."""
    path = tmp_path / "wide.safetensors"
    wide = {"A": torch.ones(2, 64), "B": torch.ones(64, 2)}
    save_file({f"diffusion_model.transformer_blocks.0.attn1.to_q.lora_{n}.weight": t for n, t in wide.items()}, path)
    with pytest.raises(ConfigError, match=r"wide.safetensors: .*wrong base model"):
        open_adapter(world.config(f"adapter={path}"), base)


def test_an_adapter_of_another_program_gets_the_factors_of_the_task_and_a_note(
    world: World, base: BaseModel, tmp_path: Path
) -> None:
    """Diffusers' key names without metadata: the same weights, marked as foreign."""
    tensors = {
        key.replace("diffusion_model.", "transformer."): value for key, value in load_file(world.adapter).items()
    }
    path = tmp_path / "foreign.safetensors"
    save_file(tensors, path)
    opened, adapter = open_adapter(world.config(f"adapter={path}"), base), open_adapter(world.config(), base)
    assert opened.foreign
    assert not adapter.foreign
    assert opened.note is not None
    assert "the factors of task deblur are used" in opened.note
    assert adapter.note is None
    assert opened.adapter is not None
    assert adapter.adapter is not None
    assert opened.adapter.weights.keys() == adapter.adapter.weights.keys()
    for name, factors in opened.adapter.weights.items():
        assert all(torch.equal(a, b) for a, b in zip(factors, adapter.adapter.weights[name], strict=True))
    assert opened.json_facts["metadata"]["base_model_family"] == "tiny"


def test_an_untrained_adapter_of_another_program_gets_the_factors_of_the_task(
    world: World, base: BaseModel, tmp_path: Path
) -> None:
    path = tmp_path / "fresh.safetensors"
    fresh = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in load_file(world.adapter).items()}
    save_file(fresh, path)
    opened = open_adapter(world.config(f"adapter={path}"), base)
    assert opened.note is not None
    for part in (
        "declares no base; its linears fit tiny 2.3",
        "was never trained",
        "the factors of task deblur are used",
    ):
        assert part in opened.note
    assert opened.json_facts["metadata"]["base_model_family"] == "tiny"


def test_an_untrained_adapter_gives_the_clips_of_the_base(world: World, base: BaseModel, tmp_path: Path) -> None:
    adapter = lora.read(world.adapter)
    path = tmp_path / "fresh.safetensors"
    lora_b = {f"diffusion_model.{n}.lora_B.weight": torch.zeros_like(b) for n, (_, b) in adapter.weights.items()}
    lora_a = {f"diffusion_model.{n}.lora_A.weight": a for n, (a, _) in adapter.weights.items()}
    save_file(lora_b | lora_a, path, adapter.metadata)
    assert_equals_the_base(world, f"adapter={path}", "was never trained")


def test_no_adapter_gives_the_clips_of_the_base(world: World) -> None:
    assert_equals_the_base(world, "adapter=none", "every condition is sampled from the base alone")
    assert results_folder(world.config("adapter=none")).name.startswith("eval-none")


def assert_equals_the_base(world: World, adapter: str, note: str) -> None:
    source = open_source(world.config(adapter))
    assert source.judged.note is not None
    assert note in source.judged.note
    batch = batches(source.held_out.windows, source.seeds, 3)[0]
    conditions = {condition.name: source.clips(condition, batch)[0] for condition in source.conditions[:4]}
    assert (conditions[ADAPTER_REFERENCE] == conditions[BASE_REFERENCE]).all()
    assert (conditions[ADAPTER_ONLY] == conditions[BASE]).all()
    assert (conditions[ADAPTER_REFERENCE] != conditions[BASE]).any()


def test_adapter_none_needs_no_file(world: World, base: BaseModel, tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text(json.dumps({"no": "adapter"}))
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        open_adapter(world.config(f"adapter={path}"), base)

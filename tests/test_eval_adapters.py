"""Which adapters can be judged: ours, those of other programs, untrained ones, and none; and which are refused."""

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
    """A world in which nothing has been judged."""
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
    """No metadata says so: the shapes do."""
    path = tmp_path / "wide.safetensors"
    wide = {"A": torch.ones(2, 64), "B": torch.ones(64, 2)}
    save_file({f"diffusion_model.transformer_blocks.0.attn1.to_q.lora_{n}.weight": t for n, t in wide.items()}, path)
    with pytest.raises(ConfigError, match=r"wide.safetensors: .*wrong base model"):
        open_adapter(world.config(f"adapter={path}"), base)


def test_another_programs_adapter_takes_the_tasks_factors_and_says_so(
    world: World, base: BaseModel, tmp_path: Path
) -> None:
    """Diffusers' key names, no metadata: the same weights as ours, marked as foreign."""
    tensors = {
        key.replace("diffusion_model.", "transformer."): value for key, value in load_file(world.adapter).items()
    }
    path = tmp_path / "theirs.safetensors"
    save_file(tensors, path)
    judged, own = open_adapter(world.config(f"adapter={path}"), base), open_adapter(world.config(), base)
    assert judged.foreign
    assert not own.foreign
    assert judged.note is not None
    assert "those of task deblur are used" in judged.note
    assert own.note is None
    assert judged.adapter is not None
    assert own.adapter is not None
    assert judged.adapter.weights.keys() == own.adapter.weights.keys()
    for name, halves in judged.adapter.weights.items():
        assert all(torch.equal(a, b) for a, b in zip(halves, own.adapter.weights[name], strict=True))
    assert judged.json_facts["metadata"]["base_model_family"] == "tiny"


def test_an_untrained_adapter_is_judged_and_makes_the_bases_clips(
    world: World, base: BaseModel, tmp_path: Path
) -> None:
    own = lora.read(world.adapter)
    path = tmp_path / "fresh.safetensors"
    zero = {f"diffusion_model.{n}.lora_B.weight": torch.zeros_like(b) for n, (_, b) in own.weights.items()}
    cached = {f"diffusion_model.{n}.lora_A.weight": a for n, (a, _) in own.weights.items()}
    save_file(zero | cached, path, own.metadata)
    assert_makes_the_bases_clips(world, f"adapter={path}", "was never trained")


def test_no_adapter_makes_the_bases_clips(world: World) -> None:
    assert_makes_the_bases_clips(world, "adapter=none", "every condition is sampled from the base alone")
    assert results_folder(world.config("adapter=none")).name == "eval-none"


def assert_makes_the_bases_clips(world: World, adapter: str, note: str) -> None:
    source = open_source(world.config(adapter))
    assert source.judged.note is not None
    assert note in source.judged.note
    batch = batches(source.held_out.windows, source.seeds, 3)[0]
    conditions = {condition.name: source.clips(condition, batch)[0] for condition in source.conditions[:4]}
    assert (conditions[ADAPTER_REFERENCE] == conditions[BASE_REFERENCE]).all()
    assert (conditions[ADAPTER_ONLY] == conditions[BASE]).all()
    assert (conditions[ADAPTER_REFERENCE] != conditions[BASE]).any()


def test_none_of_it_is_an_adapter(world: World, base: BaseModel, tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text(json.dumps({"no": "adapter"}))
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        open_adapter(world.config(f"adapter={path}"), base)

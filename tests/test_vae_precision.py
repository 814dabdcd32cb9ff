"""data.vae_precision: the precision in which the VAE makes latents. Pixels never depend on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_prep import pipeline
from iclora_train.config import ConfigError
from iclora_train.data.shards import ShardSet
from tests.prep import config_of, contents, write_clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), ("train", "val", "heldout"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, clips: Path, base: Path) -> dict[str, Path]:
    """A prepared folder for each value."""
    values = ("null", "fp32", "bf16")
    return {
        value: pipeline.prepare(config_of(tmp_path_factory.mktemp(value), clips, base, f"data.vae_precision={value}"))
        for value in values
    }


def test_null_is_fp32_and_bf16_changes_latents_only(sets: dict[str, Path]) -> None:
    assert contents(sets["null"]) == contents(sets["fp32"])
    exact, coarse = contents(sets["fp32"]), contents(sets["bf16"])
    assert exact.keys() == coarse.keys()
    different = {name for name in exact if exact[name] != coarse[name]}
    assert {name.split("/")[0] for name in different if name.endswith(".tar")} == {"latents"}
    assert not any(name.startswith("pairs/") for name in different)


def test_bf16_latents_are_rounded_but_close(sets: dict[str, Path]) -> None:
    exact, coarse = (ShardSet.open(sets[value] / "latents") for value in ("fp32", "bf16"))
    for i in range(len(exact)):
        a, b = exact.read_latents(i).target.float(), coarse.read_latents(i).target.float()
        assert 0 < (a - b).square().mean().sqrt() < 0.05 * a.std()
        assert b.dtype == torch.float32


def test_training_and_eval_read_sets_of_either_precision(sets: dict[str, Path], clips: Path, base: Path) -> None:
    for value, folder in sets.items():
        config = config_of(folder, clips, base, f"data.vae_precision={value}")
        for kind in ("pairs", "latents"):
            ShardSet.open(folder / kind).require_settings(config)
    config = config_of(sets["bf16"], clips, base)
    ShardSet.open(sets["bf16"] / "pairs").require_settings(config)
    with pytest.raises(ConfigError, match="vae_precision"):
        ShardSet.open(sets["bf16"] / "latents").require_settings(config)


def test_latents_of_another_precision_are_not_continued(sets: dict[str, Path], clips: Path, base: Path) -> None:
    before = contents(sets["bf16"])
    with pytest.raises(ConfigError, match="vae_precision"):
        pipeline.prepare(config_of(sets["bf16"], clips, base))
    assert contents(sets["bf16"]) == before


def test_fingerprints_of_older_sets_are_unchanged(sets: dict[str, Path]) -> None:
    for kind in ("pairs", "latents"):
        index = json.loads((sets["null"] / kind / "index.json").read_text())
        assert "vae_precision" not in json.dumps(index)

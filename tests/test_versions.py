"""The table of LTX versions agrees with the settings, and one entry is enough for a new version."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
from hydra import compose, initialize_config_dir

from iclora_train.adapters.card import card_text
from iclora_train.adapters.comfyui_settings import WorkflowSettings
from iclora_train.adapters.comfyui_workflow import build_workflow
from iclora_train.adapters.file import Adapter
from iclora_train.config import Sampling
from iclora_train.config.hydra_app import conf_dir, register_schema
from iclora_train.diffusion.guidance import Guidance
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text.gemma_files import FAMILIES, GemmaFiles
from iclora_train.ltx2.weights.versions import VERSIONS, Version, detect_version
from scripts.synthetic_checkpoint import write_checkpoint


@pytest.mark.parametrize("version", VERSIONS.values(), ids=str)
def test_the_settings_of_a_version_equal_the_table(version: Version) -> None:
    register_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", ["conf=deblur", f"model={version.conf}", "model.checkpoint=x"])
    assert (config.model.name, config.model.version) == (version.conf, version.name)
    assert (config.sample.steps, tuple(config.sample.stg_blocks)) == (version.steps, version.stg_blocks)
    assert config.sample.schedule == "dev"


def test_the_default_stg_blocks_are_the_blocks_of_the_oldest_version() -> None:
    assert tuple(Sampling().stg_blocks) == Guidance().stg_blocks == VERSIONS["2.0"].stg_blocks


def test_every_model_file_belongs_to_a_version_or_nano() -> None:
    assert {path.stem for path in (conf_dir() / "model").glob("*.yaml")} == {
        *(version.conf for version in VERSIONS.values()),
        "nano",
    }


@pytest.mark.parametrize("version", VERSIONS.values(), ids=str)
def test_an_entry_names_an_existing_pipeline_and_text_encoder(version: Version) -> None:
    assert hasattr(diffusers, version.diffusers_pipeline)
    assert version.gemma in FAMILIES
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", version.repository)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", version.diffusers_repository)
    assert version.name == next(name for name, entry in VERSIONS.items() if entry is version)


def test_one_entry_is_enough_for_a_new_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of 2.6 opens and is detected, its text encoder is checked, its adapter has a card and a workflow."""
    checkpoint = write_checkpoint(tmp_path, "2.5", "unified")
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content.replace(b'"model_version": "2.5.0"', b'"model_version": "2.6.0"', 1))
    entry = replace(VERSIONS["2.5"], name="2.6", repository="Lightricks/LTX-2.6", switches={"some_new_switch": True})
    monkeypatch.setitem(VERSIONS, "2.6", entry)
    assert BaseModel.open(str(checkpoint)).version == "2.6"
    assert detect_version(None, {"some_new_switch": True, "ff_bias": False}, "x") == "2.6"
    assert detect_version(None, {"ff_bias": False}, "x") == "2.5"
    GemmaFiles({"model_type": "gemma4_unified"}, tmp_path).check("2.6")
    metadata = {
        "base_model_family": "ltx",
        "base_model_version": "2.6",
        "reference_downscale_factor": "1",
        "size": "960x544x121",
    }
    assert "base_model: Lightricks/LTX-2.6" in card_text("a.safetensors", Adapter({}, metadata))
    assert "base" in build_workflow(WorkflowSettings.from_metadata(Path("a.safetensors"), metadata))

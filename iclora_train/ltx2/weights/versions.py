"""The published LTX versions in one table: how each is detected, what it needs, and where it is published.

A new version is one entry of VERSIONS and one conf/model/<conf>.yaml. The table is in `weights`, the lowest room of
`ltx2`, so that `text`, `diffusion`, `adapters` and the scripts can import it. `config` is below it and cannot. Values
that are also settings (`steps`, `stg_blocks`) are therefore repeated in the YAML files, and the default of
sample.stg_blocks is LTX-2.0's; tests/test_versions.py compares them with the table.

nano is not a version: it is a small base of family `nano` with the layers of 2.3 (`base_model.EMBEDDED`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iclora_train.config import ConfigError

_GEMMA_3 = "google/gemma-3-12b-it-qat-q4_0-unquantized"
_GEMMA_4 = "gemma4-12b-with-proj-ltx-2.5-bf16.safetensors"


@dataclass(frozen=True)
class ComfyUIFiles:
    """Names of the published distilled files that the ComfyUI workflow loads. vae, audio_vae: None if in `model`."""

    model: str
    text_encoder: str
    vae: str | None = None
    audio_vae: str | None = None


@dataclass(frozen=True)
class Version:
    """A published version.

    name: as in model.version and in an adapter's base_model_version; conf: file in conf/model.
    switches: fields of the official `transformer` config that this version introduced, with their values. Any of them
    identifies the version where the metadata has no model_version.
    gemma, gemma_source: model type of the text encoder, and where to get it.
    repository, diffusers_repository: on Hugging Face, in the official and in diffusers' layout.
    stem: the beginning of the names of the published dev files. steps, stg_blocks: recommended for the dev checkpoint.
    """

    name: str
    conf: str
    gemma: str
    gemma_source: str
    repository: str
    diffusers_repository: str
    stem: str
    comfyui: ComfyUIFiles
    steps: int = 30
    stg_blocks: tuple[int, ...] = (28,)
    switches: Mapping[str, bool] = field(default_factory=dict)
    diffusers_pipeline: str = "LTX2InContextPipeline"


VERSIONS = {  # from the oldest to the newest
    version.name: version
    for version in (
        Version(
            name="2.0",
            conf="ltx2",
            gemma="gemma3",
            gemma_source=_GEMMA_3,
            repository="Lightricks/LTX-2",
            diffusers_repository="Lightricks/LTX-2",
            stem="ltx-2-19b-dev",
            comfyui=ComfyUIFiles("ltx-2-19b-distilled.safetensors", "gemma_3_12B_it.safetensors"),
            steps=40,
            stg_blocks=(29,),
        ),
        Version(
            name="2.3",
            conf="ltx2_3",
            gemma="gemma3",
            gemma_source=_GEMMA_3,
            repository="Lightricks/LTX-2.3",
            diffusers_repository="diffusers/LTX-2.3-Diffusers",
            stem="ltx-2.3-22b-dev",
            comfyui=ComfyUIFiles("ltx-2.3-22b-distilled-1.1.safetensors", "gemma_3_12B_it.safetensors"),
            switches={"cross_attention_adaln": True},
        ),
        Version(
            name="2.5",
            conf="ltx2_5",
            gemma="gemma4_unified",
            gemma_source=f"{_GEMMA_4}, shipped with LTX-2.5",
            repository="Lightricks/LTX-2.5",
            diffusers_repository="Lightricks/LTX-2.5-Diffusers",
            stem="ltx-2.5-22b-dev",
            comfyui=ComfyUIFiles(
                "ltx-2.5-22b-distilled-transformer-bf16.safetensors",
                _GEMMA_4,
                "ltx-2.5-video-vae-conv-bf16.safetensors",
                "ltx-2.5-audio-vae-bf16.safetensors",
            ),
            switches={"ff_bias": False, "use_keyframes_abs_pos_embedding": True},
        ),
    )
}


def detect_version(declared: str | None, transformer: Mapping[str, Any], source: str) -> str:
    """The version's name. ConfigError for an unknown version.

    declared: `model_version` of the metadata, e.g. 2.3.0 or 2.3-rc1; without it the switches of the official
    `transformer` config decide. source: the file, for messages.
    """
    if not declared:
        newest_first = reversed(VERSIONS.values())
        return next(v.name for v in newest_first if not v.switches or _has_a_switch(transformer, v.switches))
    number = re.match(r"\d+(\.\d+)?", declared)
    name = number.group() if number else declared
    name = "2.0" if name == "2" else name
    if name not in VERSIONS:
        raise ConfigError(
            f"{source}: model_version={declared!r} is unknown; supported are LTX {', '.join(VERSIONS)}. Give "
            "model.checkpoint a checkpoint of one of these versions"
        )
    return name


def _has_a_switch(transformer: Mapping[str, Any], switches: Mapping[str, bool]) -> bool:
    return any(bool(transformer.get(key, not value)) == value for key, value in switches.items())

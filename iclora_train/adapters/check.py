"""Will this file do in ComfyUI, ltx-pipelines and diffusers what it was trained to do?"""

from __future__ import annotations

from pathlib import Path

from iclora_train.adapters.base_spec import BaseSpec, base_findings, weight_findings
from iclora_train.adapters.file import examine


def check(path: Path, target: BaseSpec | None = None) -> list[str]:
    """All that is wrong with an adapter file, each finding with the key and the remedy; nothing means that it is good.

    target: the base it is meant for; without it modules, shapes and version are taken on trust. ConfigError if the
    file is no safetensors file.
    """
    adapter, wrong = examine(path)
    if target is not None:
        wrong += [*base_findings(adapter.metadata, target), *weight_findings(adapter.weights, target)]
    return wrong

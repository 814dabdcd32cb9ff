"""Check whether an adapter file is valid and fits a base."""

from __future__ import annotations

from pathlib import Path

from iclora_train.adapters.base_spec import BaseSpec, base_findings, base_notes, weight_findings
from iclora_train.adapters.file import Adapter, inspect, model_findings
from iclora_train.adapters.metadata import metadata_notes


def check(path: Path, base: BaseSpec | None = None) -> list[str]:
    """All problems of an adapter file, each with the key and the remedy; empty if the file is valid.

    base: the base of the adapter. Without it, version and shapes are not checked, and the modules only of a file that
    declares no base. ConfigError if the file is not a safetensors file.
    """
    adapter, findings = inspect(path)
    if base is not None:
        return [*findings, *base_findings(adapter.metadata, base), *weight_findings(adapter.weights, base)]
    return findings + list(model_findings(adapter))


def notes(path: Path, adapter: Adapter, base: BaseSpec | None = None) -> list[str]:
    """Facts that a valid file does not declare, with the values that programs assume."""
    return metadata_notes(adapter.metadata) + ([] if base is None else list(base_notes(path, adapter.metadata, base)))

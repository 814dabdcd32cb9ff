"""Check whether an adapter file is valid and fits a base."""

from __future__ import annotations

from pathlib import Path

from iclora_train.adapters.base_spec import BaseSpec, base_findings, weight_findings
from iclora_train.adapters.file import inspect


def check(path: Path, base: BaseSpec | None = None) -> list[str]:
    """All problems of an adapter file, each with the key and the remedy; empty if the file is valid.

    base: the base of the adapter; if None, modules, shapes and version are not checked. ConfigError if the file is not
    a safetensors file.
    """
    adapter, findings = inspect(path)
    if base is not None:
        findings += [*base_findings(adapter.metadata, base), *weight_findings(adapter.weights, base)]
    return findings

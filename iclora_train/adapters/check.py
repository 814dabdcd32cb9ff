"""Check whether an adapter file is valid and fits a base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from iclora_train.adapters.base_spec import BaseSpec, base_findings, base_notes, weight_findings
from iclora_train.adapters.file import Adapter, inspect, model_findings
from iclora_train.adapters.metadata import metadata_notes
from iclora_train.adapters.official import findings as official_findings
from iclora_train.adapters.official import official_notes, recognise
from iclora_train.adapters.slots import width_findings
from iclora_train.config.official import Match


def check(path: Path, base: BaseSpec | None = None) -> list[str]:
    """All problems of an adapter file, each with the key and the remedy; empty if the file is valid.

    base: the base of the adapter. Without it, version and shapes are not checked, and the modules only of a file that
    declares no base. ConfigError if the file is not a safetensors file.
    """
    adapter, findings = inspect(path)
    findings += official_findings(recognise(path, adapter.metadata))
    if base is not None:
        findings += [*base_findings(adapter.metadata, base), *weight_findings(adapter.weights, base)]
        return findings + list(width_findings(adapter.slots, base.linears))
    return findings + list(model_findings(adapter))


def notes(path: Path, adapter: Adapter, base: BaseSpec | None = None) -> list[str]:
    """Which published adapter a valid file is, or facts that it does not declare, with the values that are assumed."""
    match = recognise(path, adapter.metadata)
    undeclared = metadata_notes(adapter.metadata) if match is None else []
    advice = [] if match is None or match.official.note is None else [match.official.note]
    return undeclared + adapter_notes(path, adapter.metadata, match, base) + advice


def adapter_notes(path: Path, metadata: Mapping[str, str], match: Match | None, base: BaseSpec | None) -> list[str]:
    """Which published adapter a file is and what is taken from conf/official; for another file that declares no base,
    which base is assumed."""
    if match is not None:
        family, version = (None, None) if base is None else (base.family, base.version)
        return official_notes(metadata, match, family, version)
    return [] if base is None else list(base_notes(path, metadata, base))

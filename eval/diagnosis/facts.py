"""What is known about a finished clip besides its pixels: the record of `generate`, its adapter, its task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eval.diagnosis.record import Record, RecordSettings, known, position_of, read_record
from eval.diagnosis.references import ReferenceFacts, references_of
from eval.diagnosis.settings import DiagnoseSettings
from iclora_train.adapters.file import inspect
from iclora_train.adapters.metadata import VERSION
from iclora_train.adapters.official import completed, recognise
from iclora_train.config import Task, require
from iclora_train.config.named_task import task_named
from iclora_train.config.official import Official
from iclora_train.config.paths import user_path
from iclora_train.ltx2.weights.versions import VERSIONS


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter file. metadata: with what conf/official adds. problems: as `check` lists them, without the base."""

    path: Path
    metadata: Mapping[str, str]
    official: Official | None
    problems: list[str]

    @property
    def version(self) -> str | None:
        """The version of the base that the adapter was made for, if it is known."""
        return self.metadata.get(VERSION, None if self.official is None else self.official.base)

    @property
    def versions(self) -> set[str]:
        """All versions on which the adapter is used."""
        return ({self.version} if self.version else set()) | set(self.official.also_on if self.official else ())


@dataclass(frozen=True)
class ClipFacts:
    """What is known about a clip. None: not known. task_from: where the task comes from, in words. left_out: the names
    of the references that are not given."""

    clip: str
    references: list[ReferenceFacts]
    left_out: list[str]
    task: Task | None
    task_from: str
    adapter: AdapterFacts | None
    adapter_strength: float | None
    prompt: str | None
    base: str | None
    notes: list[str] = field(default_factory=list)


def clip_facts(settings: DiagnoseSettings) -> ClipFacts:
    """Collect what is known, the settings before the record. ConfigError for a missing reference or a bad adapter."""
    record, notes = read_record(settings.clip)
    recorded = record.settings
    adapter = _adapter(settings, recorded, notes)
    of_adapter = None if adapter is None else position_of(str(adapter.path), recorded.adapter)
    task, task_from = _task(settings, adapter)
    metadata = {} if adapter is None else adapter.metadata
    references, left_out = references_of(settings, recorded, task, metadata)
    return ClipFacts(
        clip=settings.clip,
        references=references,
        left_out=left_out,
        task=task,
        task_from=task_from,
        adapter=adapter,
        adapter_strength=known(settings.adapter_strength, recorded.adapter_strength, of_adapter),
        prompt=record.prompt if settings.prompt is None else settings.prompt,
        base=_base(settings.base, record),
        notes=notes,
    )


def _base(setting: str | None, record: Record) -> str | None:
    """The version of the base: the user's, else the recorded one, else None."""
    if setting is None:
        recorded = record.base.get("version")
        return recorded if isinstance(recorded, str) else None
    version = "2.0" if setting == "2" else setting
    require(version in VERSIONS, f"base={setting} is not one of {', '.join(VERSIONS)}: the version of LTX")
    return version


def _adapter(settings: DiagnoseSettings, recorded: RecordSettings, notes: list[str]) -> AdapterFacts | None:
    """The adapter of the settings, else the only one of the record."""
    path = None if settings.adapter is None else user_path(settings.adapter)
    if path is None and len(recorded.adapter) > 1:
        notes.append(f"the record has {len(recorded.adapter)} adapters: set adapter= to examine one of them")
    require(path is None or path.is_file(), f"adapter={path} does not exist: give an adapter's .safetensors file")
    if path is None and len(recorded.adapter) == 1:
        path = user_path(recorded.adapter[0])
        if not path.is_file():
            notes.append(f"the adapter of the record, {path}, does not exist: it is not examined")
            return None
    if path is None:
        return None
    adapter, problems = inspect(path)
    match = recognise(path, adapter.metadata)
    if match is not None:
        notes.append(f"{path} is {match.official.title} for {match.official.model} (by {match.by})")
    return AdapterFacts(path, completed(adapter.metadata, match), None if match is None else match.official, problems)


def _task(settings: DiagnoseSettings, adapter: AdapterFacts | None) -> tuple[Task | None, str]:
    """The task of conf=, else of the adapter's metadata, else of the published adapter; and where it comes from."""
    if settings.task is not None:
        return settings.task, "conf"
    if adapter is not None and (task := task_named(adapter.metadata.get("task", ""), [])) is not None:
        return task, "the adapter's metadata"
    if adapter is not None and adapter.official is not None and adapter.official.task is not None:
        return task_named(adapter.official.task, adapter.official.settings), "the published adapter"
    return None, "the look of the reference"

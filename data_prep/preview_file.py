"""The file `data.root`/preview/preview.json: the cost of the windows that a preview made, for the same settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.estimate import Cost
from iclora_train.config import Config
from iclora_train.core.atomic_files import write_json
from iclora_train.core.fingerprint import content_settings, digest
from iclora_train.core.records import DamagedFileError, Text, read_json

FOLDER = "preview"
_FILE = "preview.json"


@dataclass(frozen=True)
class _Stored:
    """settings: digest of the settings that the cost is valid for."""

    settings: Text
    cost: Cost


def write_cost(config: Config, cost: Cost) -> None:
    """Write the cost of the windows of a preview."""
    write_json(Path(config.data.root, FOLDER, _FILE), asdict(_Stored(_identity(config), cost)))


def read_cost(config: Config) -> Cost | None:
    """The cost that a preview with these settings measured; None if there is none, or its file is damaged."""
    path = Path(config.data.root, FOLDER, _FILE)
    try:
        stored = read_json(path, _Stored, "run data_prep preview again") if path.exists() else None
    except DamagedFileError:
        return None
    return stored.cost if stored is not None and stored.settings == _identity(config) else None


def _identity(config: Config) -> str:
    return digest([content_settings(config), config.model.name])

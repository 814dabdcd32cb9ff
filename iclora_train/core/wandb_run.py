"""Weights & Biases: runs, tables, charts, artifacts. The only module that imports wandb."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def start_run(folder: Path, name: str, config: Mapping[str, Any], arguments: Mapping[str, Any], **more: Any) -> Any:
    """Start a W&B run whose id is a hash of its folder, so that a second start resumes it.

    arguments: the settings of logger.wandb; they override `more`.

    mode=auto: online when logged in, else offline files in `folder` for `wandb sync`.
    """
    import wandb  # noqa: PLC0415 (slow, and only needed when logging to W&B)

    options = {**more, **arguments}
    if options.get("mode", "auto") == "auto":
        options["mode"] = "online" if wandb.setup().settings.api_key else "offline"
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return wandb.init(
        dir=folder,
        name=name,
        id=identity,
        resume="allow",
        config=dict(config),
        settings=wandb.Settings(silent=True),
        **options,
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A table. A cell that is the Path of an mp4 file is shown as a player of that file, without re-encoding."""
    import wandb  # noqa: PLC0415

    def to_cell(value: Any) -> Any:
        return wandb.Video(str(value), format="mp4") if isinstance(value, Path) else value

    return wandb.Table(columns=list(columns), data=[[to_cell(value) for value in row] for row in rows])


def line_chart(x: Sequence[float], series: Mapping[str, Sequence[float | None]], title: str, x_title: str) -> Any:
    """A chart of named lines over x."""
    import wandb  # noqa: PLC0415

    return wandb.plot.line_series(list(x), [list(y) for y in series.values()], list(series), title, x_title)


def artifact(name: str, kind: str, files: Mapping[str, Path], metadata: Mapping[str, Any]) -> Any:
    """An artifact. files: name in the artifact -> path."""
    import wandb  # noqa: PLC0415

    result = wandb.Artifact(name, type=kind, metadata=dict(metadata))
    for name_inside, path in files.items():
        result.add_file(str(path), name_inside)
    return result

"""The one door to Weights & Biases: runs, and what is put into them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def start_run(folder: Path, name: str, config: Mapping[str, Any], arguments: Mapping[str, Any], **more: Any) -> Any:
    """A run whose identity is its folder: started again, it goes on. `arguments` are those of logger.wandb, which have
    the last word over `more`.

    mode=auto is online when logged in, else run files in `folder` for `wandb sync`.
    """
    import wandb  # noqa: PLC0415 (slow, and needed by those only who log there)

    given = {**more, **arguments}
    if given.get("mode", "auto") == "auto":
        given["mode"] = "online" if wandb.setup().settings.api_key else "offline"
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return wandb.init(
        dir=folder,
        name=name,
        id=identity,
        resume="allow",
        config=dict(config),
        settings=wandb.Settings(silent=True),
        **given,
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A table. A cell that is the Path of an mp4 file becomes a player of that file, re-encoded by nobody."""
    import wandb  # noqa: PLC0415

    def cell(value: Any) -> Any:
        return wandb.Video(str(value), format="mp4") if isinstance(value, Path) else value

    return wandb.Table(columns=list(columns), data=[[cell(value) for value in row] for row in rows])


def line_chart(x: Sequence[float], series: Mapping[str, Sequence[float | None]], title: str, x_title: str) -> Any:
    """A chart of named lines over x."""
    import wandb  # noqa: PLC0415

    return wandb.plot.line_series(list(x), [list(y) for y in series.values()], list(series), title, x_title)


def artifact(name: str, kind: str, files: Mapping[str, Path], metadata: Mapping[str, Any]) -> Any:
    """An artifact of files by the names that they have in it."""
    import wandb  # noqa: PLC0415

    made = wandb.Artifact(name, type=kind, metadata=dict(metadata))
    for inside, path in files.items():
        made.add_file(str(path), inside)
    return made

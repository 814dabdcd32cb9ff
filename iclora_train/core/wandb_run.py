"""Weights & Biases: runs, tables, charts, artifacts. The only module that imports wandb.

A logger never ends a run: `failures_printed` turns every error of W&B into one line, start and end of a run have time
limits, and a run that cannot reach the server writes offline files.
"""

from __future__ import annotations

import hashlib
import netrc
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iclora_train.core.atomic_files import write_atomic

HOST = "api.wandb.ai"  # `wandb login` stores its key under this name
# W&B reads these itself. Its service process sends error reports and looks up their host, even in offline mode.
ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
# Settings of W&B, unless the environment or logger.wandb.settings has others. Times in seconds: W&B's own limits are 90
# for the start, and none for sending the rest at the end.
SETTINGS = {"init_timeout": 30, "finish_timeout": 600, "finish_timeout_raises": True}
# Arguments of wandb.init for which the environment has a value that ours would override
VARIABLES = {"name": "WANDB_NAME", "group": "WANDB_RUN_GROUP", "job_type": "WANDB_JOB_TYPE"}
KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
FORMER_MODES = {"dryrun": "offline", "run": "online"}


@contextmanager
def failures_printed(doing: str, remedy: str = "the run goes on without W&B") -> Iterator[None]:
    """Print an error of W&B as one line on stderr instead of raising it, and end W&B. doing: e.g. "logging"."""
    try:
        yield
    except Exception as error:  # errors of W&B, of its service process, of the network and of disks
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"W&B: {doing} failed ({text[:300]}): {remedy}", file=sys.stderr)
        with suppress(Exception):  # a service process that is gone, or that still holds the id of the run
            import wandb  # noqa: PLC0415

            wandb.teardown()


def start_run(folder: Path, name: str, config: Mapping[str, Any], arguments: Mapping[str, Any], **more: Any) -> Any:
    """Start a W&B run with the id of its folder (`run_id`), so that a second start resumes it. None if W&B is disabled.

    arguments: the settings of logger.wandb; they override `more`.

    mode=auto: the mode that WANDB_MODE, WANDB_DISABLED or W&B's settings file selects; otherwise online when logged in,
    else offline files in `folder` for `wandb sync`. A run that fails to start online starts offline.
    """
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    defaults = {"dir": os.environ.get("WANDB_DIR") or folder, "name": name, **more}
    options = {key: value for key, value in defaults.items() if not os.environ.get(VARIABLES.get(key, ""))}
    options |= {"resume": "allow", **arguments}
    mode = run_mode(options.pop("mode", "auto"))
    if mode == "disabled":
        return None
    options.setdefault("id", run_id(folder))
    if mode != "offline":
        with failures_printed("starting online", f"offline files go to {options['dir']}/wandb, for `wandb sync`"):
            return _init(mode, config, options)
    return _init("offline", config, options)


def run_id(folder: Path) -> str:
    """The id of the W&B run of a folder: random, and kept in `folder`/wandb_id.txt.

    Earlier versions used a hash of the folder's path, which two machines may share. A folder that such a version has
    logged from keeps that id.
    """
    path = folder / "wandb_id.txt"
    stored = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if re.fullmatch(r"[\w-]{1,64}", stored):
        return stored
    former = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    new = former if any((folder / "wandb").glob(f"*run-*-{former}")) else secrets.token_hex(8)
    with write_atomic(path) as file:
        file.write(f"{new}\n".encode())
    return new


def run_mode(mode: str) -> str:
    """One of "online", "shared", "offline" and "disabled". mode: a value of logger.wandb.mode."""
    if mode == "disabled" or (mode == "auto" and _is_true(os.environ.get("WANDB_DISABLED", ""))):
        return "disabled"
    import wandb  # noqa: PLC0415 (slow, and only needed when logging to W&B)

    settings = wandb.setup().settings
    if mode == "auto":
        asked, mode = bool(os.environ.get("WANDB_MODE")), settings.mode
    else:
        asked = True
    mode = FORMER_MODES.get(mode, mode)
    if mode in ("offline", "disabled") or is_logged_in(settings.base_url):
        return mode
    if asked:
        print("W&B: no key is stored (`wandb login`, WANDB_API_KEY): offline files are written", file=sys.stderr)
    return "offline"


def is_logged_in(base_url: str) -> bool:
    """Whether a key for the server is stored, in the environment or in the file of `wandb login`. Asks nobody."""
    if any(os.environ.get(variable) for variable in KEY_VARIABLES):
        return True
    named = os.environ.get("NETRC")
    paths = [Path(os.path.expanduser(path)) for path in ([named] if named else ["~/.netrc", "~/_netrc"])]
    for path in paths:
        try:
            file = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        keys = [login[2] for host in (urlsplit(base_url).netloc, HOST) if (login := file.authenticators(host))]
        if any(keys):
            return True
    return False


def _is_true(value: str) -> bool:
    return value.lower() in ("1", "true", "yes", "on")


def _init(mode: Any, config: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    import wandb  # noqa: PLC0415

    defaults = {key: value for key, value in SETTINGS.items() if f"WANDB_{key.upper()}" not in os.environ}
    settings = wandb.Settings(**{**defaults, **options.get("settings", {})})
    return wandb.init(**{**options, "settings": settings}, mode=mode, config=dict(config))


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

"""`python -m eval.sound OUTPUT TARGET`: how near a sound is to another one. Both are sound files or clips with sound.

Prints a table of the metrics (`eval.metrics.sound`), and with --json the same as JSON on stdout instead.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

import argparse
import json
from pathlib import Path

from rich.table import Table

from eval.metrics.sound import METRICS, sound_agreement
from iclora_train.config import ConfigError
from iclora_train.config.endings import one_line_ending
from iclora_train.config.paths import user_path
from iclora_train.core.console import make_console
from iclora_train.core.types import Sound
from iclora_train.media.sound import read_sound


def read(path: Path) -> Sound:
    """The sound of a file. ConfigError if it cannot be read, or has none."""
    try:
        return read_sound(path)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error


def compare(output: Path, target: Path) -> dict[str, float]:
    """The metrics of two files. ConfigError names the file that cannot be compared."""
    try:
        return sound_agreement(read(output), read(target))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{output}, {target}: {error}") from error


def table(values: dict[str, float]) -> Table:
    """A row for each metric; `not defined` for one that has no value."""
    rows = Table("metric", "value", "better")
    for metric in METRICS:
        value = f"{values[metric.key]:.3f} {metric.unit}".strip() if metric.key in values else "not defined"
        rows.add_row(f"{metric.key}: {metric.title}", value, metric.better or "")
    return rows


def main() -> None:
    """`python -m eval.sound`."""
    parser = argparse.ArgumentParser(prog="eval.sound", description=(__doc__ or "").split(":", 1)[1].strip())
    parser.add_argument("output", type=user_path, metavar="OUTPUT", help="the sound that is judged")
    parser.add_argument("target", type=user_path, metavar="TARGET", help="the sound that it should be near")
    parser.add_argument("--json", action="store_true", help="print JSON: metric -> value, null if it is not defined")
    with one_line_ending("nothing was written"):
        arguments = parser.parse_args()
        values = compare(arguments.output, arguments.target)
        if arguments.json:
            print(json.dumps({metric.key: values.get(metric.key) for metric in METRICS}, indent=1))
        else:
            make_console().print(table(values))


if __name__ == "__main__":
    main()

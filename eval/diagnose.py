"""`python -m eval.diagnose clip=FILE reference=FILE`: what is wrong with one finished clip, and what to try.

It needs no target and no base model. Each finding is a line with a remedy. Exit code 0: nothing was found; 3: there are
findings; 2: a wrong setting or file.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

from omegaconf import DictConfig

from eval.diagnosis.settings import DiagnoseSettings, to_settings
from iclora_train.config.hydra_app import run_with_schema

FOUND = 3  # exit code: 1 is taken by eval.compare, 2 by errors


def _diagnose(composed: DictConfig) -> None:
    """Print what is known, what was measured and what was found. SystemExit(3) if anything was found."""
    settings = to_settings(composed)
    # after the settings have been checked, because they import torch
    from eval.diagnosis.result import examined  # noqa: PLC0415

    result = examined(settings)
    for line in result.lines:
        print(line)
    if settings.json is not None:
        result.write(settings.json)
    print(f"{len(result.findings)} findings" if result.findings else "nothing was found")
    if result.findings:
        raise SystemExit(FOUND)


def main() -> None:
    """Console script `iclora-diagnose`."""
    run_with_schema("diagnose", _diagnose, "nothing was written", DiagnoseSettings)


if __name__ == "__main__":
    main()

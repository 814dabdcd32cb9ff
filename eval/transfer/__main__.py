"""`python -m eval.transfer conf=<task> [adapter=<file>]`: what another choice of sampling costs in control.

Exit code 0: all choices were measured, or are listed with the reason why they are impossible; 1: a claim of
transfer.required does not hold; 2: a wrong setting or file.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

import sys

from omegaconf import DictConfig

from eval.transfer.settings import TransferConfig
from iclora_train.config import to_config
from iclora_train.config.endings import exit_at_signal, one_line_ending
from iclora_train.config.hydra_app import run_with_schema
from iclora_train.config.official import with_task

RESUME = "the same command continues: finished choices and clips are not sampled again"
NOT_MET = 1  # exit code


def _transfer(composed: DictConfig) -> None:
    config = to_config(composed)
    assert isinstance(config, TransferConfig)
    with exit_at_signal(RESUME):
        from eval.transfer.run import transfer  # noqa: PLC0415 (torch is imported after the settings have been checked)

    if transfer(config):
        raise SystemExit(NOT_MET)


def main() -> None:
    """Console script `iclora-transfer`."""
    with one_line_ending(RESUME):
        sys.argv[1:], line = with_task(sys.argv[1:])
    if line is not None:
        print(line)
    run_with_schema("transfer", _transfer, RESUME, TransferConfig)


if __name__ == "__main__":
    main()

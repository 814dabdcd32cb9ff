"""`python -m eval conf=<task> [adapter=<file>]`: evaluate an adapter on held-out windows (`--help` lists settings)."""

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

import sys

from iclora_train.config import Config
from iclora_train.config.endings import exit_at_signal, one_line_ending
from iclora_train.config.hydra_app import run_with_config
from iclora_train.config.official import with_task

RESUME = "the same command continues with the finished clips"


def _evaluate(config: Config) -> None:
    with exit_at_signal(RESUME):
        from eval.run import evaluate  # noqa: PLC0415 (torch is imported after the settings have been checked)

    evaluate(config)


def main() -> None:
    """Console script `iclora-eval`."""
    with one_line_ending(RESUME):
        sys.argv[1:], line = with_task(sys.argv[1:])
    if line is not None:
        print(line)
    run_with_config("eval", _evaluate, RESUME)


if __name__ == "__main__":
    main()

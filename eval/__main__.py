"""`python -m eval conf=<task> [adapter=<file>]`: evaluate an adapter on held-out windows (`--help` lists settings)."""

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

from iclora_train.config import Config
from iclora_train.config.hydra_app import run_with_config
from iclora_train.core.ranks import require_single_process


def _evaluate(config: Config) -> None:
    from eval.run import evaluate  # noqa: PLC0415 (torch is imported after the settings have been checked)

    require_single_process("eval", "it uses one GPU")
    evaluate(config)


def main() -> None:
    """Console script `iclora-eval`."""
    run_with_config("eval", _evaluate, "the same command continues with the finished clips")


if __name__ == "__main__":
    main()

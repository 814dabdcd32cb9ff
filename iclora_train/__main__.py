"""`python -m iclora_train conf=<task>`: train an IC-LoRA (`--help` lists tasks and settings)."""

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

from iclora_train.config import Config
from iclora_train.config.hydra_app import run_with_config


def _train(config: Config) -> None:
    from iclora_train.train import train  # noqa: PLC0415 (torch and Lightning load after the settings are known to be good)

    train(config)


def main() -> None:
    """Console script `iclora-train`."""
    run_with_config("train", _train, "the same command continues from the last checkpoint")


if __name__ == "__main__":
    main()

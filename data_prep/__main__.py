"""`python -m data_prep conf=<task>`: clips -> pairs -> latents (`--help` lists tasks and settings)."""

from iclora_train.config import Config
from iclora_train.hydra_main import run


def _prepare(config: Config) -> None:
    from data_prep.pipeline import prepare  # noqa: PLC0415 (torch loads after the settings are known to be good)

    print(f"prepared: {prepare(config)}")


def main() -> None:
    """Console script `iclora-prep`."""
    run("prep", _prepare)


if __name__ == "__main__":
    main()

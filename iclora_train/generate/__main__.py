"""`python -m iclora_train.generate adapter=... reference=... prompt=... out=...`: make a video (`--help`: settings)."""

from omegaconf import DictConfig

from iclora_train.config.hydra_app import run_with_schema
from iclora_train.generate.settings import GenerateSettings, to_settings


def _generate(composed: DictConfig) -> None:
    settings = to_settings(composed)
    from iclora_train.generate.run import generate  # noqa: PLC0415 (torch loads after the settings are known to be good)

    generate(settings)


def main() -> None:
    """Console script `iclora-generate`."""
    run_with_schema("generate", _generate, GenerateSettings)


if __name__ == "__main__":
    main()

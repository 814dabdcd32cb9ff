"""`python -m iclora_train.generate adapter=... reference=... prompt=... out=...` (`--help`: settings)."""

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

from omegaconf import DictConfig

from iclora_train.config.hydra_app import run_with_schema
from iclora_train.core.ranks import require_single_process
from iclora_train.generate.settings import GenerateSettings, to_settings


def _generate(composed: DictConfig) -> None:
    require_single_process("generate", "it uses one GPU")
    settings = to_settings(composed)
    from iclora_train.generate.run import generate  # noqa: PLC0415 (settings are checked before torch loads)

    generate(settings)


def main() -> None:
    """Console script `iclora-generate`."""
    run_with_schema("generate", _generate, "no video was written", GenerateSettings)


if __name__ == "__main__":
    main()

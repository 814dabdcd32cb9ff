"""`python -m iclora_train.composite generated=FILE out=FILE` (`--help`: settings)."""

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

from omegaconf import DictConfig

from iclora_train.composite.settings import CompositeSettings, to_composite_settings
from iclora_train.config.hydra_app import run_with_schema
from iclora_train.core.ranks import require_single_process


def _composite(composed: DictConfig) -> None:
    require_single_process("composite", "it writes one video")
    settings = to_composite_settings(composed)
    from iclora_train.composite.run import composite  # noqa: PLC0415 (settings are checked before slow modules load)

    composite(settings)


def main() -> None:
    """Console script `iclora-composite`."""
    run_with_schema("composite", _composite, "no video was written", CompositeSettings)


if __name__ == "__main__":
    main()

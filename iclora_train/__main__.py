"""`python -m iclora_train conf=<task>`: train an IC-LoRA (`--help` lists tasks and settings)."""

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

from pathlib import Path

from iclora_train.config import Config
from iclora_train.config.endings import exit_at_signal
from iclora_train.config.hydra_app import run_module, run_with_config
from iclora_train.core.local_ranks import quiet_torch, ranks_to_start, run_ranks
from iclora_train.core.ranks import global_rank

RESUME = "the same command continues from the last checkpoint"


def _train(config: Config) -> None:
    """Train in this process, or start one process per device of trainer.devices."""
    count, num_nodes = ranks_to_start(config.trainer)
    if count * num_nodes > 1:
        prepared = all(Path(root, "latents", "index.json").exists() for root in config.data.roots())
        if not prepared and num_nodes == 1:
            run_module("data_prep")
        run_ranks("iclora_train", count, num_nodes)
        return
    quiet_torch()
    with exit_at_signal(RESUME if global_rank() == 0 else None):
        from iclora_train.train import train  # noqa: PLC0415 (torch and Lightning load after the settings are known to be good)

    train(config)


def main() -> None:
    """Console script `iclora-train`."""
    run_with_config("train", _train, RESUME)


if __name__ == "__main__":
    main()

"""`python -m data_prep conf=<task>`: clips -> pairs -> latents (`--help` lists tasks and settings).

`python -m data_prep preview conf=<task>` makes eight pairs in less than a minute, and estimates hours and gigabytes.
`python -m data_prep caption conf=<task> data.clips=... captioner.model=<folder>` writes captions for clips without one.
`python -m data_prep verify data.root=<folder>` reads the finished shards again and lists their problems.
"""

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

import sys

from omegaconf import DictConfig, OmegaConf

from iclora_train.config import Config, to_config
from iclora_train.config.endings import exit_at_signal
from iclora_train.config.hydra_app import run_with_config, run_with_schema
from iclora_train.core.ranks import require_single_process

CAPTIONS_KEPT = "the same command continues with the clips that have no caption"
RESUME = "the same command continues with the finished shards"
REPEAT = "the same command begins again; the shards were not touched"


def _prepare(config: Config) -> None:
    require_single_process("data_prep", "data.workers=N uses N processes")
    with exit_at_signal(RESUME):
        from data_prep.sources import prepare_all  # noqa: PLC0415 (torch loads after the settings are checked)

    print(f"prepared: {', '.join(map(str, prepare_all(config)))}")


def _caption(config: Config) -> None:
    require_single_process("data_prep caption", "captioner.requests=N asks an endpoint N times at once")
    with exit_at_signal(CAPTIONS_KEPT):
        from data_prep.captions.command import caption  # noqa: PLC0415 (as above)

    if caption(config):
        raise SystemExit(1)


def _verify(composed: DictConfig) -> None:
    """Verify data.root; with conf=<task> also against the settings and the base model of the task."""
    from data_prep.sources import verify_all  # noqa: PLC0415 (as above)
    from data_prep.verify import verify  # noqa: PLC0415

    if OmegaConf.is_missing(composed.task, "name"):
        root = composed.data.root
        problems = verify(root, composed.data.workers)
    else:
        config = to_config(composed)
        root, problems = ", ".join(config.data.roots()), verify_all(config)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        raise SystemExit(1)
    print(f"verified: {root}")


def _preview(composed: DictConfig) -> None:
    """Preview the pairs of a task. model.checkpoint may be missing."""
    require_single_process("data_prep preview", "it is a matter of seconds")
    if without_base := OmegaConf.is_missing(composed.model, "checkpoint"):
        composed.model.checkpoint = ""
    config = to_config(composed)
    with exit_at_signal(REPEAT):
        from data_prep.sources import preview_all  # noqa: PLC0415 (as above)
        from iclora_train.ltx2.base_model import open_base  # noqa: PLC0415

    for folder in preview_all(config, None if without_base else open_base(config.model)):
        print(f"preview: {folder}; open contact.html there")


def main() -> None:
    """Console script `iclora-prep`."""
    if sys.argv[1:2] == ["preview"]:
        del sys.argv[1]
        run_with_schema("prep", _preview, REPEAT)
    elif sys.argv[1:2] == ["verify"]:
        del sys.argv[1]
        run_with_schema("prep", _verify, "nothing was changed")
    elif sys.argv[1:2] == ["caption"]:
        del sys.argv[1]
        run_with_config("prep", _caption, CAPTIONS_KEPT)
    else:
        run_with_config("prep", _prepare, RESUME)


if __name__ == "__main__":
    main()

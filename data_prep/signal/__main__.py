"""`python -m iclora_train.signal clip=CLIP adapter=FILE out=FILE`: one clip in, its control signal out.

`python -m iclora_train.signal mask ...` makes a mask for a region. docs/signals.md explains the settings.
"""

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

import sys

from omegaconf import DictConfig

from data_prep.signal.mask_settings import MaskSettings, to_mask_settings
from data_prep.signal.settings import SignalSettings, to_settings
from iclora_train.config.endings import exit_at_signal
from iclora_train.config.hydra_app import run_with_schema
from iclora_train.core.ranks import require_single_process

NOTHING = "nothing was written"


def _signal(composed: DictConfig) -> None:
    require_single_process("signal", "it is a matter of minutes")
    settings = to_settings(composed)
    with exit_at_signal(NOTHING):
        from data_prep.signal.run import make  # noqa: PLC0415 (torch loads after the settings are checked)

    make(settings)


def _mask(composed: DictConfig) -> None:
    require_single_process("signal mask", "it is a matter of minutes")
    settings = to_mask_settings(composed)
    with exit_at_signal(NOTHING):
        from data_prep.signal.mask import make_mask  # noqa: PLC0415 (as above)

    make_mask(settings)


def main() -> None:
    """Console script `iclora-signal`."""
    if sys.argv[1:2] == ["mask"]:
        del sys.argv[1]
        run_with_schema("mask", _mask, NOTHING, MaskSettings)
    else:
        run_with_schema("signal", _signal, NOTHING, SignalSettings)


if __name__ == "__main__":
    main()

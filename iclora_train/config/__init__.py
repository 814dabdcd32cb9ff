"""The settings of a run: typed dataclasses with bounds, and Hydra's command line.

The dataclasses and their errors are imported from here (`from iclora_train.config import Config`). No torch import.
"""

from iclora_train.config.captioner import Captioner
from iclora_train.config.checks import Checks
from iclora_train.config.diffusion import Flow, Sampling
from iclora_train.config.errors import ConfigError, first_line, frame_from_start, one_of, require
from iclora_train.config.evaluation import Eval, Thresholds
from iclora_train.config.extra_metrics import Weights
from iclora_train.config.lora import Lora
from iclora_train.config.settings import Config, Data, Model, Optim, Validation, to_config
from iclora_train.config.task import Task

__all__ = [
    "Captioner",
    "Checks",
    "Config",
    "ConfigError",
    "Data",
    "Eval",
    "Flow",
    "Lora",
    "Model",
    "Optim",
    "Sampling",
    "Task",
    "Thresholds",
    "Validation",
    "Weights",
    "first_line",
    "frame_from_start",
    "one_of",
    "require",
    "to_config",
]

"""Settings of `eval.transfer`, typed and bounded. No torch import, so that --help is fast."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from iclora_train.config import Config, one_of, require
from iclora_train.config.paths import expand_home

SCHEDULES = ("dev", "distilled", "two_stage")
CLAIMS = ("compute", "blend", "steps_control", "steps_picture", "fp8", "distilled")  # names of the judged sentences
SIZE = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")  # width x height, or width x height x frames
SHARE = re.compile(r"0\.\d+")  # of the sides of the windows


@dataclass
class Transfer:
    """The choices to measure, one at a time, against the task's own settings; the effect LoRA in all combinations."""

    schedules: list[str] = field(default_factory=lambda: list(SCHEDULES))
    # of the windows: WxH, WxHxF, or a share of both sides such as 0.5, rounded to a size that fits the VAE
    sizes: list[str] = field(default_factory=lambda: ["0.5", "0.75"])
    steps: list[int] = field(default_factory=lambda: [30, 40, 50])
    precisions: list[str] = field(default_factory=lambda: ["bf16", "fp8"])
    adapter_strengths: list[float] = field(default_factory=lambda: [0.5, 0.75, 1.0])  # of the adapter's weights
    attention_strengths: list[float] = field(default_factory=lambda: [0.5])  # 0 and 1 are always measured
    effect: str | None = None  # a LoRA beside the adapter, at every effect strength x adapter strength
    effect_strengths: list[float] = field(default_factory=lambda: [0.5, 0.65, 0.8])
    distilled: str | None = None  # distilled checkpoint for the distilled and two_stage schedule; null: the run's own
    upsampler: str | None = None  # x2 latent upsampler for the two_stage schedule
    gates: bool = True  # judge the gates under every choice; false: a third of the clips, only adapter + reference
    tolerance: float = 0.1  # largest loss that counts as equivalent, as a share of the adapter's gain over the base
    required: list[str] = field(default_factory=list)  # claims that must hold for exit code 0

    def __post_init__(self) -> None:
        for schedule in self.schedules:
            one_of("transfer.schedules", schedule, SCHEDULES)
        for precision in self.precisions:
            one_of("transfer.precisions", precision, ("fp32", "bf16", "fp8"))
        for name in self.required:
            one_of("transfer.required", name, CLAIMS)
        for size in self.sizes:
            known = SIZE.fullmatch(size) or (SHARE.fullmatch(size) and float(size) > 0)
            require(bool(known), f"transfer.sizes={size} is neither WxH, WxHxF nor a share below 1 such as 0.5")
        require(all(n >= 1 for n in self.steps), f"transfer.steps={self.steps} must be at least 1 each")
        for key in ("adapter_strengths", "effect_strengths"):
            values = getattr(self, key)
            require(all(0 < s <= 2 for s in values), f"transfer.{key}={values} must lie above 0 and at most 2")
        strengths = self.attention_strengths
        require(all(0 <= s <= 1 for s in strengths), f"transfer.attention_strengths={strengths} must lie in [0, 1]")
        require(0 < self.tolerance < 1, f"transfer.tolerance={self.tolerance} must lie between 0 and 1")
        for key in ("effect", "distilled", "upsampler"):
            value = getattr(self, key)
            setattr(self, key, None if value is None else expand_home(value))


@dataclass
class TransferConfig(Config):
    """The settings of a run, and the choices to measure."""

    transfer: Transfer = field(default_factory=Transfer)

    def __post_init__(self) -> None:
        super().__post_init__()
        message = "eval.metrics: fvd compares all clips at once, which eval.transfer does not measure: give it to eval"
        require("fvd" not in self.eval.metrics, message)
        require(not self.eval.sequential, "eval.sequential=true is for eval: eval.transfer samples all windows")

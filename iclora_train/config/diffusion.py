"""Settings of rectified flow: noise levels, clean first frames and references in training; sampling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from iclora_train.config.errors import one_of, require

SCHEDULES = ("shifted", "distilled", "dev")
CELL_MODES = {"any": 0.0, "half": 0.5, "all": 1.0}  # share of a latent cell's pixels that a mask must cover


@dataclass
class Flow:
    """Noise levels of training (`flow_matching.sample_sigma`), clean first frames, references, locality term."""

    distribution: str = "shifted_logit_normal"
    std: float = 1.0
    min_tokens: int = 1024
    max_tokens: int = 4096
    min_shift: float = 0.95
    max_shift: float = 2.05
    clamp_shift: bool = True  # false: extrapolate beyond max_tokens, as the official trainer does
    uniform_p: float = 0.1
    first_frame_p: float = 0.2  # probability that the first latent frame of a clip is clean
    reference_p: float = 1.0  # probability that a clip is trained with its references
    preserve_base: bool = False  # clips without references are trained on the base's own prediction, not on the data
    attention_strength_p: float = 0.0  # probability that the references have a random attention strength from (0, 1)
    reference_noise: float = 0.0  # most noise in a reference's latents: the share of a clip is uniform in [0, this]
    region_mask_p: float = 0.0  # probability that the references are visible only inside a random region of the frame
    locality: float = 0.0  # weight of the locality term of the loss (`diffusion.loss`)
    locality_p: float = 0.5  # probability that a clip has a region for the locality term
    audio_weight: float = 1.0  # with model.audio=on: weight of the loss of the sound beside that of the video
    caption_dropout_p: float = 0.0  # probability that a clip is trained with the empty caption instead of its own

    def __post_init__(self) -> None:
        one_of("flow.distribution", self.distribution, ("shifted_logit_normal", "uniform"))
        for key in (name for name in self.__dataclass_fields__ if name.endswith("_p")):
            require(0 <= getattr(self, key) <= 1, f"flow.{key}={getattr(self, key)} must lie in [0, 1]")
        require(
            not self.preserve_base or self.reference_p < 1,
            "flow.preserve_base=true is for clips without references, and flow.reference_p=1 trains none: set "
            "flow.reference_p below 1, e.g. 0.9",
        )
        noise = self.reference_noise
        require(
            0 <= noise <= 1, f"flow.reference_noise={noise} must lie in [0, 1], the largest share of noise (0: off)"
        )
        require(self.locality >= 0, f"flow.locality={self.locality} must be 0 (off) or more")
        require(self.audio_weight >= 0, f"flow.audio_weight={self.audio_weight} must be 0 or more")
        require(self.std > 0, f"flow.std={self.std} must be above 0")
        require(self.min_tokens < self.max_tokens, "flow.min_tokens must be below flow.max_tokens")


AUDIO_SCALES = {  # settings of `Sampling` -> the least value
    "audio_guidance": 1,
    "audio_stg_scale": 0,
    "audio_rescale": 0,
    "modality_scale": 1,
    "audio_modality_scale": 1,
}


class AudioScales(NamedTuple):
    """The scales of sampling with sound (`Sampling.audio_scales`)."""

    guidance: float
    stg_scale: float
    rescale: float
    video_modality: float
    sound_modality: float


@dataclass
class Sampling:
    """Sampling: in validation, in eval and in the generate command."""

    steps: int = 8
    schedule: str = "shifted"  # noise levels (`noise_schedule.make_sigmas`); distilled has 8 steps
    sampler: str = "euler"  # one of `diffusion.sampler.SAMPLERS`
    guidance: float = 1.0  # classifier-free guidance; 1: off, one pass per step
    stg_scale: float = 0.0  # spatio-temporal guidance, one more pass per step; 0: off
    # Blocks that STG perturbs. conf/model sets each version's (`ltx2.weights.versions`); the default is LTX-2.0's.
    stg_blocks: list[int] = field(default_factory=lambda: [29])
    rescale: float = 0.0  # how far the standard deviation of the unguided prediction is restored, in [0, 1]
    seed: int = 0
    # Where the audio stream is sampled too (model.audio). Scales of the sound, and of both streams: away from the
    # prediction without the other stream. null: those of `audio_scales`
    audio_guidance: float | None = None
    audio_stg_scale: float | None = None
    audio_rescale: float | None = None
    modality_scale: float | None = None
    audio_modality_scale: float | None = None

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"sample.steps={self.steps} must be at least 1")
        one_of("sample.schedule", self.schedule, SCHEDULES)
        require(
            self.schedule != "distilled" or self.steps == 8,
            f"sample.steps={self.steps}: sample.schedule=distilled has 8 steps; set sample.steps=8",
        )
        require(self.guidance >= 1, f"sample.guidance={self.guidance} must be at least 1 (1 switches guidance off)")
        require(self.stg_scale >= 0, f"sample.stg_scale={self.stg_scale} must be 0 (off) or more")
        require(
            all(block >= 0 for block in self.stg_blocks), f"sample.stg_blocks={self.stg_blocks} must be 0 or more each"
        )
        require(0 <= self.rescale <= 1, f"sample.rescale={self.rescale} must lie in [0, 1]")
        for key, low in AUDIO_SCALES.items():
            value = getattr(self, key)
            bounds = "must lie in [0, 1], or be null" if key == "audio_rescale" else f"must be at least {low}, or null"
            fits = value is None or (low <= value and (key != "audio_rescale" or value <= 1))
            require(fits, f"sample.{key}={value} {bounds}")

    @property
    def audio_scales(self) -> AudioScales:
        """The scales of sampling with sound. Without guidance of the video there is none of the sound either; with it,
        the defaults are those of ltx-pipelines: 7 for the text, 3 for the modality, and the video's STG and rescale."""
        guided = self.guidance > 1
        video_modality = _or(self.modality_scale, 3.0 if guided else 1.0)
        return AudioScales(
            _or(self.audio_guidance, 7.0 if guided else 1.0),
            _or(self.audio_stg_scale, self.stg_scale),
            _or(self.audio_rescale, self.rescale),
            video_modality,
            _or(self.audio_modality_scale, video_modality),
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value

"""Settings of `iclora_train.generate`, typed and bounded. No torch import, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from iclora_train.config import ConfigError, Flow, Model, Sampling, one_of, require
from iclora_train.config.audio_reference import PLACEMENTS
from iclora_train.config.command_line import PROMPT_OR_LIST, TEXT_OR_LIST
from iclora_train.config.diffusion import CELL_MODES
from iclora_train.config.paths import expand_home
from iclora_train.config.settings import RENAMED_KEYS
from iclora_train.generate.item_lists import (
    LARGEST,
    frame_list,
    mask_list,
    number_list,
    path_list,
    reference_list,
    strength_list,
)
from iclora_train.generate.signal_setting import check_signal

# Sections that only training reads; conf= and model= may set them too.
TRAINING_SECTIONS = ("data", "optim", "trainer", "validation", "eval", "logger")
AUDIO_MODES = ("generate", "copy", "reference", "none")
EXAMPLES = {"adapter": "adapter.safetensors", "out": "out.mp4"}


@dataclass
class GenerateSettings:
    """Settings of one video. Where a list is allowed, a single value applies to all items. A path is a string."""

    adapter: Any = field(default=MISSING, metadata=TEXT_OR_LIST)
    adapter_strength: Any = 1.0
    # videos, folders of frames, or images; null: none, for adapters that take no reference. In a list of several
    # references, null leaves out one after the first
    reference: Any = field(default=None, metadata=TEXT_OR_LIST)
    # make the references of these clips: auto, or the control of a union; or a list with one for each reference (null:
    # it is one). docs/signals.md
    signal: Any = field(default=None, metadata=TEXT_OR_LIST)
    signal_settings: dict[str, Any] = field(default_factory=dict)  # of the command signal, e.g. {mask: hole.png}
    attention_strength: Any = None  # of each reference, in [0, 1]; null: as the adapter was trained, usually 1
    # of each reference: an image, a video or a folder of frames; white is 1
    attention_mask: Any = field(default=None, metadata=TEXT_OR_LIST)
    reference_strength: Any = None  # of each reference, in [0, 1]; 1: clean; null: as the adapter was trained
    reference_frame: Any = None  # of each reference, the frame at which it begins; null: the adapter's
    between: str = "comfyui"  # whether references attend to one another (docs/generate.md)
    blend: str = "comfyui"  # meaning of 0 < reference_strength < 1 (docs/generate.md)
    prompt: Any = field(default="", metadata=PROMPT_OR_LIST)  # a text, or one for each window of a long video
    prompt_frames: Any = None  # of each text, the frame at which it begins
    negative_prompt: str = ""
    first_frame: str | None = None  # an image with which the video begins
    prefix: str | None = None  # a clip with which the video begins
    suffix: str | None = None  # a clip with which the video ends
    source: str | None = None  # a clip of which only a part is made anew
    regenerate: str | None = None  # this part: an image, a video or a folder of frames; white is made anew
    regenerate_frames: Any = None  # this part: frames [from, to)
    regenerate_mode: str = "any"  # share of a latent cell's pixels that must be white: any, half, all
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    window_frames: int | None = None  # of each window of a long video
    window_overlap: int | None = None  # frames of a window that are carried from the one before
    tile_width: int | None = None  # of each tile of a large picture
    tile_height: int | None = None
    tile_overlap: int | None = None  # pixels by which tiles overlap
    fps: float | None = None
    fit: str = "crop"
    seed: int = 0
    upsampler: str | None = None  # of two stages
    refine_reference: bool = False  # the second stage sees the references too
    refine_strength: float = 1.0  # of the adapters in the second stage, relative to adapter_strength; 0: off
    audio: str = "none"  # sound of the file: generate, copy, reference, none (docs/generate.md)
    audio_source: str | None = None  # a clip or sound file for copy and reference; null: source, prefix or reference
    audio_reference: str | None = None  # a clip or sound file, for adapters that take an audio reference
    audio_placement: str | None = None  # of the audio reference: av2av, dubit; null: the adapter's
    out: str = MISSING
    frames_out: str | None = None
    overwrite: bool = False
    device: str = "auto"
    cache: str = MISSING
    model: Model = field(default_factory=Model)
    sample: Sampling = field(default_factory=Sampling)
    flow: Flow = field(default_factory=Flow)
    task: Any = None  # of conf=<task>
    data: Any = None
    optim: Any = None
    trainer: Any = None
    validation: Any = None
    eval: Any = None
    logger: Any = None

    def __post_init__(self) -> None:
        one_of("between", self.between, ("comfyui", "ltx"))
        one_of("blend", self.blend, ("comfyui", "ltx"))
        one_of("fit", self.fit, ("crop", "stretch"))
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("audio", self.audio, AUDIO_MODES)
        require(
            self.audio_source is None or self.audio in ("copy", "reference"),
            f"audio_source={self.audio_source} is for audio=copy and audio=reference, and audio={self.audio}",
        )
        self._check_audio_reference()
        self._check_sizes()
        self._check_prompts()
        self.out = expand_home(self.out)
        self.frames_out = None if self.frames_out is None else expand_home(self.frames_out)
        require(Path(self.out).suffix == ".mp4", f"out={self.out} must end in .mp4")
        self.adapter = path_list("adapter", self.adapter)
        self.reference = [] if self.reference in (None, []) else reference_list(self.reference)
        self.adapter_strength = number_list("adapter_strength", self.adapter_strength, "adapter", len(self.adapter))
        for key in ("attention_strength", "reference_strength"):
            setattr(self, key, strength_list(key, getattr(self, key), len(self.reference)))
        self._check_refine()
        self.attention_mask = mask_list(self.attention_mask, len(self.reference))
        self.reference_frame = frame_list(self.reference_frame, len(self.reference))
        self._check_kept()
        check_signal(self.signal, self.signal_settings, self.reference or [self.source])

    @property
    def reference_numbers(self) -> list[int]:
        """The numbers of the references that are given, from 0."""
        return [number for number, path in enumerate(self.reference) if path is not None]

    @property
    def prompts(self) -> list[str]:
        """The texts of `prompt`: one, or several."""
        return self.prompt if isinstance(self.prompt, list) else [self.prompt]

    def kept_parts(self) -> set[str]:
        """The settings that give a part of the video and are set."""
        keys = ("first_frame", "prefix", "suffix", "source")
        return {key for key in keys if getattr(self, key) is not None}

    def _check_audio_reference(self) -> None:
        """ConfigError for an audio reference without a sound that follows it."""
        require(
            self.audio_reference is None or self.audio == "generate",
            f"audio_reference={self.audio_reference} is for sound that is made: set audio=generate, not {self.audio}",
        )
        if self.audio_placement is not None:
            one_of("audio_placement", self.audio_placement, PLACEMENTS)
        require(
            self.audio_placement is None or self.audio_reference is not None,
            f"audio_placement={self.audio_placement} is of an audio reference: set audio_reference=FILE too",
        )

    def _check_sizes(self) -> None:
        """ConfigError for sizes out of bounds, and for an overlap of nothing."""
        for key in ("width", "height", "frames"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"{key}={value} must be at least 1, or null for the reference's")
        for key in ("window_frames", "window_overlap", "tile_width", "tile_height", "tile_overlap"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"{key}={value} must be at least 1, or null")
        require(
            self.window_overlap is None or self.window_frames is not None,
            f"window_overlap={self.window_overlap} is a part of window_frames: set window_frames too",
        )
        require(
            self.tile_overlap is None or (self.tile_width or self.tile_height) is not None,
            f"tile_overlap={self.tile_overlap} is for tiles: set tile_width or tile_height too",
        )
        bounds = "must be above 0 and at most 1000, or null for the reference's"
        require(self.fps is None or 0 < self.fps <= 1000, f"fps={self.fps} {bounds}")

    def _check_prompts(self) -> None:
        """ConfigError unless `prompt` is a text or a list of them, and `prompt_frames` has a frame for each."""
        require(
            bool(self.prompts) and all(isinstance(text, str) for text in self.prompts),
            f"prompt={self.prompt} must be a text, or a list of texts, one for each window",
        )
        frames = self.prompt_frames
        require(
            frames is None or (isinstance(frames, list) and all(type(frame) is int for frame in frames)),
            f"prompt_frames={frames} must be a list of frame numbers, e.g. [0,97]",
        )
        require(
            frames is None or len(frames) == len(self.prompts),
            f"prompt_frames={frames} has {frames and len(frames)} frames, and prompt has {len(self.prompts)} texts: "
            "give the frame at which each begins",
        )

    def _check_refine(self) -> None:
        """ConfigError for settings of the second stage without one."""
        require(abs(self.refine_strength) < LARGEST, f"refine_strength={self.refine_strength} must be below {LARGEST}")
        changed = [
            key for key, value in (("refine_reference", False), ("refine_strength", 1.0)) if getattr(self, key) != value
        ]
        require(
            self.upsampler is not None or not changed,
            f"{changed and changed[0]} is for the second stage: set upsampler=FILE too",
        )

    def _check_kept(self) -> None:
        """ConfigError unless the settings of kept parts go together."""
        one_of("regenerate_mode", self.regenerate_mode, tuple(CELL_MODES))
        require(
            self.first_frame is None or self.prefix is None,
            "first_frame and prefix both say how the video begins: set one of them",
        )
        parts = [key for key in ("regenerate", "regenerate_frames") if getattr(self, key) is not None]
        require(self.source is not None or not parts, f"{parts and parts[0]} is a part of source: set source=CLIP too")
        require(
            self.source is None or bool(parts) or self.audio == "generate",
            f"source={self.source}: set what is made anew, regenerate=MASK or regenerate_frames=[from,to], or "
            "audio=generate to make the sound of the clip",
        )
        span = self.regenerate_frames
        numbers = span is None or (isinstance(span, list) and [type(n) for n in span] == [int, int])
        message = f"regenerate_frames={span} must be two frame numbers [from,to] with 0 <= from < to"
        require(numbers and (span is None or 0 <= span[0] < span[1]), message)


def to_settings(composed: DictConfig) -> GenerateSettings:
    """Convert a composed config to `GenerateSettings` without the sections that only training reads.

    ConfigError names the setting that is missing or out of bounds.
    """
    for section in TRAINING_SECTIONS:
        composed[section] = None
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be set, e.g. {missing[0]}={EXAMPLES.get(missing[0], '...')}")
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, GenerateSettings)
    return settings


def settings_from_record(record: dict[str, Any]) -> GenerateSettings:
    """The settings of a video's JSON record, to make the video again. Keys of version 0.1 are read under their new
    names. A record from before sound could be sampled has the video stream alone."""
    settings = OmegaConf.create(record["settings"])
    assert isinstance(settings, DictConfig)
    settings.model.setdefault("audio", "off")
    for old, new in RENAMED_KEYS.items():
        section, _, key = old.partition(".")
        if key in settings[section]:
            OmegaConf.update(settings, new, settings[section].pop(key))
    composed = OmegaConf.merge(OmegaConf.structured(GenerateSettings), settings)
    assert isinstance(composed, DictConfig)
    return to_settings(composed)

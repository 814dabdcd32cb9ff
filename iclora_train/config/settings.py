"""The settings of a run as dataclasses with bounds. Optimizer, Trainer and W&B arguments are passed on.

`to_config` turns a composed config into these dataclasses. A value out of bounds raises ConfigError with the key, the
value and the allowed range. No torch import here, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from iclora_train.config.captioner import Captioner
from iclora_train.config.checks import Checks
from iclora_train.config.cpus import available_cpus
from iclora_train.config.diffusion import Flow, Sampling
from iclora_train.config.errors import ConfigError, one_of, require
from iclora_train.config.evaluation import Eval
from iclora_train.config.lora import Lora
from iclora_train.config.no_reference import check_sections
from iclora_train.config.paths import expand_home
from iclora_train.config.share import Share
from iclora_train.config.sources import DataSource, check_sources
from iclora_train.config.task import Task

# Settings that had another name in earlier versions. An old name is an error that names the new one
# (`hydra_app.explain_error`).
RENAMED_KEYS = {
    "model.kept": "model.activation_budget",
    "model.spill": "model.activation_offload",
    "model.offload": "model.weight_offload",
    "model.graphs": "model.cuda_graphs",
    "model.recompute": "model.activation_checkpointing",
}

LOADER_WORKERS = 2  # where data.workers is null
CHOICES = {  # of keys of `data` that may be null
    "pick": ("random", "stride", "best"),
    "hdr": ("convert", "refuse"),
    "keep": ("preview", "lossless", "none"),
    "vae_precision": ("fp32", "bf16"),
    "sound": ("required", "silence"),
}


@dataclass
class Model:
    """The frozen base. checkpoint: `nano` (included in the package), a file or a folder."""

    name: str = MISSING
    checkpoint: str = MISSING
    version: str | None = None  # refuse a checkpoint of another version; null takes any
    vae: str | None = None  # file of the video VAE, if the checkpoint does not contain it
    connectors: str | None = None  # file of the text connectors, if the checkpoint does not contain them
    audio_vae: str | None = None  # file of the audio VAE and the vocoder, if the checkpoint does not contain them
    text_encoder: str | None = None  # folder of Gemma with its tokenizer, if the checkpoint does not contain it
    activation_checkpointing: bool = False  # blocks that are not compiled: save only each block's input
    activation_budget: float | None = None  # compiled blocks: share of activation memory to save; null: trainer.memory
    activation_offload: float = 0.0  # compiled blocks: share of the saved activations moved to host memory
    compile: bool | None = None  # torch.compile for the blocks; null: on a GPU, except for nano
    cuda_graphs: bool = True  # compiled blocks on a GPU without offload: replay a training step as CUDA graphs
    weight_offload: int = 0  # number of blocks whose weights stay in host memory: slower, less GPU memory
    audio: str = "auto"  # audio stream beside the video's: on, off; auto: off in training, else on where it fits
    precision: str = "auto"  # bf16 if the machine computes it natively, else fp32; fp8: the blocks' weights in fp8
    lora: Lora = field(default_factory=Lora)

    def __post_init__(self) -> None:
        one_of("model.precision", self.precision, ("auto", "fp32", "bf16", "fp8"))
        self.audio = {"True": "on", "False": "off"}.get(self.audio, self.audio)  # on and off in YAML are truth values
        one_of("model.audio", self.audio, ("auto", "on", "off"))
        budget, offload = self.activation_budget, self.activation_offload
        require(budget is None or 0 <= budget <= 1, f"model.activation_budget={budget} must lie in [0, 1], or be null")
        require(0 <= offload <= 1, f"model.activation_offload={offload} must lie in [0, 1]")
        require(self.weight_offload >= 0, f"model.weight_offload={self.weight_offload} must be 0 (none) or more blocks")


@dataclass
class Data:
    """Which clips are used, how they are cut into windows, where the shards are, how clips are batched."""

    clips: str = MISSING  # "samples" (included clips), a folder, a pattern ('/x/**/*.mp4'), a csv/jsonl list, tars
    references: str | None = None  # a folder with a reference for every clip of a folder or pattern, of the same name
    root: str = MISSING  # where pair shards and latent shards are written and read
    sources: list[DataSource] | None = None  # instead of clips: several sets, mixed by weights or repeats
    frames: int = 9
    height: int = 64
    width: int = 64
    fps: float | None = None  # null keeps each clip's own rate
    buckets: list[str] | None = None  # sizes such as 960x544x49; each clip gets the best fit; null: only the size above
    short_side: int | None = None  # scale clips to this short side before cropping; null: the smallest possible
    zoom: float = 1.25  # train windows are scaled up by a random factor up to this before cropping; 1: off
    flip: bool = True  # mirror half of the train windows; false if left and right differ in meaning (text, hands)
    train_windows: int = 512  # windows drawn from the training clips, evenly over clips
    pick: str | None = None  # choice of train windows: null (random), stride, or best (most motion and sharpness)
    stride: int | None = None  # for stride and best: frames between two window starts; null: half a window
    cuts: bool | None = None  # true: detect scene cuts; windows never cross them, nor cuts given in a column `cuts`
    hdr: str | None = None  # clips in HDR: null or convert (to SDR), or refuse (drop them)
    captioner: str | None = None  # folder of a vision-language model that captions clips without a caption
    prompt: str | None = None  # template of the caption, e.g. "Reference shows {reference_caption}. {caption}"
    heldout_windows: int = 32  # windows spread over the val clips, and as many over the heldout clips
    heldout_fraction: float = 0.1  # share of the clips, if the list or folder names no split
    split: str | None = None  # none: all clips without a split in the list are for training; null: drawn (docs/data.md)
    seed: int = 0
    batch_size: int = 8  # clips per batch
    tokens_per_batch: int | None = None  # instead of batch_size: as many clips as fit this many tokens
    workers: int | None = 0  # processes that prepare data, or load batches ahead; null: all CPUs, or 2
    keep: str | None = None  # pixels of train windows: preview, lossless, none; null: preview (lossless on nano)
    vae_precision: str | None = None  # in which the VAE makes latents: fp32 (null) or bf16, as in Lightricks' trainer
    sound: str | None = None  # store the sound of targets: null (no), required (of every clip), silence (where missing)

    def __post_init__(self) -> None:
        self.root = expand_home(self.root)
        if self.sources is not None:
            self.sources = check_sources(self.sources)
            require(
                self.clips in ("", MISSING, "samples"),
                f"data.clips={self.clips} and data.sources are both set: make it a source, {{clips: {self.clips}}}",
            )
            require(
                self.references is None,
                f"data.references={self.references} and data.sources are both set: name it in a source",
            )
            self.clips = ""
        for key in ("frames", "height", "width", "train_windows", "heldout_windows", "batch_size"):
            require(getattr(self, key) >= 1, f"data.{key}={getattr(self, key)} must be at least 1")
        bounds = "must be above 0 and at most 1000, or null for the clip's own"
        require(self.fps is None or 0 < self.fps <= 1000, f"data.fps={self.fps} {bounds}")
        require(0 < self.heldout_fraction < 1, f"data.heldout_fraction={self.heldout_fraction} must lie in (0, 1)")
        require(self.zoom >= 1, f"data.zoom={self.zoom} must be at least 1 (1 switches it off)")
        require(self.seed >= 0, f"data.seed={self.seed} must be 0 or more")
        require(self.stride is None or self.stride >= 1, f"data.stride={self.stride} must be at least 1, or null")
        require(self.split in (None, "none"), f"data.split={self.split} must be none or null")
        workers = self.workers
        require(workers is None or workers >= 0, f"data.workers={workers} must be 0 or more, or null for all CPUs")
        for key, choices in CHOICES.items():
            if getattr(self, key) is not None:
                one_of(f"data.{key}", getattr(self, key), choices)
        self.vae_precision = None if self.vae_precision == "fp32" else self.vae_precision  # shards are compared by it
        window_side = min(self.height, self.width)
        require(
            self.short_side is None or self.short_side >= window_side,
            f"data.short_side={self.short_side} must be at least {window_side}, the short side of the windows, or null",
        )
        require(
            self.tokens_per_batch is None or self.tokens_per_batch >= 1,
            f"data.tokens_per_batch={self.tokens_per_batch} must be at least 1, or null for data.batch_size clips",
        )
        require(self.buckets != [], "data.buckets is empty: name a size, e.g. [960x544x49], or null")
        for bucket in self.buckets or []:
            is_size = re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", bucket) is not None
            require(is_size, f"data.buckets: {bucket!r} is not width x height x frames, e.g. 960x544x49")

    def root_of(self, source: DataSource) -> str:
        """The folder with the pairs and latents of a source."""
        return source.root if source.root is not None else os.path.join(self.root, source.label)

    def roots(self) -> list[str]:
        """The folders with pairs and latents: of each of `sources`, or `root`."""
        return [self.root] if self.sources is None else [self.root_of(source) for source in self.sources]

    def processes(self) -> int:
        """Processes that prepare data on this machine."""
        return available_cpus() if self.workers is None else self.workers

    def loader_processes(self) -> int:
        """Processes that load batches ahead in training."""
        return LOADER_WORKERS if self.workers is None else self.workers

    def sizes(self) -> list[Data]:
        """These settings once per bucket, each with its size; without buckets, only these settings."""
        sizes = [tuple(map(int, bucket.split("x"))) for bucket in self.buckets or []]
        return [replace(self, width=w, height=h, frames=f, buckets=None) for w, h, f in sizes] or [self]


@dataclass
class Optim:
    """Optimizer (any torch class: `optimizer._target_`), learning rate schedule, clipping, EMA."""

    optimizer: dict[str, Any] = field(default_factory=dict)
    warmup_steps: int = 100
    decay: str = "constant"
    decay_from: float = 0.5  # share of max_steps after which the learning rate decays (linear, cosine)
    clip_norm: float = 1.0
    ema: float | None = None  # decay of an averaged copy of the adapter; if set, the average is exported

    def __post_init__(self) -> None:
        one_of("optim.decay", self.decay, ("constant", "linear", "cosine"))
        require(0 <= self.decay_from <= 1, f"optim.decay_from={self.decay_from} must lie in [0, 1]")
        require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps} must be 0 or more")
        require(self.clip_norm > 0, f"optim.clip_norm={self.clip_norm} must be above 0")
        require(self.ema is None or 0 < self.ema < 1, f"optim.ema={self.ema} must lie in (0, 1), or null for none")


@dataclass
class Validation:
    """Validation during training, and how often checkpoints are saved. An interval of 0 is off."""

    loss_every: int = 50  # steps between validation losses with the correct, a swapped and no reference
    clips_every: int = 0  # steps between rounds of sampled clips; 0: at the end only, none with loss_every=0 too
    checkpoint_every: int = 50  # steps between checkpoints; a run resumes from one exactly
    dry_run: bool = False  # before step 0: try a step, validation clips and a save; print the cost
    windows: int = 16  # val clips
    sigmas: list[float] = field(default_factory=lambda: [0.1, 0.3, 0.5, 0.7, 0.9])

    def __post_init__(self) -> None:
        for key in ("loss_every", "clips_every", "checkpoint_every"):
            require(getattr(self, key) >= 0, f"validation.{key}={getattr(self, key)} must be 0 (off) or more")
        require(self.windows >= 2, f"validation.windows={self.windows} must be at least 2: references are swapped")
        require(all(0 < s <= 1 for s in self.sigmas), f"validation.sigmas={self.sigmas} must lie in (0, 1]")


@dataclass
class Config:
    """All settings of a run. `conf=<task>` sets the task; every key can be set on the command line."""

    task: Task = field(default_factory=Task)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    flow: Flow = field(default_factory=Flow)
    optim: Optim = field(default_factory=Optim)
    sample: Sampling = field(default_factory=Sampling)
    validation: Validation = field(default_factory=Validation)
    eval: Eval = field(default_factory=Eval)
    checks: Checks = field(default_factory=Checks)
    captioner: Captioner = field(default_factory=Captioner)
    trainer: dict[str, Any] = field(default_factory=dict)  # arguments of lightning.Trainer, and `memory`
    logger: dict[str, Any] = field(default_factory=dict)  # csv: true or false; wandb: arguments of wandb.init
    run: str = MISSING  # name of the run and of its folder in runs_dir; an unfinished run there is resumed
    runs_dir: str = "runs"
    engine: str = "local"  # data_prep: local (data.workers processes) or ray (one machine or a cluster)
    share: str | None = None  # data_prep: k/n makes the k-th of n shares of the shards, a process for each; null: all
    adapter: str | None = None  # eval: the adapter to evaluate; null: the run's own; none: the base without adapter
    videos: str | None = None  # eval: a folder of clips by another program, evaluated instead of an adapter
    seed: int = 0
    export_dtype: str = "bf16"  # of the adapter file, as official ones; fp32: exact and twice as large

    def __post_init__(self) -> None:
        one_of("export_dtype", self.export_dtype, ("bf16", "fp32"))
        if self.model.audio == "on" and self.model.text_encoder is None:
            self._require_sound()
        require(
            self.data.sound is not None or not self.task.needs_audio,
            f"task {self.task.name} makes sound (task.audio_reference or task.video_given): set data.sound=required, "
            "so that the sound of the clips is prepared",
        )
        if not self.task.has_reference:
            check_sections(self.flow, self.data.references, self.data.sources)
        require(
            not self.eval.reference_strengths or len(self.task.reference_names) > 1,
            f"eval.reference_strengths={self.eval.reference_strengths} weakens one of several references, and task "
            f"{self.task.name} has {len(self.task.reference_names)}: use eval.strengths",
        )
        if self.share is not None:
            Share.parse(self.share)
        self.runs_dir = expand_home(self.runs_dir)
        self.adapter = None if self.adapter is None else expand_home(self.adapter)
        self.videos = None if self.videos is None else expand_home(self.videos)

    def _require_sound(self) -> None:
        """ConfigError for model.audio=on without sound in the data: neither training nor eval then have what it needs,
        unless eval can encode the captions."""
        require(
            self.data.sound is not None,
            "model.audio=on trains on the sound of the clips too: set data.sound=required or silence, or "
            "model.audio=auto or off (for eval model.text_encoder does as well)",
        )

    def require_trainable_audio(self) -> None:
        """ConfigError unless the other settings allow training of both streams, if model.audio=on asks for it."""
        if self.model.audio != "on":
            return
        self._require_sound()
        for key, value in (("locality", 0.0), ("preserve_base", False), ("caption_dropout_p", 0.0)):
            set_to = getattr(self.flow, key)
            require(
                set_to == value,
                f"flow.{key}={set_to} acts on the video stream alone: with model.audio=on set flow.{key}={value}",
            )


def to_config(composed: DictConfig) -> Config:
    """Convert a composed config to dataclasses and check all bounds. ConfigError names the key and the problem."""
    missing = sorted(OmegaConf.missing_keys(composed))
    if "data.clips" in missing and OmegaConf.select(composed, "data.sources") is not None:
        composed.data.clips = ""
        missing.remove("data.clips")
    if missing:
        task_missing = any(key.startswith("task.") for key in missing)
        remedy = "choose a task with conf=<task>" if task_missing else f"e.g. {missing[0]}=... on the command line"
        raise ConfigError(f"{', '.join(missing)} must be set: {remedy}")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config

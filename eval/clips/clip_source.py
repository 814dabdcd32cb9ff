"""Base class of the two sources of clips (`sampled`, `external`), and the disk cache of sampled batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eval.clips.audio_stream import AudioChoice
from eval.clips.conditions import Condition, Item
from eval.clips.judged_adapter import JudgedAdapter
from eval.clips.windows import HeldOut, Window
from eval.metrics import Clip
from iclora_train.config import Config, ConfigError, require
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.device import default_device
from iclora_train.core.fingerprint import digest
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.pixels import to_uint8

PROTOCOL = 1  # increase it when the same settings would produce different clips


class FinishedBatch(NamedTuple):
    """Clips (B,F,H,W,3), and the latents of the sound of each (C,l,m), None without it."""

    clips: Tensor
    sounds: Sequence[Tensor | None] = ()


class ClipCache:
    """Finished batches on disk, one safetensors file per batch, written atomically, so that a run can resume."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, spec: dict[str, Any]) -> Path:
        """The file of the batch that `spec` describes."""
        return self.folder / f"{digest(spec)[:24]}.safetensors"

    def has(self, spec: dict[str, Any]) -> bool:
        """Whether the batch is in the cache."""
        return self.path(spec).exists()

    def read(self, spec: dict[str, Any], rows: slice = slice(None)) -> tuple[Clip, float]:
        """Clips (B,F,H,W,3), restricted to `rows`, and the seconds that sampling the whole batch took.

        Raises ConfigError if the file is damaged.
        """
        path = self.path(spec)
        try:
            with safe_open(path, framework="np") as file:
                return file.get_slice("clips")[rows], float(file.metadata()["seconds"])
        except SafetensorError as error:
            raise ConfigError(f"{path} is damaged ({error}): delete it and run eval again") from error

    def read_sounds(self, spec: dict[str, Any], count: int) -> list[Tensor | None]:
        """The latents (C,l,m) of the sounds of a batch of `count` clips, None without. Errors as in `read`."""
        path = self.path(spec)
        try:
            with safe_open(path, framework="pt") as file:
                stored = set(file.keys())
                names = [sound_name(number) for number in range(count)]
                return [file.get_tensor(name) if name in stored else None for name in names]
        except SafetensorError as error:
            raise ConfigError(f"{path} is damaged ({error}): delete it and run eval again") from error

    def write(self, spec: dict[str, Any], clips: Tensor, seconds: float, sounds: Sequence[Tensor | None] = ()) -> None:
        """Write clips (B,F,H,W,3), the latents of their sounds, and the seconds that sampling them took."""
        tensors = {
            sound_name(number): sound.cpu().contiguous() for number, sound in enumerate(sounds) if sound is not None
        }
        with write_atomic(self.path(spec)) as file:
            file.write(safetensors.torch.save({"clips": clips.contiguous(), **tensors}, {"seconds": f"{seconds:.3f}"}))


def sound_name(number: int) -> str:
    """The name of the sound of a clip in a file of the cache."""
    return f"sound{number}"


def device_of(config: Config) -> torch.device:
    """The device that samples and decodes."""
    return torch.device("cpu") if config.trainer.get("accelerator") == "cpu" else default_device()


class ClipSource:
    """Gives the clips of every condition and batch; holds the held-out windows and the VAE.

    conditions: the conditions that this source can provide; seeds: the seeds of every window; sigmas: the noise
    schedule; precision: dtype of the weights, as text. audio_choice: whether the audio stream is sampled; None for
    clips of another program.
    """

    conditions: list[Condition]
    seeds: list[int]
    sigmas: list[float]
    precision: str
    audio_choice: AudioChoice | None = None

    def __init__(
        self, config: Config, base: BaseModel, judged: JudgedAdapter, held_out: HeldOut, cache: ClipCache
    ) -> None:
        self.config, self.held_out, self.cache, self.base, self.judged = config, held_out, cache, base, judged
        self.device = device_of(config)
        self.vae = base.vae().to(self.device)
        self.latent_size = held_out.latent_size

    def clips(self, condition: Condition, batch: Sequence[Item]) -> tuple[Clip, float]:
        """Clips (B,F,H,W,3) of a batch, and the seconds that sampling them took, in this run or an earlier one."""
        raise NotImplementedError

    def clip(self, condition: Condition, batch: Sequence[Item], i: int) -> Clip:
        """The i-th clip (F,H,W,3) of a batch."""
        raise NotImplementedError

    def is_finished(self, condition: Condition, batch: Sequence[Item]) -> bool:
        """Whether the clips of a batch exist, so that `clips` only reads them."""
        raise NotImplementedError

    def velocity_losses(self, condition: Condition, batch: Sequence[Item]) -> list[float]:
        """The velocity loss of each item under a condition without a reference."""
        raise NotImplementedError

    @property
    def token_pixels(self) -> int:
        """Side of a reference token in target pixels."""
        return self.base.geometry.spatial * self.config.task.reference_downscale

    @property
    def band_pixels(self) -> int:
        """Width of the half mask's transition band in target pixels: one reference token, at most a quarter frame."""
        return min(self.token_pixels, self.latent_size[2] * self.base.geometry.spatial // 4)

    def round_trip(self, window: Window) -> Clip:
        """The target (F,H,W,3) after VAE encoding and decoding: the ceiling for every sampled clip."""
        spec = {**self._common_spec(), "round_trip": window.key}
        return self.cached(spec, lambda: self._decode(self.held_out.latents(window).target[None].to(self.device)))[0][0]

    def _common_spec(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "base": self.base.fingerprint,
            "precision": self.precision,
            "device": self.device.type,
            "latents": self.held_out.fingerprint["latents"],
        }

    def cached(
        self, spec: dict[str, Any], make: Callable[[], Tensor | FinishedBatch], rows: slice = slice(None)
    ) -> tuple[Clip, float]:
        """Clips (B,F,H,W,3) that `spec` describes, restricted to `rows`, and the seconds that the batch took.

        `make` is called only if the cache does not hold the batch.
        """
        if not self.cache.has(spec):
            started = time.perf_counter()
            result = make()
            clips, sounds = result if isinstance(result, FinishedBatch) else (result, ())
            self.cache.write(spec, clips, time.perf_counter() - started, sounds)
        return self.cache.read(spec, rows)

    @torch.no_grad()
    def _decode(self, latent: Tensor) -> Tensor:
        """Clips (B,F,H,W,3) from latents. Raises ConfigError for NaN or infinity, which would become black pixels."""
        clips = self.vae.decode(latent)
        require(
            bool(clips.isfinite().all()),
            f"adapter={self.judged.path} with base {self.base.name}: a sampled clip contains NaN or infinity. Try "
            "model.precision=fp32 or an earlier checkpoint; `python -m iclora_train.adapters check` examines the file",
        )
        return to_uint8(clips).cpu()

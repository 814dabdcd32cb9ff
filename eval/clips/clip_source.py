"""Where the clips that are judged come from, and the disk that keeps what is made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eval.clips.conditions import Condition, Item
from eval.clips.judged_adapter import JudgedAdapter
from eval.clips.windows import HeldOut, Window
from eval.metrics import Clip
from iclora_train.config import Config, ConfigError
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.device import default_device
from iclora_train.core.fingerprint import digest
from iclora_train.data.pixels import to_uint8
from iclora_train.ltx2.base_model import BaseModel

PROTOCOL = 1  # raise it when the same settings would give other clips


class ClipCache:
    """Finished batches on disk, one safetensors file each; whole or absent, so an interrupted run goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, spec: dict[str, Any]) -> Path:
        """The file of what `spec` describes."""
        return self.folder / f"{digest(spec)[:24]}.safetensors"

    def has(self, spec: dict[str, Any]) -> bool:
        """Whether it was made before."""
        return self.path(spec).exists()

    def read(self, spec: dict[str, Any], which: slice = slice(None)) -> tuple[Clip, float]:
        """Clips (B,F,H,W,3), or those of the batch that `which` names, and the seconds it took to make the batch.

        ConfigError when the file is damaged.
        """
        path = self.path(spec)
        try:
            with safe_open(path, framework="np") as file:
                return file.get_slice("clips")[which], float(file.metadata()["seconds"])
        except SafetensorError as error:
            raise ConfigError(f"{path} is damaged ({error}): delete it and run eval again") from error

    def write(self, spec: dict[str, Any], clips: Tensor, seconds: float) -> None:
        """Keep clips; the file tells `seconds`."""
        with write_atomic(self.path(spec)) as file:
            file.write(safetensors.torch.save({"clips": clips.contiguous()}, {"seconds": f"{seconds:.3f}"}))


class ClipSource:
    """What all sources of clips share: the held-out windows, and the VAE whose round trip is the ceiling.

    A source has `cells`, the conditions it knows, and `seeds`, and gives the clips of a cell's batch.
    """

    cells: list[Condition]
    seeds: list[int]
    sigmas: list[float]
    precision: str

    def __init__(self, config: Config, base: BaseModel, judged: JudgedAdapter, held: HeldOut, store: ClipCache) -> None:
        self.config, self.held, self.store, self.base, self.judged = config, held, store, base, judged
        self.device = torch.device("cpu") if config.trainer.get("accelerator") == "cpu" else default_device()
        self.vae = base.vae().to(self.device)
        self.size = held.latent_size

    def clips(self, cell: Condition, batch: Sequence[Item]) -> tuple[Clip, float]:
        """Clips (B,F,H,W,3) of a batch, and the seconds that making them took, now or earlier."""
        raise NotImplementedError

    def clip(self, cell: Condition, batch: Sequence[Item], i: int) -> Clip:
        """The i-th clip (F,H,W,3) of a batch."""
        raise NotImplementedError

    @property
    def token(self) -> int:
        """Side of a reference token in target pixels."""
        return self.base.geometry.spatial * self.config.task.reference_downscale

    @property
    def band(self) -> int:
        """Width in target pixels of the half mask's transition band: one reference token, at most a quarter of the
        frame."""
        return min(self.token, self.size[2] * self.base.geometry.spatial // 4)

    def round_trip(self, window: Window) -> Clip:
        """The target (F,H,W,3) after the VAE: the ceiling of whatever is sampled."""
        spec = {**self._common(), "round_trip": window.key}
        return self.kept(spec, lambda: self._decode(self.held.latents(window).target[None].to(self.device)))[0][0]

    def _common(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "base": self.base.fingerprint,
            "precision": self.precision,
            "device": self.device.type,
            "latents": self.held.fingerprint["latents"],
        }

    def kept(self, spec: dict[str, Any], make: Callable[[], Tensor], which: slice = slice(None)) -> tuple[Clip, float]:
        """What `spec` describes, made (B,F,H,W,3) unless it was before; of the batch the clips that `which` names, and
        the seconds that the batch took."""
        if not self.store.has(spec):
            started = time.perf_counter()
            made = make()
            self.store.write(spec, made, time.perf_counter() - started)
        return self.store.read(spec, which)

    @torch.no_grad()
    def _decode(self, latent: Tensor) -> Tensor:
        return to_uint8(self.vae.decode(latent)).cpu()

"""Clips of a cell, from the shipping sampler or from disk: what is made once is kept under a hash of what made it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eval.cells import Cell, Item
from eval.metrics import Clip
from eval.windows import HeldOut, Window
from iclora_train import lora
from iclora_train.config import Config, ConfigError, require
from iclora_train.files import sha256, write_whole
from iclora_train.fingerprint import digest
from iclora_train.guidance import guidance_from
from iclora_train.ltx2.base import Base
from iclora_train.precision import transformer_of
from iclora_train.sample import Reference, sample
from iclora_train.schedule import sigmas_for

PROTOCOL = 1  # raise it when the same settings would give other clips
Ticker = Callable[[], None]


class Store:
    """Finished batches on disk, one safetensors file each; whole or absent, so an interrupted run goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, spec: dict[str, Any]) -> Path:
        """The file of what `spec` describes."""
        return self.folder / f"{digest(spec)[:24]}.safetensors"

    def has(self, spec: dict[str, Any]) -> bool:
        """Whether it was made before."""
        return self.path(spec).exists()

    def read(self, spec: dict[str, Any]) -> tuple[Clip, float]:
        """Clips (B,F,H,W,3), and the seconds it took to make them. ConfigError when the file is damaged."""
        path = self.path(spec)
        try:
            with safe_open(path, framework="np") as file:
                return file.get_tensor("clips"), float(file.metadata()["seconds"])
        except SafetensorError as error:
            raise ConfigError(f"{path} is damaged ({error}): delete it and run eval again") from error

    def write(self, spec: dict[str, Any], clips: Tensor, seconds: float) -> None:
        """Keep clips; the file tells `seconds`."""
        with write_whole(self.path(spec)) as file:
            file.write(safetensors.torch.save({"clips": clips.contiguous()}, {"seconds": f"{seconds:.3f}"}))


def open_adapter(path: Path, config: Config, base: Base) -> lora.Adapter:
    """Read the adapter and check that it fits base and task. ConfigError names the file and the remedy."""
    require(path.exists(), f"adapter={path} does not exist: train it first, or give adapter=<file>")
    adapter = lora.read(path)
    lora.check_base(path, adapter, base.family, base.version, base.fingerprint if base.embedded else None)
    ours = (config.task.reference_downscale, config.task.reference_temporal_scale)
    require(
        (adapter.downscale, adapter.temporal_scale) == ours,
        f"{path} wants references at downscale {adapter.downscale}, temporal scale {adapter.temporal_scale}; "
        f"task {config.task.name} makes them at {ours[0]}, {ours[1]}",
    )
    return adapter


def to_pixels(video: Tensor) -> Tensor:
    """(B,3,F,H,W) in [-1,1] -> uint8 (B,F,H,W,3), rounded."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).cpu()


class Renderer:
    """Makes the clips of a cell with the base, the adapter and the held-out latents."""

    def __init__(self, config: Config, base: Base, adapter_path: Path, held: HeldOut, store: Store) -> None:
        self.config, self.held, self.store, self.base = config, held, store, base
        self.adapter = open_adapter(adapter_path, config, base)
        self.adapter_sha256 = sha256(adapter_path)
        on_gpu = torch.cuda.is_available() and config.trainer.get("accelerator") != "cpu"
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.transformer = transformer_of(base, config.model.precision, self.device)
        lora.load_into(self.transformer, self.adapter)
        self.transformer.to(self.device).eval()
        self.vae = base.vae().to(self.device)
        f, h, w = self.size = held.latent_size
        self.sigmas = sigmas_for(config.sample, config.flow, f * h * w)
        empty = held.empty_text()[None].to(self.device) if config.sample.guidance > 1 else None
        self.guidance = guidance_from(config.sample, empty, self.transformer.config.num_layers)

    @property
    def band(self) -> int:
        """Width in target pixels of the mask's transition band: one reference token, at most a quarter of the frame."""
        token = self.base.geometry.spatial * self.config.task.reference_downscale
        return min(token, self.size[2] * self.base.geometry.spatial // 4)

    def specification(self, cell: Cell, batch: Sequence[Item]) -> dict[str, Any]:
        """Everything that shapes these clips, JSON-able: the name of the cell is not among it."""
        return {
            **self._common(),
            "adapter": self.adapter_sha256 if cell.adapter else None,
            "reference": cell.reference,
            "strength": cell.strength,
            "half_mask": cell.half_mask,
            "factors": [self.config.task.reference_downscale, self.config.task.reference_temporal_scale],
            "sigmas": self.sigmas,
            **self._guided(),
            "items": [
                [item.window.key, self._giver(cell, item).key, item.window.mask_left, item.seed] for item in batch
            ],
        }

    def _guided(self) -> dict[str, Any]:
        settings = self.config.sample
        stg = {"stg": [settings.stg_scale, *settings.stg_blocks]} if settings.stg_scale else {}
        return {"guidance": settings.guidance, **stg, **({"rescale": settings.rescale} if settings.rescale else {})}

    def _common(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "base": self.base.fingerprint,
            "precision": str(self.transformer.patchify_proj.weight.dtype),
            "device": self.device.type,
            "latents": self.held.fingerprint["latents"],
        }

    def _giver(self, cell: Cell, item: Item) -> Window:
        """The window whose reference is given."""
        return self.held.windows[item.window.partner] if cell.reference == "other" else item.window

    def clips(self, cell: Cell, batch: Sequence[Item]) -> tuple[Clip, float]:
        """Clips (B,F,H,W,3) of a batch, and the seconds that making them took, now or earlier."""
        return self._kept(self.specification(cell, batch), lambda: self._make(cell, batch))

    def round_trip(self, window: Window) -> Clip:
        """The target (F,H,W,3) after the VAE: the ceiling of whatever is sampled."""
        spec = {**self._common(), "round_trip": window.key}
        return self._kept(spec, lambda: self._decode(self.held.latents(window).target[None].to(self.device)))[0][0]

    def _kept(self, spec: dict[str, Any], make: Callable[[], Tensor]) -> tuple[Clip, float]:
        if not self.store.has(spec):
            started = time.perf_counter()
            made = make()
            self.store.write(spec, made, time.perf_counter() - started)
        return self.store.read(spec)

    @torch.no_grad()
    def _decode(self, latent: Tensor) -> Tensor:
        return to_pixels(self.vae.decode(latent))

    def _make(self, cell: Cell, batch: Sequence[Item]) -> Tensor:
        own = [self.held.latents(item.window) for item in batch]
        text = torch.stack([pair.text for pair in own]).to(self.device)
        with nullcontext() if cell.adapter else lora.adapter_off(self.transformer):
            latent = sample(
                self.transformer,
                text,
                self.size,
                self.base.geometry,
                torch.tensor([pair.fps for pair in own]),
                self.sigmas,
                [item.noise_seed for item in batch],
                self._references(cell, batch),
                guidance=self.guidance,
            )
        return self._decode(latent)

    def _references(self, cell: Cell, batch: Sequence[Item]) -> list[Reference]:
        if cell.reference == "none":
            return []
        task = self.config.task
        given = [self.held.latents(self._giver(cell, item)).references for item in batch]
        result = []
        for stacked in (torch.stack(clips) for clips in zip(*given, strict=True)):
            mask = half_masks([item.window.mask_left for item in batch], stacked.shape[-1]) if cell.half_mask else None
            result.append(
                Reference(
                    stacked.to(self.device),
                    task.reference_downscale,
                    task.reference_temporal_scale,
                    cell.strength,
                    mask,
                )
            )
        return result


def half_masks(lefts: Sequence[bool], width: int) -> Tensor:
    """Still masks (B,1,2,2 width), 1 on the left half where `lefts`, else on the right; the area average onto
    `width` tokens splits a middle token evenly."""
    left = (torch.arange(2 * width) < width).float()
    rows = torch.stack([left if keep else 1 - left for keep in lefts])
    return rows[:, None, None].expand(-1, 1, 2, -1)


def half_columns(width: int, band: int, keep_left: bool) -> tuple[slice, slice]:
    """Pixel columns inside and outside a half-frame mask, leaving out `band` pixels on either side of its edge."""
    left, right = slice(0, width // 2 - band), slice(width // 2 + band, width)
    return (left, right) if keep_left else (right, left)

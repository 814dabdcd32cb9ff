"""Captions become text features once, before the VAE is loaded: the encoder of a real base fills a GPU by itself."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from data_prep.progress import steps
from iclora_train.files import write_whole
from iclora_train.fingerprint import digest
from iclora_train.ltx2.base import Base

BATCH = 4


class Texts:
    """Features (T,D) of captions, one file each in a folder of the text encoder that made them."""

    def __init__(self, root: Path, base: Base) -> None:
        makers = {part: mark for part, mark in base.latent_fingerprints.items() if part != "vae"}
        self.folder, self.base = root / f"texts-{digest(makers)[:8]}", base
        self.read = lru_cache(maxsize=64)(self._read)  # windows share captions

    def _path(self, caption: str) -> Path:
        return self.folder / f"{digest(caption)[:24]}.safetensors"

    @torch.inference_mode()
    def make(self, captions: Iterable[str]) -> None:
        """Encode those that are not there yet; the encoder is gone when this returns."""
        missing = [caption for caption in dict.fromkeys(captions) if not self._path(caption).exists()]
        if not missing:
            return
        encoder = self.base.text().to("cuda" if torch.cuda.is_available() else "cpu")
        with steps("encoding captions", len(missing)) as bar:
            for i in range(0, len(missing), BATCH):
                batch = missing[i : i + BATCH]
                for caption, features in zip(bar.track(batch), encoder.encode(batch), strict=True):
                    with write_whole(self._path(caption)) as file:
                        half = features.to("cpu", torch.float16).contiguous()
                        file.write(safetensors.torch.save({"text": half}))

    def _read(self, caption: str) -> Tensor:
        return safetensors.torch.load_file(self._path(caption))["text"].float()

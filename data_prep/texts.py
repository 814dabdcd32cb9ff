"""Captions become text features once, before the VAE is loaded: the encoder of a real base fills a GPU by itself."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch

from data_prep.progress import steps
from iclora_train.fingerprint import digest
from iclora_train.ltx2.base import Base
from iclora_train.members import load_text, save_text

BATCH = 4


class Texts:
    """Features (T,D) of captions, one file each in a folder of the text encoder that made them."""

    def __init__(self, root: Path, base: Base) -> None:
        makers = {part: mark for part, mark in base.latent_fingerprints.items() if part != "vae"}
        self.folder, self.base = root / f"texts-{digest(makers)[:8]}", base
        self.read = lru_cache(maxsize=64)(lambda caption: load_text(self._path(caption)))  # windows share captions

    def _path(self, caption: str) -> Path:
        return self.folder / f"{digest(caption)[:24]}.safetensors"

    @torch.inference_mode()
    def make(self, captions: Iterable[str]) -> None:
        """Encode those that are not there yet; the encoder is gone when this returns."""
        missing = [caption for caption in dict.fromkeys(captions) if not self._path(caption).exists()]
        if not missing:
            return
        encoder = self.base.text(device="cuda" if torch.cuda.is_available() else "cpu")
        with steps("encoding captions", len(missing)) as bar:
            for i in range(0, len(missing), BATCH):
                batch = missing[i : i + BATCH]
                for caption, features in zip(bar.track(batch), encoder.encode(batch), strict=True):
                    save_text(self._path(caption), features)

"""Captions become text features once per text encoder, and are kept: a real base's encoder fills a GPU by itself."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch

from iclora_train.core.device import default_device
from iclora_train.core.fingerprint import digest
from iclora_train.core.progress import progress_bar
from iclora_train.data.shard_sample import load_text_features, save_text_features
from iclora_train.ltx2.base_model import BaseModel

BATCH = 4


class TextFeatures:
    """Features (T,D) of captions, one file each in a folder of the text encoder that made them."""

    def __init__(self, root: Path, base: BaseModel) -> None:
        makers = {part: mark for part, mark in base.latent_fingerprints.items() if part != "vae"}
        self.folder, self.base = root / f"texts-{digest(makers)[:8]}", base
        # cached, because windows share captions
        self.read = lru_cache(maxsize=64)(lambda caption: load_text_features(self._path(caption)))

    def _path(self, caption: str) -> Path:
        return self.folder / f"{digest(caption)[:24]}.safetensors"

    @torch.inference_mode()
    def make(self, captions: Iterable[str], device: torch.device | str | None = None) -> None:
        """Encode those that are not there yet, on a GPU unless `device` says where; the encoder is gone on return."""
        missing = [caption for caption in dict.fromkeys(captions) if not self._path(caption).exists()]
        if not missing:
            return
        encoder = self.base.text(device=device or default_device())
        with progress_bar("encoding captions", len(missing), "caption") as bar:
            for i in range(0, len(missing), BATCH):
                batch = missing[i : i + BATCH]
                for caption, features in zip(batch, encoder.encode(batch), strict=True):
                    save_text_features(self._path(caption), features)
                bar.advance(len(batch))

"""Text features of captions, cached on disk per text encoder.

Each caption is encoded only once, because the text encoder of a real base fills a GPU by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from iclora_train.core.device import default_device
from iclora_train.core.fingerprint import digest
from iclora_train.core.progress import progress_bar
from iclora_train.core.records import DamagedFileError
from iclora_train.data.shard_sample import is_whole_text_file, load_text_features, save_text_features
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text.gemma import GemmaTextEncoder
from iclora_train.ltx2.text.nano_encoder import NanoTextEncoder

BATCH = 4  # captions that are encoded at once
REMEDY = "delete it and run data_prep again, which encodes its caption again"


class TextFeatures:
    """Features (T,D) of captions: one file each, in a folder named after the text encoder's fingerprint.

    audio: also the features of the audio stream (T,D'), in a second file of each caption.
    """

    def __init__(self, root: Path, base: BaseModel, audio: bool = False) -> None:
        fingerprints = {name: value for name, value in base.latent_fingerprints.items() if name != "vae"}
        self.folder, self.base, self.audio = root / f"texts-{digest(fingerprints)[:8]}", base, audio
        # cached in memory too, because the windows of a clip share a caption
        self._features = lru_cache(maxsize=64)(self._load)

    def read(self, caption: str) -> Tensor:
        """The features of the video stream."""
        return self._features(self._path(caption))

    def read_audio(self, caption: str) -> Tensor:
        """The features of the audio stream."""
        return self._features(self._audio_path(caption))

    def _load(self, path: Path) -> Tensor:
        try:
            return load_text_features(path)
        except (OSError, ValueError) as error:
            raise DamagedFileError(f"{path} is damaged ({error}): {REMEDY}") from error

    def _is_cached(self, caption: str) -> bool:
        """Whether the features are cached. A damaged file, left by a power cut for example, is written again."""
        paths = [self._path(caption)] + [self._audio_path(caption)] * self.audio
        return all(map(self._is_whole, paths))

    def _is_whole(self, path: Path) -> bool:
        if not path.exists():
            return False
        whole = is_whole_text_file(path)
        if not whole:
            print(f"warning: {path} is damaged; its caption is encoded again", file=sys.stderr)
        return whole

    def _path(self, caption: str) -> Path:
        return self.folder / f"{digest(caption)[:24]}.safetensors"

    def _audio_path(self, caption: str) -> Path:
        return self.folder / f"{digest(caption)[:24]}-audio.safetensors"

    @torch.inference_mode()
    def encode_missing(
        self,
        captions: Iterable[str],
        device: torch.device | str | None = None,
        needed: Collection[str] | None = None,
    ) -> None:
        """Encode the captions that are not in the cache yet. The encoder is freed before this returns.

        device: None for the GPU if there is one. needed: encode only these, and those that share a batch with them. The
        batches follow from `captions` alone, because the last bits of features may depend on the batch.
        """
        unique = list(dict.fromkeys(captions))
        missing = {caption for caption in needed or unique if not self._is_cached(caption)}
        batches = [unique[i : i + BATCH] for i in range(0, len(unique), BATCH)]
        batches = [batch for batch in batches if not missing.isdisjoint(batch)]
        if not batches:
            return
        encoder = self.base.text(device=device or default_device(), audio=self.audio)
        with progress_bar("encoding captions", sum(map(len, batches)), "caption") as bar:
            for batch in batches:
                for path, features in self._encode(encoder, batch):
                    save_text_features(path, features)
                bar.advance(len(batch))

    def _encode(
        self, encoder: NanoTextEncoder | GemmaTextEncoder, captions: list[str]
    ) -> Iterator[tuple[Path, Tensor]]:
        """The files of the captions and their features."""
        if not self.audio:
            yield from zip(map(self._path, captions), encoder.encode(captions), strict=True)
            return
        assert isinstance(encoder, GemmaTextEncoder)  # other bases have no audio stream
        video, audio = encoder.encode_both(captions)
        yield from zip(map(self._path, captions), video, strict=True)
        yield from zip(map(self._audio_path, captions), audio, strict=True)

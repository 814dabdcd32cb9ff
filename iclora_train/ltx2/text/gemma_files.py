"""The files of a Gemma text encoder: a folder in transformers' format, or LTX-2.5's packed single file.

A folder has config.json, tokenizer.json (beside it, or in a diffusers folder's tokenizer/) and safetensors. The packed
file has the config in its metadata, tokenizer.json as a tensor of bytes, and also the text projection, which
`checkpoint` reads. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from iclora_train.config import ConfigError
from iclora_train.ltx2.weights.safetensors_header import StoredTensor, read_header

PACKED_CONFIG, PACKED_TOKENIZER = "gemma_config", "tokenizer_json"
KINDS = {"gemma3": "Gemma 3", "gemma3_text": "Gemma 3", "gemma4_unified": "LTX's Gemma 4", "gemma4": "a dense Gemma 4"}
NEEDED = {  # base version -> model type, where to get it
    "2.0": ("gemma3", "google/gemma-3-12b-it-qat-q4_0-unquantized"),
    "2.3": ("gemma3", "google/gemma-3-12b-it-qat-q4_0-unquantized"),
    "2.5": ("gemma4_unified", "gemma4-12b-with-proj-ltx-2.5-bf16.safetensors, shipped with LTX-2.5"),
}
_SAMPLES, _SAMPLE = 16, 1 << 16  # pieces of a weight file that are hashed, bytes of each


@dataclass(frozen=True)
class GemmaFiles:
    """Where the parts of an encoder are; `open` reads the config only."""

    config: dict[str, Any]
    root: Path

    @classmethod
    def open(cls, path: Path) -> GemmaFiles:
        """The encoder at a folder, a diffusers folder (its text_encoder/ is used) or a packed file."""
        if path.is_file():
            config = read_header(path).metadata.get(PACKED_CONFIG)
            if config is None:
                raise ConfigError(
                    f"model.text_encoder={path} carries no {PACKED_CONFIG} in its metadata: it is not LTX-2.5's packed "
                    "text encoder; give that file, or a folder of Gemma with config.json"
                )
            return cls(_parsed(config, path), path)
        inner = path / "text_encoder"
        root = inner if (inner / "config.json").is_file() else path
        file = root / "config.json"
        if not file.is_file():
            problem = "has no config.json" if path.exists() else "does not exist"
            raise ConfigError(
                f"model.text_encoder={path} {problem}; give a folder of Gemma in transformers' format, or for LTX-2.5 "
                "its packed file"
            )
        return cls(_parsed(file.read_text(), file), root)

    @property
    def packed(self) -> bool:
        """Whether all parts are in one file."""
        return self.root.is_file()

    def check(self, version: str, gemma_version: str | None = None) -> None:
        """Refuse an encoder that base `version` was not trained with; `gemma_version` is what its metadata asks for."""
        kind = self.config.get("model_type", "nothing")
        needed, source = NEEDED[".".join(version.split(".")[:2])]
        if kind.removesuffix("_text") != needed:
            known = KINDS.get(kind, f"of model type {kind!r}")
            raise ConfigError(
                f"model.text_encoder={self.root} is {known}, but LTX-{version} needs {KINDS[needed]} "
                f"(model_type {needed}); set model.text_encoder to {source}"
            )
        found = self.config.get("gemma_version")
        if gemma_version is not None and found != gemma_version:
            raise ConfigError(
                f"model.text_encoder={self.root} has gemma_version={found!r}, but the checkpoint was trained with "
                f"{gemma_version!r}; set model.text_encoder to {source} (Google's own Gemma 4 does not do)"
            )

    @cached_property
    def tokenizer(self) -> bytes:
        """The content of tokenizer.json."""
        if self.packed:
            stored = read_header(self.root).tensors
            if PACKED_TOKENIZER not in stored:
                raise ConfigError(f"model.text_encoder={self.root} lacks {PACKED_TOKENIZER}; fetch the file again")
            packed: bytes = stored[PACKED_TOKENIZER].read().byte().numpy().tobytes()
            return packed
        places = [self.root / "tokenizer.json", self.root.parent / "tokenizer" / "tokenizer.json"]
        for place in places:
            if place.is_file():
                return place.read_bytes()
        raise ConfigError(
            f"model.text_encoder={self.root} has no tokenizer: neither {places[0]} nor {places[1]} exists; copy "
            "tokenizer.json of the same Gemma there"
        )

    @cached_property
    def weights(self) -> list[Path]:
        """The safetensors files."""
        files = [self.root] if self.packed else sorted(self.root.glob("*.safetensors"))
        if not files:
            raise ConfigError(
                f"model.text_encoder={self.root} has no .safetensors weights (pickled .bin files are never read); "
                "fetch the safetensors of this Gemma"
            )
        return files

    def language(self) -> Iterator[tuple[str, StoredTensor]]:
        """Names inside the language model, and where their tensors lie; no vision, audio or output head.

        The prefix of the language model differs between layouts: it is what stands before `embed_tokens.weight`.
        """
        stored = {key: at for file in self.weights for key, at in read_header(file).tensors.items()}
        heads = [key for key in stored if key.endswith("embed_tokens.weight")]
        if len(heads) != 1:
            raise ConfigError(
                f"model.text_encoder={self.root}: {len(heads)} tensors are named *embed_tokens.weight, not one; the "
                "weights are incomplete or not Gemma's: fetch them again"
            )
        prefix = heads[0].removesuffix("embed_tokens.weight")
        mine = tuple(prefix + part for part in ("embed_tokens.", "layers.", "norm."))
        for key, at in stored.items():
            if key.startswith(mine):
                yield key.removeprefix(prefix), at

    def fingerprint(self) -> str:
        """Identity: config, tokenizer, sizes and samples of the weights (all of 24 GB would take minutes)."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        digest.update(hashlib.sha256(self.tokenizer).digest())
        for file in self.weights:
            size = file.stat().st_size
            digest.update(f"{size}\n".encode())
            with file.open("rb") as stream:
                for i in range(_SAMPLES):
                    stream.seek(max(size - _SAMPLE, 0) * i // (_SAMPLES - 1))
                    digest.update(stream.read(_SAMPLE))
        return digest.hexdigest()[:16]


def _parsed(text: str, place: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"the config in {place} is not JSON ({error}); fetch it again") from error
    return config

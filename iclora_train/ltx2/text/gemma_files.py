"""The files of a Gemma text encoder: a folder in transformers' format, or LTX-2.5's packed single file.

A folder has config.json, tokenizer.json (in the same folder, or in tokenizer/ of a diffusers folder) and safetensors.
The packed file has the config in its metadata, tokenizer.json as a tensor of bytes, and also the text projection, which
`model_files` reads. Nothing is unpickled.
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
from iclora_train.core.safetensors_header import parse_object
from iclora_train.ltx2.weights.safetensors_header import StoredTensor, read_header
from iclora_train.ltx2.weights.versions import VERSIONS

PACKED_CONFIG, PACKED_TOKENIZER = "gemma_config", "tokenizer_json"
FAMILIES = {
    "gemma3": "Gemma 3",
    "gemma3_text": "Gemma 3",
    "gemma4_unified": "LTX's Gemma 4",
    "gemma4": "a dense Gemma 4",
}
_SAMPLES, _SAMPLE = 16, 1 << 16  # hashed samples of a weight file, bytes of each


@dataclass(frozen=True)
class GemmaFiles:
    """The files of a text encoder. `open` reads only the config.

    root: the folder with config.json, or the packed file.
    """

    config: dict[str, Any]
    root: Path

    @classmethod
    def open(cls, path: Path) -> GemmaFiles:
        """The text encoder in a folder, in text_encoder/ of a diffusers folder, or in a packed file."""
        if path.is_file():
            config = read_header(path).metadata.get(PACKED_CONFIG)
            if config is None:
                raise ConfigError(
                    f"model.text_encoder={path} has no {PACKED_CONFIG} in its metadata: it is not LTX-2.5's packed "
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
        """Whether the text encoder is one packed file."""
        return self.root.is_file()

    def check(self, version: str, gemma_version: str | None = None) -> None:
        """ConfigError for a text encoder that base `version` was not trained with, or whose gemma_version is not the
        one that the checkpoint's metadata requires."""
        kind = self.config.get("model_type", "nothing")
        needed = VERSIONS[".".join(version.split(".")[:2])]
        if kind.removesuffix("_text") != needed.gemma:
            name = FAMILIES.get(kind, f"of model type {kind!r}")
            raise ConfigError(
                f"model.text_encoder={self.root} is {name}, but LTX-{version} needs {FAMILIES[needed.gemma]} "
                f"(model_type {needed.gemma}); set model.text_encoder to {needed.gemma_source}"
            )
        actual = self.config.get("gemma_version")
        if gemma_version is not None and actual != gemma_version:
            raise ConfigError(
                f"model.text_encoder={self.root} has gemma_version={actual!r}, but the checkpoint was trained with "
                f"{gemma_version!r}; set model.text_encoder to {needed.gemma_source} "
                "(Google's own Gemma 4 does not fit)"
            )

    @cached_property
    def tokenizer(self) -> bytes:
        """The content of tokenizer.json."""
        if self.packed:
            stored = read_header(self.root).tensors
            if PACKED_TOKENIZER not in stored:
                raise ConfigError(f"model.text_encoder={self.root} lacks {PACKED_TOKENIZER}; fetch the file again")
            content: bytes = stored[PACKED_TOKENIZER].read().byte().numpy().tobytes()
            return content
        files = [self.root / "tokenizer.json", self.root.parent / "tokenizer" / "tokenizer.json"]
        for file in files:
            if file.is_file():
                return file.read_bytes()
        raise ConfigError(
            f"model.text_encoder={self.root} has no tokenizer: neither {files[0]} nor {files[1]} exists; copy "
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

    def language_tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        """Names inside the language model and the stored tensors, without vision, audio and output head.

        The prefix of the language model differs between layouts: it is the text before `embed_tokens.weight`.
        """
        stored = {key: tensor for file in self.weights for key, tensor in read_header(file).tensors.items()}
        embeddings = [key for key in stored if key.endswith("embed_tokens.weight")]
        if len(embeddings) != 1:
            raise ConfigError(
                f"model.text_encoder={self.root}: {len(embeddings)} tensors are named *embed_tokens.weight, not one; "
                "the weights are incomplete or not Gemma's: fetch them again"
            )
        prefix = embeddings[0].removesuffix("embed_tokens.weight")
        language = tuple(prefix + name for name in ("embed_tokens.", "layers.", "norm."))
        for key, tensor in stored.items():
            if key.startswith(language):
                yield key.removeprefix(prefix), tensor

    def fingerprint(self) -> str:
        """Hash of config and tokenizer, and of sizes and samples of the weights (all 24 GB would take minutes)."""
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


def _parsed(text: str, source: Path) -> dict[str, Any]:
    try:
        return parse_object(text)
    except ValueError as error:
        raise ConfigError(f"the config in {source} is not JSON ({error}); fetch it again") from error

"""A frozen base on disk: what it is, and its parts built on demand.

A base is one safetensors file, or a folder of them, with the official key layout: `model.diffusion_model.*`, `vae.*`
(and `text_encoder.*` for the embedded base), and in the metadata of each file `config` (JSON with a section per part)
and `model_version`. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from iclora_train.config import ConfigError
from iclora_train.ltx2.text import TextConfig, TextEncoder
from iclora_train.ltx2.transformer import Transformer, TransformerConfig
from iclora_train.ltx2.vae import VideoVAE, diffusers_config
from iclora_train.pair import Geometry

EMBEDDED = {"nano": Path(__file__).parent.parent / "nano"}
TRANSFORMER, VAE, TEXT = "model.diffusion_model.", "vae.", "text_encoder."
_SAMPLE = 1 << 20  # bytes hashed at the start, middle and end of a file for the fingerprint


class Base:
    """An opened checkpoint. `open` reads headers only; `transformer`, `vae` and `text` load weights."""

    def __init__(self, name: str, files: list[Path], metadata: dict[str, str]) -> None:
        self.name, self.files = name, files
        self.embedded = name in EMBEDDED
        self.config: dict[str, Any] = json.loads(metadata["config"])
        self.version = metadata["model_version"]
        self.family = metadata.get("model_family", "ltx")
        vae = diffusers_config(self.config["vae"])
        self.geometry = Geometry(
            vae["latent_channels"], vae["spatial_compression_ratio"], vae["temporal_compression_ratio"]
        )
        self.fingerprint = _fingerprint(files)

    @classmethod
    def open(cls, checkpoint: str) -> Base:
        """The base at a path, or an embedded one by name. ConfigError names the file and the remedy."""
        path = EMBEDDED.get(checkpoint, Path(checkpoint).expanduser())
        if not path.exists():
            raise ConfigError(
                f"model.checkpoint={checkpoint!r} is neither a file, a folder, nor an embedded base "
                f"({', '.join(EMBEDDED)})"
            )
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"model.checkpoint={checkpoint!r}: no .safetensors file in {path}")
        for file in files:
            metadata = _metadata(file)
            missing = {"config", "model_version"} - metadata.keys()
            if missing:
                raise ConfigError(
                    f"{file} is not an LTX-2 checkpoint: its metadata lacks {' and '.join(sorted(missing))}; give "
                    "model.checkpoint an official file or an embedded base"
                )
        return cls(checkpoint if checkpoint in EMBEDDED else path.stem, files, metadata)

    def _load(self, module: nn.Module, weights: dict[str, Tensor], part: str) -> None:
        problem = module.load_state_dict(weights, strict=False)
        wrong = [f"missing {k}" for k in problem.missing_keys] + [f"unknown {k}" for k in problem.unexpected_keys]
        if wrong:
            raise ConfigError(
                f"{self.files[0].parent}: the {part} does not fit its config ({len(wrong)} keys, first: {wrong[0]}); "
                "the checkpoint is incomplete or of an unknown version"
            )

    def tensors(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Names without the prefix, and tensors, of one part of the checkpoint."""
        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                    if key.startswith(prefix):
                        yield key.removeprefix(prefix), opened.get_tensor(key)

    def transformer(self, dtype: torch.dtype = torch.float32) -> Transformer:
        """The frozen transformer in evaluation mode."""
        module = Transformer(TransformerConfig.from_metadata(self.config["transformer"])).to(dtype)
        self._load(module, dict(self.tensors(TRANSFORMER)), "transformer")
        return module.requires_grad_(False).eval()

    def vae(self) -> VideoVAE:
        """The frozen video VAE, fp32, in evaluation mode."""
        state = {VAE + key: tensor.float() for key, tensor in self.tensors(VAE)}
        return VideoVAE.from_config(self.config["vae"], state).requires_grad_(False)

    def text(self) -> TextEncoder:
        """The frozen text encoder of the embedded base."""
        if "text_encoder" not in self.config:
            raise ConfigError(f"{self.name} carries no text encoder; only embedded bases do")
        module = TextEncoder(TextConfig(**self.config["text_encoder"]))
        self._load(module, {k: t.float() for k, t in self.tensors(TEXT)}, "text encoder")
        return module.requires_grad_(False).eval()


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file} is not a readable safetensors file ({error}); fetch it again") from error


def _fingerprint(files: list[Path]) -> str:
    """Identity of a checkpoint: names, sizes and samples of each file (all of a 40 GB file would take minutes)."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for start in (0, max(size // 2 - _SAMPLE // 2, 0), max(size - _SAMPLE, 0)):
                stream.seek(start)
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:16]


def in_pieces(tensors: dict[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    """The tensors in order, cut into files of at most `largest` bytes (a larger tensor has a file of its own)."""
    pieces: list[dict[str, Tensor]] = [{}]
    room = largest
    for key, tensor in tensors.items():
        if pieces[-1] and tensor.nbytes > room:
            pieces.append({})
            room = largest
        pieces[-1][key] = tensor
        room -= tensor.nbytes
    return pieces


def save_base(
    folder: Path,
    transformer: Transformer,
    vae: VideoVAE,
    text: TextEncoder,
    config: dict[str, Any],
    version: str,
    family: str,
    dtype: torch.dtype = torch.bfloat16,
    largest: int = 15 << 20,
) -> None:
    """Write a base in the official layout as files of at most `largest` bytes of tensors each."""
    parts = (
        (TRANSFORMER, transformer.state_dict()),
        ("", vae.official_state()),
        (TEXT, text.state_dict()),
    )
    tensors = {prefix + k: t.to(dtype).contiguous().cpu() for prefix, part in parts for k, t in part.items()}
    shards = in_pieces(tensors, largest)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"config": json.dumps(config), "model_version": version, "model_family": family}
    for i, shard in enumerate(shards, 1):
        save_file(shard, folder / f"{family}-{i:05d}-of-{len(shards):05d}.safetensors", metadata)

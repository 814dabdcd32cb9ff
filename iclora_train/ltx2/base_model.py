"""A frozen base: one checkpoint in whatever layout, and its parts built on demand.

Real bases (LTX-2, 2.3, 2.5) come from `checkpoint.Checkpoint`; their text encoder is Gemma with the connectors. The
embedded base and those that `save_base` writes carry a little text encoder of their own (`text_encoder.*`).
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from iclora_train.config import ConfigError, Model, require
from iclora_train.core.fingerprint import digest
from iclora_train.core.types import Geometry
from iclora_train.ltx2.load import load_transformer
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.text.connectors import Connectors
from iclora_train.ltx2.text.gemma import GemmaTextEncoder, text_fingerprint
from iclora_train.ltx2.text.nano_encoder import NanoTextConfig, NanoTextEncoder
from iclora_train.ltx2.vae.layout import geometry_of
from iclora_train.ltx2.vae.video_vae import VideoVAE, geometry_of_diffusers
from iclora_train.ltx2.weights.assign import check_keys
from iclora_train.ltx2.weights.key_names import MODEL, PROJECTION, TEXT
from iclora_train.ltx2.weights.model_files import Checkpoint
from iclora_train.ltx2.weights.safetensors_header import Component, LazyTensors, read_header

EMBEDDED = {"nano": Path(__file__).parent.parent / "nano"}
_SAMPLE = 1 << 20  # bytes hashed at the start, middle and end of a file for the fingerprint


class BaseModel:
    """An opened checkpoint. `open` reads headers only; `transformer`, `vae` and `text` load weights."""

    def __init__(self, name: str, checkpoint: Checkpoint, text_encoder: Path | None = None) -> None:
        self.name, self.checkpoint, self.text_encoder = name, checkpoint, text_encoder
        self.embedded = name in EMBEDDED
        self.config: dict[str, Any] = checkpoint.config
        self.version, self.family = checkpoint.version, checkpoint.family
        self.geometry = _geometry(checkpoint.component("vae"))
        parts = (
            checkpoint.components.values() if "text" in checkpoint.components else [checkpoint.component("transformer")]
        )
        self.files = sorted({file for part in parts for file in part.files})
        self.fingerprint = _fingerprint(self.files)

    @classmethod
    def open(
        cls, checkpoint: str, vae: str | None = None, connectors: str | None = None, text_encoder: str | None = None
    ) -> BaseModel:
        """The base at a path, or an embedded one by name; the others name parts that lie elsewhere (`config.Model`).

        ConfigError names the file and the remedy.
        """
        path = EMBEDDED.get(checkpoint, Path(checkpoint).expanduser())
        if not path.exists():
            raise ConfigError(
                f"model.checkpoint={checkpoint!r} is neither a file, a folder, nor an embedded base "
                f"({', '.join(EMBEDDED)})"
            )
        others = [None if given is None else Path(given).expanduser() for given in (vae, connectors, text_encoder)]
        if others[1] is None and others[2] is not None and _packs_projection(others[2]):
            others[1] = others[2]
        opened = Checkpoint.open(path, others[0], others[1])
        return cls(checkpoint if checkpoint in EMBEDDED else opened.name, opened, others[2])

    def transformer(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        fp8: bool = False,
        weight_offload: int = 0,
    ) -> Transformer:
        """The frozen transformer in evaluation mode, loaded tensor by tensor to the device (`load_transformer`)."""
        return load_transformer(self.checkpoint, dtype, device, fp8, weight_offload)

    def vae(self, dtype: torch.dtype = torch.float32) -> VideoVAE:
        """The frozen video VAE in evaluation mode; in fp32 for everything that is kept or measured."""
        part = self.checkpoint.component("vae")
        state = dict(part.read())
        if part.diffusers:
            return VideoVAE.from_diffusers(part.config, state, dtype).requires_grad_(False)
        return VideoVAE.from_config(part.config["vae"], state, dtype).requires_grad_(False)

    def text(
        self, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
    ) -> NanoTextEncoder | GemmaTextEncoder:
        """The frozen text encoder: Gemma (in `dtype`) and the connectors, or the embedded base's own (fp32)."""
        if "text" in self.checkpoint.components:
            return self._own_text().to(device)
        folder = self._text_folder()
        if folder is None:
            raise ConfigError(
                f"{self.checkpoint.source} holds no text encoder; set model.text_encoder to the folder of its Gemma"
            )
        part = self.checkpoint.component("connectors")
        make = Connectors.from_diffusers if part.diffusers else Connectors.from_official
        source = json.loads(self.checkpoint.metadata.get("gemma_source_checkpoint", "{}"))
        connectors = make(part.config, LazyTensors(part), dtype, device)
        return GemmaTextEncoder.open(folder, self.version, connectors, dtype, source.get("gemma_version"), device)

    def _own_text(self) -> NanoTextEncoder:
        part = self.checkpoint.component("text")
        module = NanoTextEncoder(NanoTextConfig(**part.config["text_encoder"]))
        check_keys(part, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})
        module.load_state_dict({name: tensor.float() for name, tensor in part.read()})
        return module.requires_grad_(False).eval()

    def _text_folder(self) -> Path | None:
        """Where Gemma is: where the settings say, else in the diffusers folder, else the packed file of a folder."""
        if self.text_encoder is not None:
            return self.text_encoder
        source = self.checkpoint.source
        if (source / "text_encoder" / "config.json").is_file():
            return source
        files = self.checkpoint.components["connectors"].files if "connectors" in self.checkpoint.components else []
        return next((file for file in files if "gemma_config" in read_header(file).metadata), None)

    @cached_property
    def latent_fingerprints(self) -> dict[str, str]:
        """Identity of each part that makes latents and text features, as far as the settings name it.

        vae and text (embedded), or vae, connectors and text_encoder; sampled, whatever files the tensors lie in.
        """
        parts = self.checkpoint.components
        vae = parts["vae"]
        section = vae.config if vae.diffusers else vae.config["vae"]
        found: dict[str, str] = {name: parts[name].fingerprint() for name in ("connectors", "text") if name in parts}
        found["vae"] = digest([section, vae.fingerprint()])
        folder = None if "text" in parts else self._text_folder()
        if folder is not None:
            found["text_encoder"] = text_fingerprint(folder)
        return {name: value[:16] for name, value in sorted(found.items())}


def _packs_projection(text_encoder: Path) -> bool:
    """Whether this is LTX-2.5's packed text encoder, which has the text projection in it."""
    return text_encoder.is_file() and any(key.startswith(PROJECTION) for key in read_header(text_encoder).tensors)


def _geometry(vae: Component) -> Geometry:
    if vae.diffusers:
        return geometry_of_diffusers(vae.config)
    if not isinstance(vae.config.get("vae"), dict):
        raise ConfigError(
            f"{vae.files[0]}: config in its metadata has no section vae; set model.vae to an official file or a "
            "diffusers vae folder"
        )
    return geometry_of(vae.config["vae"])


def _fingerprint(files: list[Path]) -> str:
    """Identity of a checkpoint: names, sizes and samples of each file (all of a 40 GB file would take minutes)."""
    hashed = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        hashed.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for start in (0, max(size // 2 - _SAMPLE // 2, 0), max(size - _SAMPLE, 0)):
                stream.seek(start)
                hashed.update(stream.read(_SAMPLE))
    return hashed.hexdigest()[:16]


def split_by_size(tensors: dict[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
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
    text: NanoTextEncoder,
    config: dict[str, Any],
    version: str,
    family: str,
    dtype: torch.dtype = torch.bfloat16,
    largest: int = 15 << 20,
) -> None:
    """Write a base in the official layout as files of at most `largest` bytes of tensors each."""
    parts = (
        (MODEL, transformer.state_dict()),
        ("", vae.official_state()),
        (TEXT, text.state_dict()),
    )
    tensors = {prefix + k: t.to(dtype).contiguous().cpu() for prefix, part in parts for k, t in part.items()}
    shards = split_by_size(tensors, largest)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"config": json.dumps(config), "model_version": version, "model_family": family}
    for i, shard in enumerate(shards, 1):
        save_file(shard, folder / f"{family}-{i:05d}-of-{len(shards):05d}.safetensors", metadata)


def open_base(model: Model) -> BaseModel:
    """Open the base of `model.*`; headers only. ConfigError for a wrong path, file or version."""
    base = BaseModel.open(model.checkpoint, model.vae, model.connectors, model.text_encoder)
    require(
        model.version in (None, base.version),
        f"model.checkpoint={model.checkpoint} is of version {base.version}, and model={model.name} wants "
        f"{model.version}: choose the model=... that fits",
    )
    return base

"""The frozen base model: one checkpoint in any layout, whose components are built on request.

Real bases (LTX-2, 2.3, 2.5) are opened by `model_files.Checkpoint`; their text encoder is Gemma with the connectors.
nano, and bases that `save_base` writes, contain a small text encoder (`text_encoder.*`).
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
from iclora_train.config.paths import user_path
from iclora_train.core.fingerprint import digest
from iclora_train.core.safetensors_header import parse_object
from iclora_train.core.types import Geometry
from iclora_train.ltx2.load import load_transformer
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.text.connectors import AUDIO, Connectors
from iclora_train.ltx2.text.gemma import GemmaTextEncoder, text_fingerprint
from iclora_train.ltx2.text.gemma_files import PACKED_CONFIG
from iclora_train.ltx2.text.nano_encoder import NanoTextConfig, NanoTextEncoder
from iclora_train.ltx2.vae.layout import geometry_of
from iclora_train.ltx2.vae.video_vae import VideoVAE, geometry_of_diffusers
from iclora_train.ltx2.weights.assign import check_keys, shapes_of
from iclora_train.ltx2.weights.key_names import AUDIO_HALF, MODEL_PREFIX, PROJECTION_PREFIX, TEXT_PREFIX
from iclora_train.ltx2.weights.model_files import Checkpoint
from iclora_train.ltx2.weights.safetensors_header import Component, LazyTensors, read_header

EMBEDDED = {"nano": Path(__file__).parent.parent / "nano"}  # bases that are part of this package
_SAMPLE = 1 << 20  # bytes hashed at the start, middle and end of a file for the fingerprint


class BaseModel:
    """An opened checkpoint. `open` reads headers only; `transformer`, `vae` and `text` load weights."""

    def __init__(self, name: str, checkpoint: Checkpoint, text_encoder: Path | None = None) -> None:
        self.name, self.checkpoint, self.text_encoder = name, checkpoint, text_encoder
        self.embedded = name in EMBEDDED
        self.config: dict[str, Any] = checkpoint.config
        self.version, self.family = checkpoint.version, checkpoint.family
        self.geometry = _geometry(checkpoint.component("vae"))
        components = checkpoint.components
        fingerprinted = components.values() if "text" in components else [checkpoint.component("transformer")]
        self.files = sorted({file for component in fingerprinted for file in component.files})
        self.fingerprint = _fingerprint(self.files)

    @classmethod
    def open(
        cls,
        checkpoint: str,
        vae: str | None = None,
        connectors: str | None = None,
        text_encoder: str | None = None,
        audio_vae: str | None = None,
    ) -> BaseModel:
        """The base at a path, or an embedded base by name. ConfigError names the file and the remedy.

        vae, connectors, text_encoder, audio_vae: paths of components that are not at `checkpoint` (settings `model.*`).
        """
        path = EMBEDDED.get(checkpoint, user_path(checkpoint))
        if not path.exists():
            raise ConfigError(
                f"model.checkpoint={checkpoint!r} is neither a file, a folder, nor an embedded base "
                f"({', '.join(EMBEDDED)})"
            )
        vae_path, connectors_path, text_path = (_path(name) for name in (vae, connectors, text_encoder))
        if connectors_path is None and text_path is not None and _holds_projection(text_path):
            connectors_path = text_path
        opened = Checkpoint.open(path, vae_path, connectors_path, _path(audio_vae))
        return cls(checkpoint if checkpoint in EMBEDDED else opened.name, opened, text_path)

    def transformer(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        fp8: bool = False,
        weight_offload: int = 0,
        audio: bool = False,
    ) -> Transformer:
        """The frozen transformer in evaluation mode, loaded tensor by tensor to the device (`load_transformer`)."""
        return load_transformer(self.checkpoint, dtype, device, fp8, weight_offload, audio)

    @property
    def has_audio_half(self) -> bool:
        """Whether the transformer can be loaded with its audio half."""
        return AUDIO_HALF in self.checkpoint.components

    @property
    def has_text_encoder(self) -> bool:
        """Whether captions can be encoded: `text` finds the encoder's files."""
        return "text" in self.checkpoint.components or self._text_path() is not None

    def vae(self, dtype: torch.dtype = torch.float32) -> VideoVAE:
        """The frozen video VAE in evaluation mode; use fp32 for everything that is saved or measured."""
        component = self.checkpoint.component("vae")
        state = dict(component.read())
        if component.diffusers:
            vae = VideoVAE.from_diffusers(component.config, state, dtype, component.where)
        else:
            vae = VideoVAE.from_config(component.config["vae"], state, dtype, component.where)
        return vae.requires_grad_(False)

    def text(
        self, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu", audio: bool = False
    ) -> NanoTextEncoder | GemmaTextEncoder:
        """The frozen text encoder: Gemma with the connectors (in `dtype`), or the small one of nano (fp32).

        audio: with the connectors of the audio stream (`GemmaTextEncoder.encode_both`).
        """
        if audio:
            self.checkpoint.transformer(audio)  # raises ConfigError if the base is the video stream alone
        if "text" in self.checkpoint.components:
            return self._nano_text_encoder().to(device)
        path = self._text_path()
        if path is None:
            raise ConfigError(
                f"{self.checkpoint.source} holds no text encoder; set model.text_encoder to the folder of its Gemma"
            )
        component = self.checkpoint.component("connectors")
        build = Connectors.from_diffusers if component.diffusers else Connectors.from_official
        parts = component.config, LazyTensors(component), dtype, device, component.where
        connectors = build(*parts)
        of_audio = build(*parts, side=AUDIO, beside=connectors) if audio else None
        key = "gemma_source_checkpoint"
        try:
            source = parse_object(self.checkpoint.metadata.get(key, "{}"))
        except ValueError as error:
            raise ConfigError(f"{self.checkpoint.source}: {key} in its metadata is not JSON ({error})") from error
        gemma_version = source.get("gemma_version")
        return GemmaTextEncoder.open(path, self.version, connectors, dtype, gemma_version, device, of_audio)

    def _nano_text_encoder(self) -> NanoTextEncoder:
        component = self.checkpoint.component("text")
        module = NanoTextEncoder(NanoTextConfig(**component.config["text_encoder"]))
        check_keys(component.where, "text encoder", component.shapes, shapes_of(module.state_dict()))
        module.load_state_dict({name: tensor.float() for name, tensor in component.read()})
        return module.requires_grad_(False).eval()

    def _text_path(self) -> Path | None:
        """The path of Gemma: model.text_encoder, else the diffusers folder, else the connectors' packed file."""
        if self.text_encoder is not None:
            return self.text_encoder
        source = self.checkpoint.source
        if (source / "text_encoder" / "config.json").is_file():
            return source
        components = self.checkpoint.components
        files = components["connectors"].files if "connectors" in components else []
        return next((file for file in files if PACKED_CONFIG in read_header(file).metadata), None)

    @cached_property
    def latent_fingerprints(self) -> dict[str, str]:
        """Fingerprint of each component that latents and text features depend on, if the settings name it.

        nano: vae and text; real bases: vae, connectors and text_encoder. Samples of the tensors are hashed; the layout
        of the files does not matter.
        """
        components = self.checkpoint.components
        vae = components["vae"]
        section = vae.config if vae.diffusers else vae.config["vae"]
        fingerprints: dict[str, str] = {"vae": digest([section, vae.fingerprint()])}
        for name in ("connectors", "text"):
            if name in components:
                fingerprints[name] = components[name].fingerprint()
        path = None if "text" in components else self._text_path()
        if path is not None:
            fingerprints["text_encoder"] = text_fingerprint(path)
        return {name: value[:16] for name, value in sorted(fingerprints.items())}


def _path(name: str | None) -> Path | None:
    return None if name is None else user_path(name)


def _holds_projection(text_encoder: Path) -> bool:
    """Whether the file is LTX-2.5's packed text encoder, which holds the text projection."""
    if not text_encoder.is_file():
        return False
    return any(key.startswith(PROJECTION_PREFIX) for key in read_header(text_encoder).tensors)


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
    """Hash of names, sizes and samples of the files (hashing all of a 40 GB file would take minutes)."""
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
    """Split the tensors, in order, into groups of at most `largest` bytes. A larger tensor gets a group by itself."""
    groups: list[dict[str, Tensor]] = [{}]
    left = largest
    for key, tensor in tensors.items():
        if groups[-1] and tensor.nbytes > left:
            groups.append({})
            left = largest
        groups[-1][key] = tensor
        left -= tensor.nbytes
    return groups


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
    states = (
        (MODEL_PREFIX, transformer.state_dict()),
        ("", vae.official_state()),
        (TEXT_PREFIX, text.state_dict()),
    )
    tensors = {prefix + k: t.to(dtype).contiguous().cpu() for prefix, state in states for k, t in state.items()}
    shards = split_by_size(tensors, largest)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"config": json.dumps(config), "model_version": version, "model_family": family}
    for i, shard in enumerate(shards, 1):
        save_file(shard, folder / f"{family}-{i:05d}-of-{len(shards):05d}.safetensors", metadata)


def open_base(model: Model) -> BaseModel:
    """The base that the settings `model.*` name; reads headers only. ConfigError for a wrong path, file or version."""
    base = BaseModel.open(model.checkpoint, model.vae, model.connectors, model.text_encoder, model.audio_vae)
    require(
        model.version in (None, base.version),
        f"model.checkpoint={model.checkpoint} is of version {base.version}, but model={model.name} needs "
        f"{model.version}: choose the model=... that fits",
    )
    return base

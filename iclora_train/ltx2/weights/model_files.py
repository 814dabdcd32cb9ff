"""A checkpoint on disk, in any layout. Opening reads headers only; tensors are read one by one on request.

Layouts: one official file with everything (LTX-2, 2.3), official files per component or their folder (2.5), a folder of
official files that share the keys (nano), a diffusers folder. Nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.core.safetensors_header import parse_object
from iclora_train.ltx2.weights import key_names
from iclora_train.ltx2.weights.key_names import AUDIO_COMPONENTS, AUDIO_HALF, DIFFUSERS_CLASSES, SETTINGS
from iclora_train.ltx2.weights.safetensors_header import Component, Header, StoredTensor, read_header
from iclora_train.ltx2.weights.versions import detect_version

_EXPECTED = {  # component -> the file or folder that its setting must name, in words
    "transformer": "the transformer's file, a folder of LTX-2 files or a diffusers folder",
    "vae": "the file of the video VAE (LTX-2.5: ltx-2.5-video-vae-conv-bf16.safetensors), or a diffusers vae folder",
    "connectors": "the file with text_embedding_projection.* (LTX-2.5: the packed text encoder), or a diffusers folder",
    "audio_vae": "the one file with audio_vae.* (LTX-2.5: ltx-2.5-audio-vae-bf16.safetensors), or a diffusers folder",
    "vocoder": "the one file with vocoder.* (LTX-2.5: ltx-2.5-audio-vae-bf16.safetensors), or a diffusers folder",
}


class Checkpoint:
    """The components of a base model (where their tensors are, and their configs) and its version."""

    def __init__(self, name: str, source: Path, components: dict[str, Component], metadata: dict[str, str]) -> None:
        self.name, self.source, self.components, self.metadata = name, source, components, metadata
        self.config: dict[str, Any] = components["transformer"].config
        if not isinstance(self.config.get("transformer"), dict):
            raise ConfigError(
                f"{source}: config in its metadata has no section transformer; give model.checkpoint an official file"
            )
        self.version = detect_version(metadata.get("model_version"), self.config["transformer"], str(source))
        self.family = metadata.get("model_family", "ltx")

    @classmethod
    def open(
        cls, checkpoint: Path, vae: Path | None = None, connectors: Path | None = None, audio_vae: Path | None = None
    ) -> Checkpoint:
        """The checkpoint at a path. ConfigError names the file and the remedy.

        vae, connectors, audio_vae (with the vocoder): paths of components that are added, or replace the checkpoint's.
        """
        needed = {*key_names.COMPONENTS} - ({"vae"} if vae else set())
        components, metadata = _read(checkpoint, "transformer", needed)
        if "transformer" not in components:
            raise ConfigError(_no_transformer(checkpoint, components))
        for name, path in (("vae", vae), ("connectors", connectors), ("audio_vae", audio_vae)):
            if path is not None:
                parts = AUDIO_COMPONENTS if name == "audio_vae" else (name,)
                given = _read(path, name, {*parts})[0]
                if name not in given:
                    raise ConfigError(
                        f"{SETTINGS[name]}={path} holds no {name}: set it to {_EXPECTED[name]}, or to null where "
                        "model.checkpoint holds it"
                    )
                components |= {part: _replacement(given[part], components) for part in parts if part in given}
        return cls(checkpoint.name if checkpoint.is_dir() else checkpoint.stem, checkpoint, components, metadata)

    def component(self, name: str) -> Component:
        """transformer, vae, connectors, text, audio_vae or vocoder. ConfigError names the setting that adds a missing
        one."""
        if name not in self.components:
            remedy = f"; set {SETTINGS[name]} to {_EXPECTED[name]}" if name in _EXPECTED else ""
            raise ConfigError(f"model.checkpoint={self.source} holds no {name}{remedy}")
        return self.components[name]

    def transformer(self, audio: bool = False) -> Component:
        """The video stream of the transformer, or with `audio` the whole. ConfigError if it has no audio half."""
        video = self.component("transformer")
        if not audio:
            return video
        if AUDIO_HALF not in self.components:
            raise ConfigError(
                f"model.checkpoint={self.source} holds the video stream alone, without the audio half of LTX-2 (no key "
                "has audio_ in its name): give an official file or a diffusers folder, or switch audio off"
            )
        return video.merged_with(self.components[AUDIO_HALF])

    def tensors(self, name: str, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of a component, one at a time in the order on disk; fp8 weights are dequantized."""
        return self.component(name).read(device)


def _read(path: Path, target: str, needed: set[str]) -> tuple[dict[str, Component], dict[str, str]]:
    """All components at a path, and the metadata of the file that holds the target component. ConfigError if a needed
    component exists in two variants."""
    if not path.exists():
        raise ConfigError(f"{SETTINGS[target]}={str(path)!r} is neither a file nor a folder")
    if _is_diffusers(path):
        return _diffusers_components(path, target), {}
    files = _official_files(path, target)
    headers = [read_header(file) for file in files]
    components = _official_components(headers, needed)
    if target in components:
        first = next(header for header in headers if header.file in components[target].files)
        return components, first.metadata
    if not components:
        raise ConfigError(_not_a_checkpoint(headers, target))
    return components, {}


def _is_diffusers(path: Path) -> bool:
    folders = (path, *(path / name for name in DIFFUSERS_CLASSES))
    return (path / "model_index.json").is_file() or any((folder / "config.json").is_file() for folder in folders)


def _official_files(path: Path, target: str) -> list[Path]:
    """The file itself, or the files of a folder; if the folder has none, the files one level deeper (the published
    folders of 2.5)."""
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*/*.safetensors"))
    if not files:
        raise ConfigError(f"{SETTINGS[target]}={str(path)!r}: no .safetensors file in {path}")
    return files


def _official_components(headers: list[Header], needed: set[str]) -> dict[str, Component]:
    """Sort all tensors into components.

    A tensor that is in two files means that the folder holds two variants of its component. For a component in `needed`
    that is a ConfigError. Of an audio component that is not needed, neither variant is taken.
    """
    twice: set[str] = set()
    tensors: dict[str, dict[str, StoredTensor]] = {}
    config: dict[str, Any] = {}
    for header in headers:
        bare = key_names.is_vae_file(header.tensors)
        in_file = set()
        for key, stored in header.tensors.items():
            component_and_name = key_names.classify_key(key, bare)
            if component_and_name is None:
                continue
            component, name = component_and_name
            in_file.add(component)
            first = tensors.setdefault(component, {}).setdefault(name, stored)
            if first is not stored and component in AUDIO_COMPONENTS:
                twice.add(component)
            if first is not stored and component in needed:
                raise ConfigError(
                    f"{first.file} and {stored.file} both hold the {component} ({name}): set {SETTINGS[component]} to "
                    "one of them"
                )
        if in_file:
            config |= {key: value for key, value in _config(header, in_file).items() if value is not None}
    if "text_encoder" not in config:  # only a base that `base_model.save_base` wrote has its own text encoder
        twice.add("text")
    return {
        name: Component(name, config, stored, headers[0].file) for name, stored in tensors.items() if name not in twice
    }


def _replacement(component: Component, components: dict[str, Component]) -> Component:
    """The component that replaces the checkpoint's.

    Connectors may be in two files: the projection in the text encoder's file, which has no config, and the rest in the
    transformer's file, whose config describes both.
    """
    if component.diffusers or component.name != "connectors" or components["transformer"].diffusers:
        return component
    empty = Component("connectors", components["transformer"].config, {}, component.source)
    old = components.get("connectors", empty)
    return component if old.diffusers else component.merged_with(old)


def _config(header: Header, components: set[str]) -> dict[str, Any]:
    """`config` of the metadata of a file with these components. Only a text encoder's and a sound file may lack it."""
    text = header.metadata.get("config")
    if text is None:
        if not components <= {"connectors", *AUDIO_COMPONENTS}:
            raise ConfigError(
                f"{header.file} is not an LTX-2 checkpoint: its metadata lacks config (repacked files often do); give "
                "model.checkpoint an official file, a diffusers folder or nano"
            )
        return {}
    try:
        return parse_object(text)
    except ValueError as error:
        raise ConfigError(f"{header.file}: config in its metadata is not JSON ({error}); fetch it again") from error


def _diffusers_components(path: Path, target: str) -> dict[str, Component]:
    """The components of a diffusers folder, or of the target's own folder inside one."""
    if (path / "config.json").is_file():
        return _diffusers_component(path, target)
    if target == "transformer" and not (path / "transformer" / "config.json").is_file():
        raise ConfigError(
            f"model.checkpoint={path} is a diffusers folder without transformer/config.json: set it to "
            f"{_EXPECTED[target]}"
        )
    present = (name for name in DIFFUSERS_CLASSES if (path / name / "config.json").is_file())
    return {name: part for folder in present for name, part in _diffusers_component(path / folder, folder).items()}


def _diffusers_component(folder: Path, component: str) -> dict[str, Component]:
    """The component in a folder; the transformer's folder also holds its audio half."""
    file = folder / "config.json"
    try:
        config = parse_object(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON ({error}); fetch it again") from error
    classes = DIFFUSERS_CLASSES[component]
    name = config.get("_class_name", classes[0])
    if name not in classes:
        raise ConfigError(
            f"{file} is the config of a {name}, not of LTX-2's {' or '.join(classes)}: give {_EXPECTED[component]}"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} has no .safetensors weights (pickled .bin files are never read)")
    tensors: dict[str, StoredTensor] = {}
    for header in map(read_header, files):
        for key, stored in header.tensors.items():
            name = key_names.official_from_diffusers(key) if component == "transformer" else key
            if tensors.setdefault(name, stored) is not stored:
                raise ConfigError(f"{tensors[name].file} and {stored.file} both hold {key}: move one of them away")
    if component != "transformer":
        return {component: Component(component, config, tensors, folder, diffusers=True)}
    config = {"transformer": key_names.transformer_section(config, str(file))}
    parts: dict[str, dict[str, StoredTensor]] = {"transformer": {}, AUDIO_HALF: {}}
    for name, stored in tensors.items():
        parts[AUDIO_HALF if key_names.is_audio(name) else "transformer"][name] = stored
    return {part: Component(part, config, half, folder, diffusers=True) for part, half in parts.items() if half}


def _no_transformer(path: Path, components: dict[str, Component]) -> str:
    """The message for a model.checkpoint without a transformer."""
    if "vae" in components or "connectors" in components:
        names = [name for name in ("vae", "connectors") if name in components]
        return (
            f"model.checkpoint={path} holds the {' and '.join(names)} but no transformer: give it as "
            f"{' and '.join(SETTINGS[name] for name in names)}, and set model.checkpoint to {_EXPECTED['transformer']}"
        )
    return f"model.checkpoint={path} holds no transformer: set it to {_EXPECTED['transformer']}"


def _not_a_checkpoint(headers: list[Header], target: str) -> str:
    """The message for a file without any key of an LTX-2 checkpoint."""
    keys = [key for header in headers for key in header.tensors]
    first = f"{len(keys)} keys, first: {keys[0]}" if keys else "no keys"
    kind = "an adapter" if any(".lora_" in key for key in keys) else "not an LTX-2 checkpoint"
    return (
        f"{headers[0].file} is {kind} (none of its keys begins with {key_names.MODEL_PREFIX} or vae.; {first}); set "
        f"{SETTINGS[target]} to {_EXPECTED[target]}"
    )

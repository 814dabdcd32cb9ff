"""A checkpoint on disk, whatever its layout: opening reads headers only, tensors come one by one when asked for.

Layouts: one official file with everything (LTX-2, 2.3), official files per component or their folder (2.5), a folder of
official files that share the keys (the embedded base), a diffusers folder. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.ltx2.weights import key_names as layouts
from iclora_train.ltx2.weights.safetensors_header import Component, Header, StoredTensor, read_header

_WHERE = {
    "transformer": "the transformer's file, a folder of LTX-2 files or a diffusers folder",
    "vae": "the file of the video VAE (LTX-2.5: ltx-2.5-video-vae-conv-bf16.safetensors), or a diffusers vae folder",
    "connectors": "the file with text_embedding_projection.* (LTX-2.5: the packed text encoder), or a diffusers folder",
}


class Checkpoint:
    """The parts of a base: where their tensors are, their configs, and the version."""

    def __init__(self, name: str, source: Path, parts: dict[str, Component], metadata: dict[str, str]) -> None:
        self.name, self.source, self.components, self.metadata = name, source, parts, metadata
        self.config: dict[str, Any] = parts["transformer"].config
        if not isinstance(self.config.get("transformer"), dict):
            raise ConfigError(
                f"{source}: config in its metadata has no section transformer; give model.checkpoint an official file"
            )
        self.version = layouts.detect_version(metadata.get("model_version"), self.config["transformer"], str(source))
        self.family = metadata.get("model_family", "ltx")

    @classmethod
    def open(cls, checkpoint: Path, vae: Path | None = None, connectors: Path | None = None) -> Checkpoint:
        """The base at `checkpoint`; `vae` and `connectors` name what lies elsewhere. ConfigError says what is wrong."""
        parts, metadata = _read(checkpoint, "transformer", {*layouts.PARTS} - ({"vae"} if vae else set()))
        if "transformer" not in parts:
            raise ConfigError(_no_transformer(checkpoint, parts))
        for name, path in (("vae", vae), ("connectors", connectors)):
            if path is not None:
                found = _read(path, name, {name})[0].get(name)
                if found is None:
                    raise ConfigError(
                        f"{layouts.SETTING[name]}={path} holds no {name}: set it to {_WHERE[name]}, or to null where "
                        "model.checkpoint holds it"
                    )
                parts[name] = _joined(found, parts)
        return cls(checkpoint.name if checkpoint.is_dir() else checkpoint.stem, checkpoint, parts, metadata)

    def component(self, name: str) -> Component:
        """transformer, vae, connectors or text; ConfigError names the setting that would bring it."""
        if name not in self.components:
            remedy = f"; set {layouts.SETTING[name]} to {_WHERE[name]}" if name in _WHERE else ""
            raise ConfigError(f"model.checkpoint={self.source} holds no {name}{remedy}")
        return self.components[name]

    def tensors(self, name: str, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of a part, one at a time in the order of the disk; fp8 weights times their scales."""
        return self.component(name).read(device)


def _read(path: Path, wanted: str, needed: set[str]) -> tuple[dict[str, Component], dict[str, str]]:
    """All parts at a path, and the metadata of the file that the wanted part lies in. Two variants of a needed part
    are refused."""
    if not path.exists():
        raise ConfigError(f"{layouts.SETTING[wanted]}={str(path)!r} is neither a file nor a folder")
    if _is_diffusers(path):
        return _diffusers_parts(path, wanted), {}
    files = _official_files(path, wanted)
    headers = [read_header(file) for file in files]
    parts = _official_parts(headers, needed)
    if wanted in parts:
        home = next(header for header in headers if header.file in parts[wanted].files)
        return parts, home.metadata
    if not parts:
        raise ConfigError(_another_model(headers, wanted))
    return parts, {}


def _is_diffusers(path: Path) -> bool:
    folders = (path, *(path / part for part in layouts.CLASSES))
    return (path / "model_index.json").is_file() or any((folder / "config.json").is_file() for folder in folders)


def _official_files(path: Path, wanted: str) -> list[Path]:
    """The file; or those of a folder; or, where it has none, those one level deeper (the published folders of 2.5)."""
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*/*.safetensors"))
    if not files:
        raise ConfigError(f"{layouts.SETTING[wanted]}={str(path)!r}: no .safetensors file in {path}")
    return files


def _official_parts(headers: list[Header], needed: set[str]) -> dict[str, Component]:
    """Sort all tensors into parts. A tensor that two files hold means that the folder holds two variants of a part."""
    tensors: dict[str, dict[str, StoredTensor]] = {}
    config: dict[str, Any] = {}
    for header in headers:
        bare = layouts.is_vae_file(header.tensors)
        mine = set()
        for key, stored in header.tensors.items():
            found = layouts.official(key, bare)
            if found is None:
                continue
            part, name = found
            mine.add(part)
            other = tensors.setdefault(part, {}).setdefault(name, stored)
            if other is not stored and part in needed:
                raise ConfigError(
                    f"{other.file} and {stored.file} both hold the {part} ({name}): set {layouts.SETTING[part]} to one "
                    "of them"
                )
        if mine:
            config |= {key: value for key, value in _config(header, mine).items() if value is not None}
    if "text_encoder" not in config:  # only bases that `base.save_base` wrote carry one
        tensors.pop("text", None)
    return {part: Component(part, config, found, headers[0].file) for part, found in tensors.items()}


def _joined(found: Component, parts: dict[str, Component]) -> Component:
    """`found` in place of what the checkpoint holds of this part. Connectors may lie in two files: the projection in
    the text encoder's, which has no config, and the rest beside the transformer, whose config describes both."""
    if found.diffusers or found.name != "connectors" or parts["transformer"].diffusers:
        return found
    old = parts.get("connectors", Component("connectors", parts["transformer"].config, {}, found.source))
    return found if old.diffusers else found.merged_with(old)


def _config(header: Header, parts: set[str]) -> dict[str, Any]:
    """`config` of the metadata of a file with these parts; only a text encoder's file may have none."""
    text = header.metadata.get("config")
    if text is None:
        if parts != {"connectors"}:
            raise ConfigError(
                f"{header.file} is not an LTX-2 checkpoint: its metadata lacks config (repacked files often do); give "
                "model.checkpoint an official file, a diffusers folder or an embedded base"
            )
        return {}
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{header.file}: config in its metadata is no JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{header.file}: config in its metadata is not a JSON object; fetch it again")
    return config


def _diffusers_parts(path: Path, wanted: str) -> dict[str, Component]:
    """The parts of a diffusers folder, or the one whose own folder `path` is."""
    if (path / "config.json").is_file():
        return {wanted: _diffusers_part(path, wanted)}
    if wanted == "transformer" and not (path / "transformer" / "config.json").is_file():
        raise ConfigError(
            f"model.checkpoint={path} is a diffusers folder without transformer/config.json: set it to {_WHERE[wanted]}"
        )
    present = (part for part in layouts.CLASSES if (path / part / "config.json").is_file())
    return {part: _diffusers_part(path / part, part) for part in present}


def _diffusers_part(folder: Path, part: str) -> Component:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no JSON ({error}); fetch it again") from error
    name = config.get("_class_name", layouts.CLASSES[part])
    if name != layouts.CLASSES[part]:
        raise ConfigError(f"{file} is of a {name}, not of LTX-2's {layouts.CLASSES[part]}: give {_WHERE[part]}")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} has no .safetensors weights (pickled .bin files are never read)")
    tensors: dict[str, StoredTensor] = {}
    for header in map(read_header, files):
        for key, stored in header.tensors.items():
            ours = layouts.from_diffusers(key) if part == "transformer" else key
            if ours is not None and tensors.setdefault(ours, stored) is not stored:
                raise ConfigError(f"{tensors[ours].file} and {stored.file} both hold {key}: move one of them away")
    if part == "transformer":
        config = {"transformer": layouts.official_section(config, str(file))}
    return Component(part, config, tensors, folder, diffusers=True)


def _no_transformer(path: Path, parts: dict[str, Component]) -> str:
    """What a model.checkpoint without a transformer should have been."""
    if "vae" in parts or "connectors" in parts:
        held = " and ".join(part for part in ("vae", "connectors") if part in parts)
        settings = " and ".join(layouts.SETTING[part] for part in ("vae", "connectors") if part in parts)
        return (
            f"model.checkpoint={path} holds the {held} but no transformer: give it as {settings}, and set "
            f"model.checkpoint to {_WHERE['transformer']}"
        )
    return f"model.checkpoint={path} holds no transformer: set it to {_WHERE['transformer']}"


def _another_model(headers: list[Header], wanted: str) -> str:
    """What a file without any of our keys seems to be."""
    keys = [key for header in headers for key in header.tensors]
    first = f"{len(keys)} keys, first: {keys[0]}" if keys else "no keys"
    what = "an adapter" if any(".lora_" in key for key in keys) else "not an LTX-2 checkpoint"
    return (
        f"{headers[0].file} is {what} (none of its keys begins with {layouts.MODEL} or vae.; {first}); set "
        f"{layouts.SETTING[wanted]} to {_WHERE[wanted]}"
    )

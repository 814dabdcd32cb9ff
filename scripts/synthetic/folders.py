"""The files of each published layout: one unified file, LTX-2.5's split files, a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.synthetic import layout, published
from scripts.synthetic.configs import GEMMA, metadata, official_config
from scripts.synthetic.layout import MODEL, Spec, placed
from scripts.synthetic.writer import nbytes, to_fp8, write

LAYOUTS = ("unified", "split", "diffusers")
STEM = {"2.0": "ltx-2-19b-dev", "2.3": "ltx-2.3-22b-dev", "2.5": "ltx-2.5-22b-dev"}
SHARD = 5 << 30  # bytes in a file of a diffusers folder
CLASSES = {
    "transformer": "LTX2VideoTransformer3DModel",
    "vae": "AutoencoderKLLTX2Video",
    "connectors": "LTX2TextConnectors",
}


class Parts:
    """Every tensor of a checkpoint, by part, under official names without prefixes."""

    def __init__(self, version: str, size: str, gemma: tuple[int, int] | None = None) -> None:
        """`gemma`: hidden size and layers of the text encoder that it is for."""
        hidden, self.gemma_layers = gemma or GEMMA[size]
        self.version, self.config = version, official_config(version, size, hidden)
        section = self.config["transformer"]
        self.transformer = list(layout.transformer(section))
        self.connectors = list(layout.connectors(section))
        self.projection = list(layout.text_projection(section, self.gemma_layers))
        self.vae = list(layout.vae(self.config["vae"]))
        self.ignored = list(layout.ignored(version))

    def model(self, fp8: bool) -> list[Spec]:
        """The transformer with its connectors, as official files have them."""
        specs = placed(self.transformer + self.connectors, MODEL)
        return to_fp8(specs) if fp8 else specs


def write_unified(parts: Parts, out: Path, fp8: bool, seed: int, device: str) -> Path:
    """Everything in one file: <out>/ltx-...-dev[-fp8].safetensors."""
    path = out / f"{STEM[parts.version]}{'-fp8' if fp8 else ''}.safetensors"
    specs = parts.model(fp8) + placed(parts.vae, "vae.") + placed(parts.projection, "") + placed(parts.ignored, "")
    write(path, specs, metadata(parts.version, parts.config), seed, device)
    return path


def write_split(parts: Parts, out: Path, fp8: bool, seed: int, device: str) -> Path:
    """One file per component, in the folders of the published repository. The VAE's keys have no prefix there, and
    the text projection lies in the packed text encoder's file; here, without Gemma, in one of its own."""
    version = parts.version
    declared = {**parts.config, "audio_vae": None, "vocoder": None}
    model = metadata(version, {**declared, "vae": None})
    name = f"{STEM[version]}-transformer-{'fp8' if fp8 else 'bf16'}.safetensors"
    write(out / "diffusion_models" / name, parts.model(fp8), model, seed, device)
    own = metadata(version, parts.config, ("vae",))
    write(out / "vae" / f"ltx-{version}-video-vae-conv-bf16.safetensors", placed(parts.vae, ""), own, seed, device)
    audio = [spec for spec in placed(parts.ignored, "") if not spec.name.startswith("vae.")]
    theirs = metadata(version, {"audio_vae": {}, "vocoder": {}})
    write(out / "vae" / f"ltx-{version}-audio-vae-bf16.safetensors", audio, theirs, seed, device)
    name = f"ltx-{version}-text-projection-bf16.safetensors"
    write(out / "text_encoders" / name, placed(parts.projection, ""), {"format": "pt"}, seed, device)
    return out


def write_diffusers(parts: Parts, out: Path, seed: int, device: str) -> Path:
    """transformer/, vae/ and connectors/ with diffusers' names, each with config.json and sharded weights."""
    section = parts.config["transformer"]
    wanted: dict[str, tuple[list[Spec], tuple[tuple[str, str], ...], dict[str, Any]]] = {
        "transformer": (parts.transformer, published.TRANSFORMER, published.transformer_arguments(section)),
        "vae": (parts.vae, published.VAE, published.vae_arguments(parts.config["vae"])),
        "connectors": (
            parts.connectors + parts.projection,
            published.CONNECTORS,
            published.connector_arguments(section, parts.gemma_layers),
        ),
    }
    for name, (specs, table, arguments) in wanted.items():
        named = placed(specs, "", _renaming(table))
        _write_part(out / name, named, {"_class_name": CLASSES[name], **arguments}, seed, device)
    index = {"_class_name": "LTX2Pipeline", **{name: ["diffusers", cls] for name, cls in CLASSES.items()}}
    (out / "model_index.json").write_text(json.dumps(index, indent=2))
    return out


def _renaming(table: tuple[tuple[str, str], ...]) -> Callable[[str], str]:
    return lambda name: published.renamed(name, table)


def _write_part(folder: Path, specs: list[Spec], config: dict[str, Any], seed: int, device: str) -> None:
    """config.json, at least two shards, and the index of which tensor lies where."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    limit = min(SHARD, sum(map(nbytes, specs)) // 2)
    shards: list[list[Spec]] = [[]]
    room = limit
    for spec in specs:
        if shards[-1] and nbytes(spec) > room:
            shards.append([])
            room = limit
        shards[-1].append(spec)
        room -= nbytes(spec)
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"diffusion_pytorch_model-{i:05d}-of-{len(shards):05d}.safetensors"
        write(folder / name, shard, {"format": "pt"}, seed, device)
        where |= {spec.name: name for spec in shard}
    index = {"metadata": {"total_size": sum(map(nbytes, specs))}, "weight_map": where}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index, indent=2))

"""Write a checkpoint in each published layout: one unified file, LTX-2.5's split files, a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iclora_train.ltx2.weights.key_names import DIFFUSERS_CLASSES
from iclora_train.ltx2.weights.versions import VERSIONS
from scripts.synthetic import audio, layout, published
from scripts.synthetic.configs import GEMMA, metadata, official_config, since
from scripts.synthetic.layout import MODEL, Spec, with_prefix
from scripts.synthetic.writer import nbytes, to_fp8, write

LAYOUTS = ("unified", "split", "diffusers")
SHARD = 5 << 30  # bytes in a file of a diffusers folder


class SyntheticCheckpoint:
    """Every tensor of a checkpoint, by component, with official names without prefixes."""

    def __init__(self, version: str, size: str, gemma: tuple[int, int] | None = None) -> None:
        """gemma: hidden size and number of layers of the text encoder."""
        hidden, self.gemma_layers = gemma or GEMMA[size]
        self.version, self.config = version, official_config(version, size, hidden)
        self.config |= {"audio_vae": audio.audio_section(size), "vocoder": audio.vocoder_section(version, size)}
        self.mel_bins: int = self.config["audio_vae"]["preprocessing"]["mel"]["n_mel_channels"]
        section = self.config["transformer"]
        self.transformer = list(layout.transformer(section))
        self.connectors = list(layout.connectors(section))
        self.projection = list(layout.text_projection(section, self.gemma_layers))
        self.vae = list(layout.vae(self.config["vae"]))
        self.audio_vae = list(audio.audio_vae(self.config["audio_vae"]))
        self.vocoder = list(audio.vocoder(self.config["vocoder"], self.mel_bins))

    def model(self, fp8: bool) -> list[Spec]:
        """The transformer and the connectors, with the prefix of official files."""
        specs = with_prefix(self.transformer + self.connectors, MODEL)
        return to_fp8(specs) if fp8 else specs

    def sound(self) -> list[Spec]:
        """The audio VAE and the vocoder, with the prefixes of official files."""
        return with_prefix(self.audio_vae, "audio_vae.") + with_prefix(self.vocoder, "vocoder.")


def write_unified(checkpoint: SyntheticCheckpoint, out: Path, fp8: bool, seed: int, device: str) -> Path:
    """Everything in one file: <out>/ltx-...-dev[-fp8].safetensors."""
    path = out / f"{VERSIONS[checkpoint.version].stem}{'-fp8' if fp8 else ''}.safetensors"
    specs = (
        checkpoint.model(fp8)
        + with_prefix(checkpoint.vae, "vae.")
        + with_prefix(checkpoint.projection, "")
        + checkpoint.sound()
        + with_prefix(layout.ignored(), "")
    )
    write(path, specs, metadata(checkpoint.version, checkpoint.config), seed, device)
    return path


def write_split(checkpoint: SyntheticCheckpoint, out: Path, fp8: bool, seed: int, device: str) -> Path:
    """One file per component, in the folders of the published repository. The VAE's keys have no prefix.

    The published text projection is in the file of the packed text encoder. Here it has its own file, because the
    checkpoint does not include Gemma.
    """
    version = checkpoint.version
    declared = {**checkpoint.config, "audio_vae": None, "vocoder": None}
    model = metadata(version, {**declared, "vae": None})
    name = f"{VERSIONS[version].stem}-transformer-{'fp8' if fp8 else 'bf16'}.safetensors"
    write(out / "diffusion_models" / name, checkpoint.model(fp8), model, seed, device)
    vae_metadata = metadata(version, checkpoint.config, ("vae",))
    vae_file = out / "vae" / f"ltx-{version}-video-vae-conv-bf16.safetensors"
    write(vae_file, with_prefix(checkpoint.vae, ""), vae_metadata, seed, device)
    audio_metadata = metadata(version, checkpoint.config, ("audio_vae", "vocoder"))
    write(out / "vae" / f"ltx-{version}-audio-vae-bf16.safetensors", checkpoint.sound(), audio_metadata, seed, device)
    name = f"ltx-{version}-text-projection-bf16.safetensors"
    write(out / "text_encoders" / name, with_prefix(checkpoint.projection, ""), {"format": "pt"}, seed, device)
    return out


def write_diffusers(checkpoint: SyntheticCheckpoint, out: Path, seed: int, device: str) -> Path:
    """A folder for each component with diffusers' names, config.json and sharded weights."""
    section = checkpoint.config["transformer"]
    components: dict[str, tuple[list[Spec], tuple[tuple[str, str], ...], dict[str, Any]]] = {
        "transformer": (checkpoint.transformer, published.TRANSFORMER, published.transformer_arguments(section)),
        "vae": (checkpoint.vae, published.VAE, published.vae_arguments(checkpoint.config["vae"])),
        "connectors": (
            checkpoint.connectors + checkpoint.projection,
            published.CONNECTORS,
            published.connector_arguments(section, checkpoint.gemma_layers),
        ),
        "audio_vae": (checkpoint.audio_vae, audio.AUDIO_VAE, audio.vae_arguments(checkpoint.config["audio_vae"])),
        "vocoder": (
            checkpoint.vocoder,
            audio.VOCODER,
            audio.vocoder_arguments(checkpoint.config["vocoder"], checkpoint.mel_bins),
        ),
    }
    classes = {name: names[0] for name, names in DIFFUSERS_CLASSES.items()}
    classes["vocoder"] = audio.VOCODER_CLASSES[since("2.3", checkpoint.version)]
    for name, (specs, table, arguments) in components.items():
        named = with_prefix(specs, "", _renaming(table))
        _write_component(out / name, named, {"_class_name": classes[name], **arguments}, seed, device)
    index = {"_class_name": "LTX2Pipeline", **{name: ["diffusers", cls] for name, cls in classes.items()}}
    (out / "model_index.json").write_text(json.dumps(index, indent=2))
    return out


def _renaming(table: tuple[tuple[str, str], ...]) -> Callable[[str], str]:
    return lambda name: published.renamed(name, table)


def _write_component(folder: Path, specs: list[Spec], config: dict[str, Any], seed: int, device: str) -> None:
    """Write config.json, at least two shards, and the index from tensors to shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    limit = min(SHARD, sum(map(nbytes, specs)) // 2)
    shards: list[list[Spec]] = [[]]
    left = limit
    for spec in specs:
        if shards[-1] and nbytes(spec) > left:
            shards.append([])
            left = limit
        shards[-1].append(spec)
        left -= nbytes(spec)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"diffusion_pytorch_model-{i:05d}-of-{len(shards):05d}.safetensors"
        write(folder / name, shard, {"format": "pt"}, seed, device)
        weight_map |= {spec.name: name for spec in shard}
    index = {"metadata": {"total_size": sum(map(nbytes, specs))}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index, indent=2))

"""Check which base model an adapter fits: family, version, and names and shapes of the linears."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from iclora_train.adapters.file import Adapter
from iclora_train.adapters.key_styles import is_audio
from iclora_train.adapters.ltx2_modules import BLOCKS, model_of
from iclora_train.adapters.metadata import FAMILY, FINGERPRINT, VERSION, shown
from iclora_train.config import ConfigError
from iclora_train.config.paths import user_path
from iclora_train.ltx2.base_model import EMBEDDED, BaseModel
from iclora_train.ltx2.weights.key_names import AUDIO_HALF, MODEL_PREFIX
from iclora_train.ltx2.weights.model_files import Checkpoint
from iclora_train.ltx2.weights.safetensors_header import Component, StoredTensor, read_header

Weights = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class BaseSpec:
    """The properties of a base that an adapter must fit.

    linears: module -> (out, in). fingerprint: set for an embedded base, whose weights never change. A published version
    has several checkpoints (dev, distilled) that share adapters, so its fingerprint is not compared.
    """

    family: str
    version: str
    fingerprint: str | None = None
    linears: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def open(cls, checkpoint: str) -> BaseSpec:
        """Read the headers of the base at a path, or of an embedded base by name. ConfigError as `BaseModel.open`."""
        opened = open_checkpoint(checkpoint)
        weights = {name: t.shape for name, t in model_tensors(opened).stored.items() if name.endswith(".weight")}
        linears = {name.removesuffix(".weight"): (s[0], s[1]) for name, s in weights.items() if len(s) == 2}
        fingerprint = BaseModel.open(checkpoint).fingerprint if checkpoint in EMBEDDED else None
        return cls(opened.family, opened.version, fingerprint, linears)

    @property
    def includes_audio(self) -> bool:
        """Whether `linears` includes the audio stream."""
        return any(map(is_audio, self.linears))

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of an adapter for this base."""
        fingerprint = {} if self.fingerprint is None else {FINGERPRINT: self.fingerprint}
        return {FAMILY: self.family, VERSION: self.version, **fingerprint}


def open_checkpoint(checkpoint: str) -> Checkpoint:
    """The headers of the base at a path, or of an embedded base by name; only the transformer is required."""
    return Checkpoint.open(EMBEDDED.get(checkpoint, user_path(checkpoint)))


def model_tensors(checkpoint: Checkpoint) -> Component:
    """All tensors of the model with official names, including audio; of official files also the connectors'."""
    transformer = checkpoint.component("transformer")
    if transformer.diffusers:
        return checkpoint.transformer(AUDIO_HALF in checkpoint.components)
    stored: dict[str, StoredTensor] = {}
    for file in transformer.files:
        tensors = read_header(file).tensors
        stored |= {key.removeprefix(MODEL_PREFIX): t for key, t in tensors.items() if key.startswith(MODEL_PREFIX)}
    return Component("transformer", transformer.config, stored, transformer.source)


def weight_findings(weights: Weights, base: BaseSpec) -> Iterator[str]:
    """Modules and shapes of an adapter that the base does not have."""
    if not base.includes_audio:
        weights = {name: factors for name, factors in weights.items() if not is_audio(name)}
    return shape_findings(weights, base.linears)


def shape_findings(weights: Weights, linears: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """Modules and shapes of an adapter that do not fit linears (module -> (out, in)): the first of each kind."""
    shapes = {name: (b.shape[0], a.shape[1]) for name, (a, b) in weights.items()}
    unknown = [name for name in shapes if name not in linears]
    if unknown:
        model = next((model for model in map(model_of, unknown) if model is not None), None)
        cause = "wrong base model?" if model is None else f"it is for {model}"
        yield f"{_not_in_base(unknown[0], linears)}{_more(unknown)}: {cause}"
    misshapen = [name for name, shape in shapes.items() if linears.get(name, shape) != shape]
    if misshapen:
        (out, inputs), (base_out, base_in) = shapes[misshapen[0]], linears[misshapen[0]]
        yield (
            f"{misshapen[0]}: the adapter fits a linear {inputs} -> {out}, the base has {base_in} -> {base_out}"
            f"{_more(misshapen)}: wrong base model?"
        )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _not_in_base(name: str, linears: Mapping[str, object]) -> str:
    """The message for a module that the base does not have."""
    blocks = {int(linear.split(".")[1]) for linear in linears if linear.startswith(BLOCKS)}
    block = name.split(".")[1] if name.startswith(BLOCKS) else ""
    count = f" (it has {len(blocks)} blocks)" if block.isdecimal() and int(block) not in blocks else ""
    return f"the adapter has weights for {name}, which the base does not have{count}"


def base_findings(metadata: Mapping[str, str], base: BaseSpec) -> Iterator[str]:
    """A finding if an adapter was trained on another base: with equal shapes it would load and give a wrong result.

    Metadata that declare no base, as in official files, are not a finding; see `base_notes`.
    """
    declared = [metadata.get(FAMILY, base.family), metadata.get(VERSION, base.version)]
    if declared != [base.family, base.version]:
        yield (
            f"was trained on {shown(declared[0])} {shown(declared[1])}, this base is {base.family} {base.version}: set "
            "model.checkpoint to the base that it was trained on"
        )
    elif base.fingerprint is not None and FAMILY in metadata and metadata.get(FINGERPRINT) != base.fingerprint:
        declared_weights = shown(metadata.get(FINGERPRINT, "none"))
        yield (
            f"was trained on other weights of {base.family} {base.version} ({declared_weights}, here "
            f"{base.fingerprint}): train it again"
        )


def base_notes(path: Path, metadata: Mapping[str, str], base: BaseSpec) -> Iterator[str]:
    """A note if the metadata declare no base: LTX-2, 2.3 and 2.5 have linears of equal shapes."""
    if FAMILY in metadata and VERSION in metadata:
        return
    named = re.match(r"ltx-?(\d\.\d|2)(?!\d)", path.name.lower())
    other = named is not None and f"{named[1]}.0"[:3] != base.version
    hint = f"; its name says LTX-{named[1]}" if named is not None and other else ""
    yield (
        f"declares no base; its linears fit {base.family} {base.version}, which is used{hint}. LTX-2, 2.3 and 2.5 have "
        "linears of equal shapes: an adapter works on the model that it was trained on"
    )


def require_same_base(path: Path, adapter: Adapter, family: str, version: str, fingerprint: str | None = None) -> None:
    """ConfigError if the adapter was trained on another base. fingerprint: as in `BaseSpec`."""
    for finding in base_findings(adapter.metadata, BaseSpec(family, version, fingerprint)):
        raise ConfigError(f"{path} {finding}")

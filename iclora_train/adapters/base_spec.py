"""What a base offers to adapters: the shapes of its linears, and which base it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from iclora_train.adapters.file import Adapter
from iclora_train.adapters.key_styles import BLOCKS, is_audio
from iclora_train.config import ConfigError
from iclora_train.ltx2.base_model import EMBEDDED, BaseModel
from iclora_train.ltx2.weights.key_names import MODEL_PREFIX
from iclora_train.ltx2.weights.model_files import Checkpoint
from iclora_train.ltx2.weights.safetensors_header import Component, StoredTensor, read_header

FAMILY, VERSION, FINGERPRINT = "base_model_family", "base_model_version", "base_fingerprint"
Weights = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class BaseSpec:
    """A base as adapters see it. linears: module -> (out, in); fingerprint: of an embedded base, which is one set of
    weights. Published bases have siblings of one version (dev, distilled) that share adapters."""

    family: str
    version: str
    fingerprint: str | None = None
    linears: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def open(cls, checkpoint: str) -> BaseSpec:
        """Read the headers of the base at a path, or of an embedded one by name. ConfigError as `BaseModel.open`."""
        opened = open_checkpoint(checkpoint)
        shapes = {name: at.shape for name, at in model_part(opened).stored.items() if name.endswith(".weight")}
        linears = {name.removesuffix(".weight"): (s[0], s[1]) for name, s in shapes.items() if len(s) == 2}
        fingerprint = BaseModel.open(checkpoint).fingerprint if checkpoint in EMBEDDED else None
        return cls(opened.family, opened.version, fingerprint, linears)

    @property
    def whole(self) -> bool:
        """Whether the audio stream's linears are known too (a diffusers folder is read for its video stream only)."""
        return any(map(is_audio, self.linears))

    @property
    def metadata(self) -> dict[str, str]:
        """How an adapter says that it was made for this base."""
        known = {} if self.fingerprint is None else {FINGERPRINT: self.fingerprint}
        return {FAMILY: self.family, VERSION: self.version, **known}


def open_checkpoint(checkpoint: str) -> Checkpoint:
    """The headers of the base at a path, or of an embedded one by name; the transformer is all that it must hold."""
    return Checkpoint.open(EMBEDDED.get(checkpoint, Path(checkpoint).expanduser()))


def model_part(checkpoint: Checkpoint) -> Component:
    """All tensors of the model under official names, audio included where the files have official keys."""
    part = checkpoint.component("transformer")
    if part.diffusers:
        return part
    stored: dict[str, StoredTensor] = {}
    for file in part.files:
        keys = read_header(file).tensors
        stored |= {key.removeprefix(MODEL_PREFIX): at for key, at in keys.items() if key.startswith(MODEL_PREFIX)}
    return Component("transformer", part.config, stored, part.source)


def weight_findings(weights: Weights, target: BaseSpec) -> Iterator[str]:
    """Modules and shapes of an adapter that the base does not have."""
    known = weights if target.whole else {name: halves for name, halves in weights.items() if not is_audio(name)}
    return fit_findings(known, target.linears)


def fit_findings(weights: Weights, linears: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """Modules and shapes of an adapter that do not fit linears (module -> (out, in)): the first of each kind."""
    shapes = {name: (b.shape[0], a.shape[1]) for name, (a, b) in weights.items()}
    unknown = [name for name in shapes if name not in linears]
    if unknown:
        yield f"{_missing(unknown[0], linears)}{_more(unknown)}: wrong base model?"
    unfit = [name for name, shape in shapes.items() if linears.get(name, shape) != shape]
    if unfit:
        (out, wide), (wanted_out, wanted) = shapes[unfit[0]], linears[unfit[0]]
        yield (
            f"{unfit[0]}: the adapter fits a linear {wide} -> {out}, the base has {wanted} -> {wanted_out}"
            f"{_more(unfit)}: wrong base model?"
        )


def _more(found: list[str]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def _missing(name: str, linears: Mapping[str, object]) -> str:
    """Why a base cannot take a module."""
    numbers = {int(known.split(".")[1]) for known in linears if known.startswith(BLOCKS)}
    block = name.split(".")[1] if name.startswith(BLOCKS) else ""
    beyond = f" (it has {len(numbers)} blocks)" if block.isdecimal() and int(block) not in numbers else ""
    return f"the adapter has weights for {name}, which the base does not have{beyond}"


def base_findings(metadata: Mapping[str, str], target: BaseSpec) -> Iterator[str]:
    """Whether an adapter was made for another base: equal shapes would load silently and give a wrong result."""
    family, version = metadata.get(FAMILY), metadata.get(VERSION)
    if family is None or version is None:
        yield (
            f"metadata lacks {FAMILY} or {VERSION}, so nobody knows which base it was trained on; if you do, "
            "`convert --base PATH` writes it down"
        )
    elif (family, version) != (target.family, target.version):
        yield (
            f"was trained on {family} {version}, this base is {target.family} {target.version}: pass the base it was "
            "trained on as model.checkpoint"
        )
    elif target.fingerprint is not None and metadata.get(FINGERPRINT) != target.fingerprint:
        yield (
            f"was trained on other weights of {family} {version} ({metadata.get(FINGERPRINT)}, here "
            f"{target.fingerprint}): train it again"
        )


def require_same_base(path: Path, adapter: Adapter, family: str, version: str, fingerprint: str | None = None) -> None:
    """ConfigError if the adapter was made for another base. fingerprint: of an embedded base, as in `BaseSpec`."""
    for finding in base_findings(adapter.metadata, BaseSpec(family, version, fingerprint)):
        raise ConfigError(f"{path} {finding}")

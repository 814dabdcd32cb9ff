"""The adapter: peft inside the model, the one file that ComfyUI, ltx-pipelines and diffusers load outside.

File contract: `diffusion_model.<module>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank), alpha / rank baked
into B, no alpha tensors, metadata all strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from iclora_train.config import ConfigError, Lora
from iclora_train.files import write_whole

PREFIX = "diffusion_model."
_KEY = re.compile(r"diffusion_model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_FACTORS = ("reference_downscale_factor", "reference_temporal_scale_factor")


@dataclass(frozen=True)
class Adapter:
    """An adapter as in the file: module name -> (A (rank,in), B (out,rank)), and the metadata."""

    weights: dict[str, tuple[Tensor, Tensor]]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def downscale(self) -> int:
        """How many times smaller the reference is than the target."""
        return int(self.metadata["reference_downscale_factor"])

    @property
    def temporal_scale(self) -> int:
        """How many times fewer frames per second the reference has."""
        return int(self.metadata.get("reference_temporal_scale_factor", "1"))


def attach(transformer: nn.Module, lora: Lora, generator_seed: int = 0) -> list[nn.Parameter]:
    """Put fresh trainable fp32 adapters on the linears named by `lora.targets`; the rest stays frozen.

    A is drawn with `generator_seed` (global random state is left as it was), B is zero. ConfigError names a target
    that the base does not have, or a rank above what a linear can use.
    """
    blocks = {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("transformer_blocks.")
    }
    for target in lora.targets:
        if not any(name.endswith("." + target) for name in blocks):
            ends = sorted({name.split(".", 2)[2] for name in blocks})
            raise ConfigError(f"model.lora.targets: no linear {target!r} in the base; it has {', '.join(ends)}")
    wanted = [name for name in blocks if any(name.endswith("." + target) for target in lora.targets)]
    smallest = min(min(blocks[name].weight.shape) for name in wanted)
    if lora.rank > smallest:
        raise ConfigError(f"model.lora.rank={lora.rank} is above {smallest}, the smaller side of a targeted linear")
    alpha: Any = lora.alpha or lora.rank  # peft takes any number, but is annotated int
    settings = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        inject_adapter_in_model(settings, transformer)
    parameters = [p for name, p in transformer.named_parameters() if ".lora_" in name]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return parameters


def layers(transformer: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The adapted linears, under their names in the official checkpoint."""
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _halves(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """A (rank,in) and B (out,rank) of an adapted linear."""
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    assert isinstance(a, nn.Linear)
    assert isinstance(b, nn.Linear)
    return a.weight, b.weight


@contextmanager
def adapter_off(transformer: nn.Module) -> Iterator[None]:
    """The base alone, inside the `with`."""
    for _, layer in layers(transformer):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in layers(transformer):
            layer.enable_adapters(True)


def extract(transformer: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The attached adapter as module -> (A, B), alpha / rank baked into B."""
    weights = {}
    for name, layer in layers(transformer):
        a, b = _halves(layer)
        weights[name] = (a.detach().clone(), b.detach() * layer.scaling["default"])
    return weights


def load_into(transformer: nn.Module, adapter: Adapter) -> None:
    """Attach an adapter that was read from a file. ConfigError names a module or shape the base does not have."""
    targets: dict[str, int] = {}
    linears = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    for name, (a, b) in adapter.weights.items():
        if name not in linears:
            raise ConfigError(f"the adapter has weights for {name}, which the base does not have: wrong base model?")
        out_width, in_width = linears[name].weight.shape
        if a.shape[1] != in_width or b.shape[0] != out_width:
            raise ConfigError(
                f"{name}: the adapter fits a linear {a.shape[1]} -> {b.shape[0]}, the base has "
                f"{in_width} -> {out_width}: wrong base model?"
            )
        targets[name] = a.shape[0]
    settings = LoraConfig(
        r=max(targets.values()), target_modules=list(targets), rank_pattern=targets, alpha_pattern=targets
    )
    inject_adapter_in_model(settings, transformer)
    transformer.requires_grad_(False)
    with torch.no_grad():
        for name, layer in layers(transformer):
            for half, values in zip(_halves(layer), adapter.weights[name], strict=True):
                half.copy_(values)


def save(path: Path, adapter: Adapter, dtype: torch.dtype = torch.float32) -> None:
    """Write the file (whole or not at all) and read it back: what was written is what was meant."""
    tensors = {}
    for name, (a, b) in sorted(adapter.weights.items()):
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.to(dtype).cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.to(dtype).cpu().contiguous()
    with write_whole(path) as file:
        file.write(_sorted_header(serialize(tensors, {"format": "pt", **adapter.metadata})))
    back = read(path)
    for name, (a, b) in back.weights.items():
        assert torch.equal(a, tensors[f"{PREFIX}{name}.lora_A.weight"]), name
        assert torch.equal(b, tensors[f"{PREFIX}{name}.lora_B.weight"]), name


def _sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its header in order: the library writes metadata in another order each time."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors begin on a multiple of 8 bytes
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def read(path: Path) -> Adapter:
    """Read an adapter file. ConfigError names the file and the key that is wrong, and why."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is not a readable safetensors file: {error}") from error
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or ".default" in key:
            raise ConfigError(f"{path}: key {key!r} is not diffusion_model.<module>.lora_A|lora_B.weight")
        if not tensor.isfinite().all():
            raise ConfigError(f"{path}: {key} holds NaN or infinity; the training diverged, use an earlier checkpoint")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    _check_pairs(path, sides)
    _check_metadata(path, metadata)
    return Adapter({name: (pair["A"], pair["B"]) for name, pair in sides.items()}, metadata)


def _check_pairs(path: Path, sides: dict[str, dict[str, Tensor]]) -> None:
    if not sides:
        raise ConfigError(f"{path} holds no adapter weights")
    for name, pair in sides.items():
        if pair.keys() != {"A", "B"}:
            raise ConfigError(f"{path}: {name} has lora_{next(iter(pair))} without the other half")
        a, b = pair["A"], pair["B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ConfigError(f"{path}: {name} has A {tuple(a.shape)} and B {tuple(b.shape)}, which do not multiply")
    if not any(pair["B"].any() for pair in sides.values()):
        raise ConfigError(f"{path}: every lora_B is zero; the adapter was never trained")


def _check_metadata(path: Path, metadata: dict[str, str]) -> None:
    if "reference_downscale_factor" not in metadata:
        raise ConfigError(
            f"{path}: metadata lacks reference_downscale_factor; loaders would silently take 1. Add it if you know it"
        )
    for key in _FACTORS:
        value = metadata.get(key, "1")
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"{path}: metadata {key}={value!r} must be a whole number of at least 1")


def check_base(path: Path, adapter: Adapter, family: str, version: str, fingerprint: str | None = None) -> None:
    """Refuse an adapter made for another base: equal shapes would load silently and give a wrong result.

    fingerprint: of an embedded base, which is one set of weights. Published bases have siblings of the same version
    (dev, distilled) that share adapters, so family and version decide there.
    """
    made_for = (adapter.metadata.get("base_model_family"), adapter.metadata.get("base_model_version"))
    if made_for != (family, version):
        raise ConfigError(
            f"{path} was trained on {made_for[0]} {made_for[1]}, this base is {family} {version}: pass the base it was "
            "trained on as model.checkpoint"
        )
    known = adapter.metadata.get("base_fingerprint")
    if fingerprint is not None and known != fingerprint:
        raise ConfigError(
            f"{path} was trained on other weights of {family} {version} ({known}, here {fingerprint}): train it again"
        )

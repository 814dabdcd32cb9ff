"""A small world for evaluations: a tiny random base, held-out shards and an adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from eval.run import evaluate
from iclora_train.adapters import lora
from iclora_train.config import Config, ConfigError, to_config
from iclora_train.config.hydra_app import conf_dir
from iclora_train.core.fingerprint import content_settings, digest
from iclora_train.core.types import LatentPair, Pair, VideoShape
from iclora_train.data.shard_sample import pack_latents, pack_pair
from iclora_train.data.shards import ShardWriter
from iclora_train.ltx2.base_model import BaseModel
from tests.tiny import SETTINGS, SHAPE, write_tiny_base

MODULES = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")


@dataclass(frozen=True)
class World:
    """A tiny base, held-out shards, an adapter, and the overrides that select them."""

    root: Path
    overrides: list[str]

    @property
    def adapter(self) -> Path:
        return self.root / "adapter.safetensors"

    @property
    def results(self) -> Path:
        """Folder of the evaluation of `adapter`."""
        return next((self.root / "runs").glob("*/eval-adapter-*"))

    def bare(self, *more: str) -> Config:
        """Settings without an adapter."""
        return compose_config([*self.overrides, *more])

    def config(self, *more: str) -> Config:
        """Settings with the world's adapter, unless `more` names another one."""
        return compose_config([*self.arguments, *more])

    @property
    def arguments(self) -> list[str]:
        """Command line of `python -m eval`."""
        return [*self.overrides, f"adapter={self.adapter}"]


def without_evaluation(world: World, folder: Path) -> World:
    """A world in another folder without an evaluation, with the shards and the base of `world`."""
    shutil.copy(world.adapter, folder / "adapter.safetensors")
    overrides = [o for o in world.overrides if not o.startswith("runs_dir")]
    return World(folder, [*overrides, f"runs_dir={folder / 'runs'}"])


def compose_config(overrides: list[str]) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return to_config(compose("eval", overrides))


def clip(seed: int) -> np.ndarray:
    """Coloured blocks that move by one pixel per frame, uint8 (F,H,W,3)."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([blocks[:, t : t + SHAPE.width] for t in range(SHAPE.frames)])


def dimmed(target: np.ndarray, colour: tuple[int, int, int] | None, brightness: float = 0.5) -> np.ndarray:
    """A reference: the target at a share of its brightness, with its upper half in `colour` unless that is None."""
    reference = (target * brightness).astype(np.uint8)
    if colour is not None:
        reference[:, : target.shape[1] // 2] = colour
    return reference


def write_shards(
    root: Path,
    base: BaseModel,
    config: Config,
    sources: dict[str, list[str]],
    recording: Callable[[str], str],
    references: int,
    look: Callable[[np.ndarray], np.ndarray],
    controlled: Callable[[Pair, int], Pair] = lambda pair, window: pair,
) -> None:
    """Write pair and latent shards: two windows per clip; references are dimmed targets.

    sources: split -> names of its clips. recording: clip name -> recording that the clip was cut from, or "".
    references: number of references per pair. look: makes a reference from a target. controlled: gives the pair of a
    clip's first or second window other references and another record.
    """
    video_digests = {name: {"video": digest(name)} for names in sources.values() for name in names}
    settings = content_settings(config)
    pairs_fingerprint = {"settings": settings, "sources": video_digests}
    latents_fingerprint = {
        "settings": settings,
        "pairs": digest(pairs_fingerprint),
        "base": {"parts": base.latent_fingerprints},
    }
    writers = (
        ShardWriter(root / "pairs", "pairs", pairs_fingerprint),
        ShardWriter(root / "latents", "latents", latents_fingerprint),
    )
    vae = base.vae()
    text = base.text()
    for split, names in sources.items():
        pairs = [
            (name, controlled(make_pair(split, name, window, recording(name), references, look), window))
            for name in names
            for window in range(2)
        ]
        writers[0].write(f"{split}-000000.tar", [pack_pair(pair, name) for name, pair in pairs])
        writers[1].write(f"{split}-000000.tar", [encode_pair(pair, name, vae, text) for name, pair in pairs])
    writers[1].write_empty_text(text.encode([""])[0])
    for writer in writers:
        writer.finish([f"{split}-000000.tar" for split in sources])


def make_pair(
    split: str, name: str, window: int, recording: str, references: int, look: Callable[[np.ndarray], np.ndarray]
) -> Pair:
    """The pair of one window of clip `name`."""
    target = clip(sum(name.encode()) + 100 * window)
    record: dict[str, object] = {"source": recording}
    return Pair(f"{split}-{name}-{window}", target, (look(target),) * references, "moving blocks", SHAPE.fps, record)


def encode_pair(pair: Pair, name: str, vae: Any, text: Any) -> dict[str, Any]:
    """The latent sample of a pair from clip `name`."""
    shape = VideoShape(*pair.target.shape[:3], SHAPE.fps)
    target, *references = (latent_of(vae, pixels) for pixels in (pair.target, *pair.references))
    latents = LatentPair(pair.key, target, tuple(references), text.encode([pair.caption])[0], SHAPE.fps)
    return pack_latents(latents, shape, name, dict(pair.record))


def latent_of(vae: Any, pixels: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return vae.encode(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)[0]


def write_adapter(path: Path, base: BaseModel, **metadata: str) -> None:
    """A random adapter, strong enough to change the samples."""
    generator = torch.Generator().manual_seed(0)
    linears = dict(base.transformer().named_modules())
    weights = {}
    for name in (f"transformer_blocks.{i}.{module}" for i in range(2) for module in MODULES):
        out_features, in_features = linears[name].weight.shape
        weights[name] = (
            torch.randn(2, in_features, generator=generator),
            0.2 * torch.randn(out_features, 2, generator=generator),
        )
    declared = {"base_model_family": base.family, "base_model_version": base.version, "reference_downscale_factor": "1"}
    lora.save(path, lora.Adapter(weights, {**declared, **metadata}))


def build(
    root: Path,
    sources: dict[str, list[str]] | None = None,
    recording: Callable[[str], str] = lambda clip: "",
    references: int = 1,
    task: str = "deblur",
    colour: tuple[int, int, int] | None = None,
    brightness: float = 0.5,
    settings: tuple[str, ...] = (),
    controlled: Callable[[Pair, int], Pair] = lambda pair, window: pair,
) -> World:
    """Build the world in `root`; for the parameters see `write_shards`, and `dimmed` for colour and brightness.

    settings: more of the command line.
    """
    folder = write_tiny_base(root / "base")
    overrides = [
        f"conf={task}",
        *SETTINGS,
        f"model.checkpoint={folder}",
        f"data.root={root / 'shards'}",
        f"runs_dir={root / 'runs'}",
        "model.precision=fp32",
        "sample.steps=2",
        "eval.windows=4",
        "eval.seeds=[0,1]",
        "eval.batch_size=3",
        "eval.strengths=[1.0,0.5,0.0]",
        "logger=none",
        *settings,
    ]
    base = BaseModel.open(str(folder))

    def look(target: np.ndarray) -> np.ndarray:
        return dimmed(target, colour, brightness)

    sources = sources or {"train": ["sea", "road"], "heldout": ["cat", "dog"]}
    write_shards(root / "shards", base, compose_config(overrides), sources, recording, references, look, controlled)
    write_adapter(root / "adapter.safetensors", base)
    return World(root, overrides)


def scores(world: World) -> dict[str, Any]:
    """scores.json of the world's adapter."""
    result: dict[str, Any] = json.loads((world.results / "scores.json").read_text())
    return result


def without_run(result: dict[str, Any]) -> dict[str, Any]:
    """Scores without entries that differ between runs: times, the command, paths."""
    provenance = {k: v for k, v in result["provenance"].items() if k not in ("command", "settings")}
    simple = {**result["simple"], "seconds": 0}
    return {
        **result,
        "timings": None,
        "simple": simple,
        "adapter": result["adapter"]["sha256"],
        "provenance": provenance,
    }


def refused(config: Config, message: str) -> None:
    """The evaluation raises ConfigError with this message."""
    with pytest.raises(ConfigError, match=message):
        evaluate(config)

"""Make a few pairs as a preparation would, and measure what they cost. Nothing is written to the shards."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from data_prep.checks import Report
from data_prep.encode_latents import LatentEncoder
from data_prep.engines.base import Failure
from data_prep.estimate import FIXED_PAIRS, TRAIN_PAIRS, Cost
from data_prep.stopwatch import Stopwatch
from data_prep.write_shards import WorkUnit, judge, make_each, pack
from iclora_train.config import Data
from iclora_train.core.types import AudioGeometry, Geometry, Pair
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text_features import TextFeatures

CPU_PARAMETERS = 10**8  # a VAE with more parameters takes minutes per window on a CPU
LATENT_BYTES = 2  # fp16


@dataclass(frozen=True)
class MeasuredPair:
    """A pair with its check report and picture (JPEG), the bytes of its videos in a shard, and seconds by part."""

    pair: Pair
    report: Report
    picture: bytes
    pair_bytes: int
    seconds: dict[str, float]

    @property
    def pixels(self) -> int:
        """frames x height x width of the target."""
        return math.prod(self.pair.target.shape[:3])


def measure_unit(unit: WorkUnit) -> list[MeasuredPair] | Failure:
    """Make, check and compress the pairs of a unit. Failure as in `make_each`."""
    return make_each(unit, partial(_measure, unit))


def _measure(unit: WorkUnit, pair: Pair, watch: Stopwatch) -> MeasuredPair:
    """A pair that the checks leave out is measured, too."""
    report, picture = judge(unit, pair, watch)
    members = pack(unit, pair, watch)
    size = sum(len(data) for name, data in members.items() if name != "__key__")
    return MeasuredPair(pair, report, picture, size, watch.take())


@dataclass
class Totals:
    """Adds up what measured pairs cost."""

    windows: int = 0
    pixels: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: Counter[str] = field(default_factory=Counter)
    group_pixels: Counter[str] = field(default_factory=Counter)

    def add(self, pair: MeasuredPair, geometry: Geometry, sound: AudioGeometry | None = None) -> None:
        """Count a pair, and the bytes of the latents that a VAE of this geometry gives. sound: of the audio VAE, with
        data.sound."""
        self.windows, self.pixels = self.windows + 1, self.pixels + pair.pixels
        for part, seconds in pair.seconds.items():
            self.add_seconds(part, seconds)
        group = TRAIN_PAIRS if pair.report.split == "train" else FIXED_PAIRS  # data.keep may treat them differently
        self.bytes[group] += pair.pair_bytes
        self.group_pixels[group] += pair.pixels
        self.bytes["checks"] += len(pair.picture) * 4 // 3
        self.bytes["latents"] += latent_bytes(pair.pair, geometry)
        if sound is not None:
            frames = sound.latent_frames(len(pair.pair.target), pair.pair.fps)
            count = 1 + ("reference_sound" in pair.pair.record)
            self.bytes["sound in latents"] += count * frames * sound.width * LATENT_BYTES

    def add_seconds(self, part: str, seconds: float) -> None:
        """Add seconds to a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def cost(self, text: int = 0, clips: int = 0, clip_seconds: float = 0.0) -> Cost:
        """The totals as a Cost. text: bytes of the features of a caption, 0 if they are unknown."""
        sizes = {name: float(size) for name, size in self.bytes.items()} | ({"text": float(text)} if text else {})
        for group, pixels in self.group_pixels.items():
            sizes[group] *= self.pixels / pixels  # as if all windows were of this group
        seconds = self.seconds | ({"clips": clip_seconds} if clips else {})
        return Cost(self.windows, self.pixels, seconds, sizes, clips)


def latent_bytes(pair: Pair, geometry: Geometry) -> int:
    """Bytes of the fp16 latents of all streams of a pair."""
    sizes = [geometry.latent_size(*map(int, clip.shape[:3])) for clip in (pair.target, *pair.references)]
    return sum(geometry.channels * math.prod(size) * LATENT_BYTES for size in sizes)


def text_bytes(base: BaseModel, audio: bool = False) -> int:
    """Bytes of the fp16 features (T,D) of a caption, with `audio` of both streams; 0 if the settings name no text
    encoder."""
    components = base.checkpoint.components
    if "text" in components:
        section = components["text"].config["text_encoder"]
        return int(section["tokens"]) * int(section["output"]) * LATENT_BYTES
    if "connectors" not in components:
        return 0
    from iclora_train.ltx2.text.connectors import TOKENS  # noqa: PLC0415 (diffusers)

    shapes = components["connectors"].shapes.items()
    registers = {name: shape[-1] for name, shape in shapes if name.endswith("learnable_registers")}
    widths = [width for name, width in registers.items() if audio or "audio" not in name]
    return TOKENS * sum(widths) * LATENT_BYTES


class _CachedOrZeros(TextFeatures):
    """Cached text features; zeros for captions that are not encoded yet. For measurements of the VAE only."""

    def _load(self, path: Path) -> Tensor:
        return super()._load(path) if self._is_whole(path) else torch.zeros(1, 1)


def time_vae(pairs: list[MeasuredPair], base: BaseModel, data: Data) -> float:
    """Seconds in which the VAE encodes the pairs, in the batches and the precision of a preparation.

    On a GPU the first batch of each size is encoded twice, because the first time is slower.
    """
    texts = _CachedOrZeros(Path(data.root), base, data.sound is not None)
    encoder, seconds, sizes = LatentEncoder(base, texts, data.vae_precision), 0.0, set()
    for batch in _batches([measured.pair for measured in pairs], encoder.pixels):
        if torch.cuda.is_available() and batch[0].target.shape not in sizes:
            encoder.encode(batch)
            torch.cuda.synchronize()
        sizes.add(batch[0].target.shape)
        begin = time.perf_counter()
        encoder.encode(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds += time.perf_counter() - begin
    return seconds


def _batches(pairs: list[Pair], pixels: int) -> Iterator[list[Pair]]:
    """Pairs of one size, up to about `pixels` of target per batch."""
    ordered = sorted(pairs, key=lambda pair: pair.target.shape)
    for shape, group in groupby(ordered, key=lambda pair: pair.target.shape):
        of_size, count = list(group), max(1, pixels // math.prod(shape[:3]))
        yield from (of_size[i : i + count] for i in range(0, len(of_size), count))


def reason_not_to_encode(base: BaseModel) -> str | None:
    """Why the VAE does not encode a preview; None if it does."""
    parameters = sum(math.prod(shape) for shape in base.checkpoint.component("vae").shapes.values())
    if torch.cuda.is_available() or parameters <= CPU_PARAMETERS:
        return None
    return (
        f"there is no GPU, and the VAE of {base.name} has {parameters / 1e6:.0f} million parameters: "
        "a window would take minutes on a CPU"
    )

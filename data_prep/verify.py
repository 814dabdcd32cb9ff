"""`python -m data_prep verify data.root=<folder>`: check that shards are intact, consistent and fit to train on.

Each problem is one line that ends with the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from data_prep.engines.base import Failure
from data_prep.engines.local import create_engine
from iclora_train.config import Config
from iclora_train.config.no_reference import NO_REFERENCE
from iclora_train.core.progress import progress_bar
from iclora_train.core.records import DamagedFileError, read_json
from iclora_train.data.shard_index import FINGERPRINT_FILE, KINDS, REMEDY, ShardError
from iclora_train.data.shard_sample import load_text_features
from iclora_train.data.shards import EMPTY_TEXT_FILE, ShardSet
from iclora_train.ltx2.base_model import open_base
from iclora_train.ltx2.text_features import REMEDY as TEXT_REMEDY

Work = tuple[ShardSet, str]  # a shard set and the name of one of its shards
Shapes = dict[str, tuple[int, ...]]  # by member of a sample


def verify(root: str, workers: int | None = 0, config: Config | None = None) -> list[str]:
    """Read both shard sets of data.root again and list all problems with their remedies, under a progress bar.

    With a config, also compare settings and base model. workers: number of processes that read shards (0: this
    process).
    """
    problems, sets = [], []
    for kind in KINDS:
        try:
            shards = ShardSet.open(Path(root, kind))
            sets.append(shards)
            if shards.kind != kind:
                problems.append(f"{shards.folder} holds {shards.kind}, not {kind}: delete it and run data_prep again")
        except ShardError as error:
            problems.append(str(error))
    for shards in sets:
        problems += [
            *_fingerprint_problems(shards),
            *_unindexed_tars(shards),
            *(_mismatches(shards, config) if config else ()),
        ]
    if len(sets) == len(KINDS):
        problems += _inconsistencies(*sets)
    problems += _text_problems(Path(root))
    return problems + list(_shard_problems(sets, workers))


def _fingerprint_problems(shards: ShardSet) -> Iterator[str]:
    """Compare the index with fingerprint.json, which was written before it."""
    path = shards.folder / FINGERPRINT_FILE
    remedy = f"run data_prep again, which takes it from {shards.folder / 'index.json'}"
    try:
        if read_json(path, dict[str, Any], remedy) != shards.fingerprint:
            yield f"{path} and the index.json next to it differ: delete {shards.folder} and run data_prep again"
    except DamagedFileError as error:
        yield str(error)


def _text_problems(root: Path) -> Iterator[str]:
    """Damaged files in the caches of text features."""
    for path in sorted(root.glob("texts-*/*.safetensors")):
        try:
            if not bool(load_text_features(path).isfinite().all()):
                yield f"{path} holds NaN or infinite values: {TEXT_REMEDY}"
        except (OSError, ValueError) as error:
            yield f"{path} is damaged ({error}): {TEXT_REMEDY}"


def _unindexed_tars(shards: ShardSet) -> Iterator[str]:
    """Tars that are not in the index."""
    for path in sorted(shards.folder.glob("*.tar")):
        if path.name not in shards.shards:
            yield f"{path} is not in the index: delete it"


def _mismatches(shards: ShardSet, config: Config) -> Iterator[str]:
    """Settings or a base model that differ from the config's."""
    try:
        shards.require_settings(config)
        if shards.kind == "latents":
            base = open_base(config.model)
            shards.require_base(base.name, base.latent_fingerprints)
    except ShardError as error:
        yield str(error)


def _inconsistencies(pairs: ShardSet, latents: ShardSet) -> Iterator[str]:
    """Latents that were not made from these pairs, or an invalid text feature of the empty caption."""
    keys = [[(sample.key, sample.bucket, sample.shard) for sample in shards.samples] for shards in (pairs, latents)]
    if latents.made_from.pairs != pairs.sha256 or keys[0] != keys[1]:
        yield f"{latents.folder} was not made from {pairs.folder}: delete {latents.folder} and run data_prep again"
    try:
        if not bool(latents.empty_text().isfinite().all()):
            yield f"{latents.folder / EMPTY_TEXT_FILE} holds NaN or infinite values: {REMEDY}"
    except ShardError as error:
        yield str(error)


def _shard_problems(sets: list[ShardSet], workers: int | None) -> Iterator[str]:
    """Check the bytes of every shard and every sample in it."""
    work = [(shards, shard) for shards in sets for shard in shards.shards]
    with (
        progress_bar("verifying", sum(map(len, sets)), "clip") as bar,
        closing(create_engine("local", workers)) as engine,
    ):
        for (shards, shard), problems in zip(work, engine.map(_check_shard, work), strict=True):
            bar.advance(shards.shards[shard]["count"])
            yield from [f"{shards.folder / shard}: {problems.reason}"] if isinstance(problems, Failure) else problems


def _check_shard(work: Work) -> list[str]:
    """Problems of one shard: its checksum, or its samples."""
    shards, shard = work
    path = shards.folder / shard
    try:
        shards.verify_shard(shard)
    except ShardError as error:
        return [str(error)]
    problems = []
    shapes: dict[str, Shapes] = {}  # bucket -> shapes of its first sample
    for i, sample in enumerate(shards.samples):
        if sample.shard == shard:
            try:
                sample_shapes = _sample_shapes(shards, i)
                bucket_shapes = shapes.setdefault(sample.bucket, sample_shapes)
                is_same = bucket_shapes == sample_shapes
                problem = "" if is_same else f"its shapes {sample_shapes} differ from other samples of its bucket"
            except ValueError as error:  # includes ShardError
                problem = str(error)
            if problem:
                problems.append(f"{path}, sample {sample.key}: {problem}: {REMEDY}")
    return problems


def _preview_shapes(shards: ShardSet, i: int) -> Shapes:
    """Shapes of the previews of sample i, of which no lossless pixels are kept. ValueError if one is damaged."""
    record, previews = shards.record(i), shards.read_previews(i)
    if record.keep == "preview" and not {"target", *_reference(shards)} <= previews.keys():
        raise ValueError("it has no preview of its target and its reference")
    if any(len(clip) != record.frames for name, clip in previews.items() if name == "target"):
        raise ValueError("its preview has another number of frames")
    return {name: clip.shape for name, clip in previews.items()}


def _sample_shapes(shards: ShardSet, i: int) -> Shapes:
    """Shapes of sample i, equal for all samples of its bucket. ValueError if it cannot be trained on."""
    if shards.kind == "pairs":
        if shards.record(i).keep:
            return _preview_shapes(shards, i)
        pair = shards.read_pair(i)
        width, height, frames = map(int, shards.samples[i].bucket.split("x"))
        if pair.target.shape != (frames, height, width, 3):
            raise ValueError(f"its target has shape {pair.target.shape}, its bucket is {shards.samples[i].bucket}")
        shapes: Shapes = {"target": pair.target.shape}
        for n, clip in enumerate(pair.references):
            shapes[f"reference{n}"] = clip.shape
    else:
        latents = shards.read_latents(i)
        tensors = {"target": latents.target, "text": latents.text}
        tensors |= {f"reference{n}": latent for n, latent in enumerate(latents.references)}
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"its {name} holds NaN or infinite values")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if not shapes.keys() >= _reference(shards):
        raise ValueError("it has no reference")
    return shapes


def _reference(shards: ShardSet) -> set[str]:
    """The stream that every sample has besides its target: none in shards of a task without references."""
    without = shards.made_from.settings.get("task", {}).get("maker") == NO_REFERENCE
    return set() if without else {"reference0"}

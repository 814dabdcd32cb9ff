"""Prepare all sources of a run (`data.sources`), each into a folder of its own."""

from __future__ import annotations

from pathlib import Path

from data_prep.pipeline import prepare
from data_prep.preview import preview
from data_prep.verify import verify
from iclora_train.config import Config, ConfigError
from iclora_train.data.mixture import describe, open_data, source_config
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel, open_base


def prepare_all(config: Config) -> list[Path]:
    """Prepare data.clips, or each of data.sources that has clips. Returns the folders of all.

    ConfigError as in `prepare`, and for a source with `root` that holds no finished shards, or shards that do not fit
    these settings or the other sources.
    """
    if config.data.sources is None:
        return [prepare(config)]
    for source in config.data.sources:
        if source.clips is not None:
            print(f"source {source.label}: {source.clips} -> {config.data.root_of(source)}")
            prepare(source_config(config, source))
    roots = [Path(root) for root in config.data.roots()]
    if config.share is not None and not all((root / "latents" / "index.json").exists() for root in roots):
        return roots  # other shares are not done
    for line in describe(require_fit(config)):
        print(line)
    return roots


def preview_all(config: Config, base: BaseModel | None) -> list[Path]:
    """Preview data.clips, or each of data.sources that has clips (`preview.preview`). Returns the folders."""
    if config.data.sources is None:
        return [preview(config, base)]
    return [preview(source_config(config, s), base) for s in config.data.sources if s.clips is not None]


def require_fit(config: Config) -> ShardSet:
    """The latents of all sources. ConfigError unless they were made for this base, and fit the settings of the run."""
    base, latents = open_base(config.model), open_data(config, "latents")
    latents.require_base(base.name, base.latent_fingerprints)
    latents.require_settings(config)
    return latents


def verify_all(config: Config) -> list[str]:
    """The problems of the shards in data.root, or of each of data.sources and of their mixture (`verify.verify`)."""
    data = config.data
    if data.sources is None:
        return verify(data.root, data.workers, config)
    problems = []
    for source in data.sources:
        compared = source_config(config, source) if source.clips is not None else None
        problems += verify(data.root_of(source), data.workers, compared)
    if not problems:
        try:
            require_fit(config)
        except ConfigError as error:
            problems.append(str(error))
    return problems

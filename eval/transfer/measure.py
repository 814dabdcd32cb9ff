"""Measure the choices: each is an evaluation of a few conditions on the same windows and seeds, and is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console

from eval.clips.audio_stream import choose_audio
from eval.clips.clip_source import PROTOCOL, ClipCache, device_of
from eval.clips.conditions import (
    ADAPTER_REFERENCE,
    BASE_REFERENCE,
    SWAPPED,
    Item,
    at_strength,
    batches,
    of_each_reference,
)
from eval.clips.judged_adapter import JudgedAdapter, open_effect
from eval.clips.resized import ResizedHeldOut
from eval.clips.sampled import SampledClips
from eval.clips.sampling_ranks import Samplers, SamplingRank, sample_missing
from eval.clips.two_stages import TwoStageClips
from eval.clips.windows import HeldOut
from eval.metrics import DEFINITIONS, Suite
from eval.ranks import sample_together, start_samplers
from eval.run import open_unseen_adapter
from eval.scores import assemble
from eval.scoring.results import Results
from eval.scoring.scorer import Scorer
from eval.suites import suite_of
from eval.transfer.settings import TransferConfig
from eval.transfer.variants import REFERENCE, Variant
from iclora_train.config import ConfigError, require
from iclora_train.config.extra_metrics import require_at_hand
from iclora_train.core.atomic_files import DiskFullError, sha256, write_atomic
from iclora_train.core.fingerprint import digest, plain
from iclora_train.core.records import DamagedFileError, read_json
from iclora_train.core.scores import as_json
from iclora_train.ltx2.base_model import BaseModel, open_base

# of every choice: enough for the gates; of several references each is swapped alone, too
CONDITIONS = (ADAPTER_REFERENCE, BASE_REFERENCE, SWAPPED)
NOT_RESULTS = (  # of `eval`: what does not change the results of a choice
    *("windows", "batch_size", "workers", "against", "report", "junit", "after_training", "budget", "devices", "label"),
)
REPEATS = 10  # timed pairs of steps with the reference and without it
Scores = dict[str, Any]  # the content of a scores.json
T = TypeVar("T")


class Measurements:
    """The windows, the adapter and the base of all choices, and the model that is loaded at the moment."""

    def __init__(self, config: TransferConfig, folder: Path) -> None:
        require_at_hand(config.eval.metrics, config.eval.weights)
        self.config, self.folder = config, folder
        self.base = open_base(config.model)
        self.held_out = HeldOut.open(config, self.base)
        self.audio = choose_audio(config, self.base, self.held_out, device_of(config))
        judged = open_unseen_adapter(config, self.base, self.held_out)
        self.judged: JudgedAdapter = replace(judged, with_audio=self.audio.is_on)
        self.cache = ClipCache(Path(config.runs_dir, config.run, "eval-cells"))
        frames, height, width, _ = self.held_out.pair(self.held_out.windows[0]).target.shape
        self.size = (frames, height, width)
        self._loaded: tuple[tuple[object, ...], SampledClips] | None = None
        self._resized: dict[tuple[int, int, int], HeldOut] = {self.size: self.held_out}
        self._without_model: dict[tuple[int, int, int], Results] = {}  # by size

    def suite(self, variant: Variant) -> Suite:
        """The metrics of clips of the variant's size. fvd is left out: it compares all clips at once."""
        frames, *sides = variant.size
        return suite_of(self.config, self.held_out, min(sides), frames)

    def settings(self, variant: Variant) -> TransferConfig:
        """The settings under which a variant is sampled. Only the reference has attention strengths besides 1."""
        strengths = [1.0, *self.config.transfer.attention_strengths, 0.0] if variant.name == REFERENCE else [1.0]
        model = replace(
            self.config.model,
            precision=variant.precision,
            checkpoint=variant.checkpoint,
            audio=self.audio.setting,  # the same for all choices
        )
        evaluation = replace(self.config.eval, strengths=strengths)
        return replace(self.config, sample=variant.sample, model=model, eval=evaluation)

    def conditions(self, variant: Variant) -> list[str]:
        """Names of the conditions that a variant is measured under."""
        strengths = self.settings(variant).eval.strengths
        with_gates = self.config.transfer.gates or variant.name == REFERENCE
        of_each = of_each_reference(self.config.task.reference_names)
        swapped = [condition.name for condition in of_each if condition.reference == "other"]
        return [
            *((*CONDITIONS, *swapped) if with_gates else CONDITIONS[:1]),
            *(at_strength(s).name for s in dict.fromkeys(strengths) if s < 1),
        ]

    def batches(self) -> list[tuple[Item, ...]]:
        """All windows x seeds in batches."""
        return batches(self.held_out.windows, self.config.eval.seeds, self.config.eval.batch_size)

    def path(self, variant: Variant) -> Path:
        """The file of a finished variant: its name has a hash of everything that its results depend on."""
        config, effect = self.settings(variant), self.config.transfer.effect
        upsampler = self.config.transfer.upsampler
        choice = asdict(replace(variant, name="", axis="", checkpoint=""))
        del choice["audio"]  # below, where it is on
        facts = {
            "protocol": [PROTOCOL, DEFINITIONS],
            "base": open_base(config.model).fingerprint,
            **({"audio": "on"} if self.audio.is_on else {}),
            "adapter": self.judged.sha256,
            "effect": sha256(Path(effect)) if effect is not None and variant.effect_strength is not None else None,
            "upsampler": sha256(Path(upsampler)) if upsampler is not None and variant.two_stage else None,
            "choice": choice,
            "settings": {key: asdict(getattr(config, key)) for key in ("task", "flow")},
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "evaluation": {key: value for key, value in asdict(config.eval).items() if key not in NOT_RESULTS},
            "conditions": self.conditions(variant),
            "windows": [[w.key, w.source, w.partner] for w in self.held_out.windows_and_donors],
            "shards": self.held_out.fingerprint,
        }
        return self.folder / "choices" / f"{digest(plain(facts))[:24]}.json"

    def finished(self, variant: Variant) -> Scores | None:
        """The results of a variant that an earlier run has finished; None without, or if its file is damaged."""
        path = self.path(variant)
        try:
            return read_json(path, dict[str, Any], "") if path.exists() else None
        except DamagedFileError:
            return None

    def measure(self, variant: Variant, samplers: Samplers, console: Console) -> Scores:
        """Sample and measure a variant, and store its results. ConfigError if this base cannot do it."""
        source, suite = self.source(variant), self.suite(variant)
        is_reference = variant.name == REFERENCE
        steps = source.pass_times(self.batches()[0], REPEATS) if is_reference else None  # before others load the CPU
        start_samplers(samplers, console)
        sample_together(source, self.batches(), samplers, console)
        scorer = Scorer(source, self.batches(), suite)
        results = scorer.run(console, known=self._without_model.get(variant.size))
        self._without_model[variant.size] = results
        scores = assemble(source.config, source, suite, results)
        if steps is not None:
            scores["timings"]["step_seconds"] = steps
        with write_atomic(self.path(variant)) as file:
            file.write(as_json(scores))
        return scores

    def source(self, variant: Variant) -> SampledClips:
        """The sampler with the weights and settings of a variant; weights that are loaded already are used again."""
        if self._loaded is None or self._loaded[0] != variant.weights:
            self._loaded = None  # two models would not fit
            self._resized = {self.size: self.held_out}  # the others hold the VAE of the model before
            self._loaded = (variant.weights, self._load(variant))
        source, config = self._loaded[1], self.settings(variant)
        if variant.size not in self._resized:
            self._resized[variant.size] = ResizedHeldOut(self.held_out, variant.size, config.task, source.vae)
        source.restrict(config, self._resized[variant.size], self.conditions(variant))
        return source

    def _load(self, variant: Variant) -> SampledClips:
        config = self.settings(variant)
        base = self._base(variant)
        judged = replace(self.judged, strength=variant.adapter_strength)
        if variant.effect_strength is not None:
            assert config.transfer.effect is not None
            effect = open_effect(Path(config.transfer.effect), config, base, variant.effect_strength)
            judged = replace(judged, effect=effect)
        if not variant.two_stage:
            return SampledClips(config, base, judged, self.held_out, self.cache)
        assert config.transfer.upsampler is not None
        upsampler = Path(config.transfer.upsampler)
        return TwoStageClips(config, base, judged, self.held_out, self.cache, upsampler)

    def _base(self, variant: Variant) -> BaseModel:
        """The base of a variant. ConfigError if the windows were not encoded by its VAE and text encoder."""
        if variant.checkpoint == self.config.model.checkpoint:
            return self.base
        base = open_base(self.settings(variant).model)
        require(
            (base.family, base.version) == (self.base.family, self.base.version),
            f"{variant.checkpoint} is {base.family} {base.version}, the adapter's base {self.base.family} "
            f"{self.base.version}",
        )
        shared = base.latent_fingerprints.keys() & self.base.latent_fingerprints.keys()
        differing = [
            key for key in sorted(shared) if base.latent_fingerprints[key] != self.base.latent_fingerprints[key]
        ]
        require(not differing, f"{variant.checkpoint} has another {', '.join(differing)} than the base of the windows")
        return base


def attempt(variant: Variant, work: Callable[[], T]) -> tuple[T | None, str]:
    """What `work` returns, or None and why the variant cannot be sampled. The task's own settings must be possible."""
    try:
        return work(), ""
    except DiskFullError:
        raise
    except (ConfigError, torch.OutOfMemoryError) as error:
        if variant.name == REFERENCE:
            raise
        memory = isinstance(error, torch.OutOfMemoryError)
        return None, "the GPU has too little memory for it" if memory else str(error)


def sample_for_first(measurements: Measurements, chosen: Sequence[Variant], rank: SamplingRank) -> None:
    """Sample the clips of all choices in a process other than the first, which measures each meanwhile.

    A choice that is not possible here is left to the first process, which says why.
    """

    def sample(variant: Variant) -> None:
        sample_missing(measurements.source(variant), measurements.batches(), rank, lambda _: None)

    for variant in by_loaded_weights([variant for variant in chosen if not variant.obstacle]):
        if measurements.finished(variant) is None:
            attempt(variant, partial(sample, variant))


def by_loaded_weights(chosen: Sequence[Variant]) -> list[Variant]:
    """The variants in an order in which each model is loaded once; the first one stays first."""
    order: dict[tuple[object, ...], list[Variant]] = {}
    for variant in chosen:
        order.setdefault(variant.weights, []).append(variant)
    return [variant for group in order.values() for variant in group]

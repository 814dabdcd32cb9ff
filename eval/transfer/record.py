"""transfer.json: the choices with their costs, and the judged sentences. Schema: eval/transfer/transfer.schema.json."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, TypedDict

import torch

from eval.clips.conditions import ADAPTER_REFERENCE
from eval.judging.verdicts import Outcome
from eval.statistics.estimates import Estimate
from eval.transfer.comparison import Cost, Scores, costs, under
from eval.transfer.measure import Measurements
from eval.transfer.sentences import Line
from eval.transfer.variants import REFERENCE, Variant
from iclora_train.core.atomic_files import sha256

SCHEMA = 1  # increase it when a reader of transfer.json would misread a new file


class ReferenceUse(TypedDict):
    """Whether one of several references is followed. lost: share of the gain that is lost if it alone is swapped."""

    outcome: Outcome
    lost: Estimate


class Row(TypedDict):
    """One choice. cost: None if it was not measured; obstacle: why. references: of several references, the claim that
    each is followed. passes: of the transformer for one clip, and token_passes the same in units of a pass over the
    windows' own number of target tokens."""

    name: str
    axis: str
    settings: dict[str, Any]
    obstacle: str
    cost: Cost | None
    gates: dict[str, Any] | None
    references: dict[str, ReferenceUse]
    seconds_per_clip: float | None
    passes: int
    token_passes: float


class Record(TypedDict):
    """The content of transfer.json."""

    schema: int
    task: str
    primary: str
    adherence: str
    metrics: dict[str, Any]
    base: dict[str, Any]
    adapter: dict[str, Any]
    effect: dict[str, Any] | None
    clips: list[dict[str, Any]]
    seeds: list[int]
    tolerance: float
    choices: list[Row]
    sentences: list[Line]
    provenance: dict[str, Any]


def make_record(
    measurements: Measurements, scores: Mapping[str, Scores], chosen: Sequence[Variant], sentences: list[Line]
) -> Record:
    """The record of all choices. scores: by name, of those that were measured."""
    reference, config = scores[REFERENCE], measurements.config
    attention = {
        f"attention {name.removeprefix('strength ')}": under(reference, name)
        for name in reference["per_window"]["conditions"]
    }
    compared = {**scores, **attention}
    resized = [variant.name for variant in chosen if variant.size != measurements.size]
    all_costs = costs(reference, compared, config.transfer.tolerance, resized)
    rows = [_row(variant, measurements, scores, all_costs) for variant in chosen]
    rows += [_attention_row(name, rows[0], reference, all_costs[name]) for name in attention]
    effect = config.transfer.effect
    return Record(
        schema=SCHEMA,
        task=reference["task"],
        primary=reference["primary"],
        adherence=reference["adherence"],
        metrics=reference["metrics"],
        base=reference["base"],
        adapter=reference["adapter"],
        effect=None if effect is None else {"path": effect, "sha256": sha256(Path(effect))},
        clips=reference["clips"],
        seeds=reference["seeds"],
        tolerance=config.transfer.tolerance,
        choices=rows,
        sentences=sentences,
        provenance=_provenance(measurements),
    )


def _row(
    variant: Variant, measurements: Measurements, scores: Mapping[str, Scores], all_costs: Mapping[str, Cost]
) -> Row:
    measured = scores.get(variant.name)
    tokens = prod(variant.size) / prod(measurements.size)
    return Row(
        name=variant.name,
        axis=variant.axis,
        settings=_settings(variant),
        obstacle=variant.obstacle,
        cost=all_costs.get(variant.name),
        gates=None if measured is None else _gates(measured),
        references={} if measured is None else _references(measured),
        seconds_per_clip=None if measured is None else measured["timings"]["seconds_per_clip"][ADAPTER_REFERENCE],
        passes=sum(count for count, _, _ in variant.passes),
        token_passes=round(sum(count * share for count, share, _ in variant.passes) * tokens, 3),
    )


def _attention_row(name: str, reference_row: Row, reference: Scores, cost: Cost) -> Row:
    """The row of an attention strength: a condition of the reference, not a choice that is sampled apart."""
    strength = name.split()[1]
    return Row(
        name=name,
        axis="attention strength",
        settings={**reference_row["settings"], "attention_strength": float(strength)},
        obstacle="",
        cost=cost,
        gates=None,
        references={},
        seconds_per_clip=reference["timings"]["seconds_per_clip"].get(f"strength {strength}"),
        passes=reference_row["passes"],
        token_passes=reference_row["token_passes"],
    )


def _gates(scores: Scores) -> dict[str, Any]:
    """The outcome of all gates, and of each."""
    return {
        "outcome": scores["gates"]["outcome"],
        "each": {v["name"]: v["outcome"] for v in scores["verdicts"] if v["kind"] == "gate"},
    }


def _references(scores: Scores) -> dict[str, ReferenceUse]:
    """The claim `follows <name>` of each of several references; none for a single one."""
    claims = {verdict["name"]: verdict for verdict in scores["verdicts"]}
    return {
        name: ReferenceUse(outcome=claim["outcome"], lost=claim["value"])
        for name in scores.get("references", {})
        if (claim := claims.get(f"follows {name}")) is not None
    }


def _settings(variant: Variant) -> dict[str, Any]:
    frames, height, width = variant.size
    return {
        "sample": asdict(variant.sample),
        "precision": variant.precision,
        "checkpoint": variant.checkpoint,
        "size": f"{width}x{height}x{frames}",
        "adapter_strength": variant.adapter_strength,
        "effect_strength": variant.effect_strength,
        "two_stage": variant.two_stage,
    }


def _provenance(measurements: Measurements) -> dict[str, Any]:
    config = measurements.config
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "settings": {section: asdict(getattr(config, section)) for section in ("task", "transfer", "eval", "sample")},
        "audio": {**measurements.audio.json_facts, **measurements.judged.audio_modules},
        "shards": measurements.held_out.fingerprint,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }

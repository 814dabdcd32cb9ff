"""Run all choices, from settings to transfer.json and transfer.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from eval.clips.judged_adapter import NONE, existing_adapter
from eval.clips.sampling_ranks import Samplers, samplers, sampling_rank
from eval.run import folder_by_adapter
from eval.scoring.scorer import print_lines
from eval.statistics.estimates import format_estimate
from eval.transfer.comparison import Scores
from eval.transfer.estimate import print_estimate
from eval.transfer.measure import Measurements, attempt, by_loaded_weights, sample_for_first
from eval.transfer.page import page
from eval.transfer.record import Record, make_record
from eval.transfer.sentences import Evidence, Line, lines, reference_share
from eval.transfer.settings import TransferConfig
from eval.transfer.variants import REFERENCE, Variant, variants
from iclora_train.config import require
from iclora_train.core.atomic_files import exclusive
from iclora_train.core.console import make_console
from iclora_train.core.files_together import write_together
from iclora_train.core.results_folder import results_folder as folder_of_protocol
from iclora_train.core.scores import as_json


def results_folder(config: TransferConfig) -> Path:
    """`transfer` in the run's folder for its own adapter, else with the adapter's name; eval.label is added."""
    folder = folder_by_adapter(config, "transfer")
    return folder_of_protocol(config, folder) if config.eval.label else folder


def transfer(config: TransferConfig) -> list[str]:
    """Measure every choice; returns the names of required sentences that do not hold.

    Of several processes all sample; the first one measures and writes, the others return an empty list. An interrupted
    run continues: choices that are finished are not measured again. Raises ConfigError as `evaluate` does, and if the
    task's own settings cannot be sampled.
    """
    require(config.videos is None, "videos= has no adapter to sample: leave it out")
    require(config.adapter != NONE, "adapter=none has nothing to transfer: give adapter=<file>")
    existing_adapter(config)
    console, folder, rank = make_console(), results_folder(config), sampling_rank(config)
    if rank.rank > 0:
        measurements = Measurements(config, folder)
        sample_for_first(measurements, _variants(measurements), rank)
        return []
    with exclusive(folder, "stop it; this command then continues with its clips"):
        measurements = Measurements(config, folder)
        with samplers("eval.transfer", rank, measurements.audio.overrides) as group:
            scores, chosen = _measure_all(measurements, _variants(measurements), group, console)
        sentences = lines(_evidence(measurements, chosen, scores))
        record = make_record(measurements, scores, chosen, sentences)
        files = [(folder / "transfer.json", as_json(record)), (folder / "transfer.html", page(record))]
        write_together(files)
    print_lines(console, *_summary(record), *(str(path) for path, _ in files))
    return [
        line["name"] for line in sentences if line["name"] in config.transfer.required and line["outcome"] != "holds"
    ]


def _variants(measurements: Measurements) -> list[Variant]:
    return variants(measurements.config, measurements.size, measurements.base.geometry, measurements.audio.is_on)


def _measure_all(
    measurements: Measurements, chosen: Sequence[Variant], group: Samplers, console: Console
) -> tuple[dict[str, Scores], list[Variant]]:
    """The scores of the choices by name, and the choices with the obstacles that showed when they were sampled."""
    reference = chosen[0]
    possible = [variant for variant in chosen if not variant.obstacle]
    finished = {variant.name: measurements.finished(variant) for variant in possible}
    scores: dict[str, Scores] = {name: result for name, result in finished.items() if result is not None}
    note = measurements.judged.remarks
    print_lines(
        console,
        f"{measurements.config.task.name}: {measurements.judged.path}",
        measurements.audio.line,
        *([f"note: {note}"] if note else []),
    )
    todo = by_loaded_weights([variant for variant in possible if variant.name not in scores])
    if todo:
        cost = measurements.source(reference).measure_cost(measurements.batches()[0])
        print_estimate(measurements, chosen, scores, cost, group.count, console)
    obstacles = {}
    for number, variant in enumerate(todo, 1):
        print_lines(console, f"{number} of {len(todo)}: {variant.name}")
        result, obstacle = attempt(variant, partial(measurements.measure, variant, group, console))
        if result is None:
            obstacles[variant.name] = obstacle
            print_lines(console, f"{variant.name} is not possible here: {obstacle}")
        else:
            scores[variant.name] = result
    return scores, [replace(v, obstacle=obstacles.get(v.name, v.obstacle)) for v in chosen]


def _evidence(measurements: Measurements, chosen: Sequence[Variant], scores: dict[str, Scores]) -> Evidence:
    config, held_out = measurements.config, measurements.held_out
    latents = held_out.latents(held_out.windows[0])
    return Evidence(
        scores=scores,
        variants=chosen,
        reference_tokens=reference_share(
            tuple(latents.target.shape), [tuple(reference.shape) for reference in latents.references]
        ),
        distilled=config.transfer.distilled,
        tolerance=config.transfer.tolerance,
    )


def _summary(record: Record) -> list[str]:
    """Console lines: what each choice costs, then each sentence."""
    metric = record["primary"]
    summary = [f"{metric}: {record['metrics'][metric]['title']}, against the {REFERENCE}"]
    for row in record["choices"]:
        if row["cost"] is None:
            summary.append(f"  {row['name']:26} not measured: {row['obstacle']}")
        elif row["axis"] != "reference" and metric in row["cost"]["differences"]:
            cost = row["cost"]
            kept = "" if cost["kept"] is None else f"  keeps {format_estimate(cost['kept'], 2)}"
            change = format_estimate(cost["differences"][metric]["difference"])
            summary.append(f"  {row['name']:26} {change}{kept}  {cost['outcome']}")
    return [*summary, *(_sentence_line(line) for line in record["sentences"])]


def _sentence_line(line: Line) -> str:
    value = "" if line["value"] is None else f"{format_estimate(line['value'])}, required {line['required']}. "
    return f"{line['outcome']:18} {line['sentence']} ({line['name']}): {value}{line['note']}".rstrip()

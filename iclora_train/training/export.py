"""Plan the evaluation before step 0; at the end export the adapter with card and workflow, and evaluate it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from iclora_train.adapters import card, lora
from iclora_train.adapters.conditions import conditions_metadata
from iclora_train.adapters.loaders import loader_limits
from iclora_train.adapters.metadata import DOWNSCALE, FAMILY, FRAME, KIND, PLAIN, TEMPORAL, VERSION, frame_text
from iclora_train.adapters.precision import save_rounded
from iclora_train.adapters.reference_makers import makers_metadata
from iclora_train.adapters.references import references_metadata, use_metadata
from iclora_train.adapters.sound_context import sound_metadata
from iclora_train.config import Config, ConfigError, Task, require
from iclora_train.config.extra_metrics import require_at_hand
from iclora_train.config.hydra_app import run_module
from iclora_train.core.atomic_files import sha256
from iclora_train.core.fingerprint import config_hash
from iclora_train.core.local_ranks import evaluation_processes
from iclora_train.core.ranks import single_process_environment
from iclora_train.core.records import DamagedFileError
from iclora_train.core.results_folder import results_folder
from iclora_train.core.scores import find_scores, judged_adapter, read_comparable_scores, read_scores
from iclora_train.data.batch_sampler import clips_per_batch
from iclora_train.data.clip_hashes import write_trained_on
from iclora_train.data.heldout import EvaluationPlan, TooFewWindowsError
from iclora_train.data.mixture import open_data, source_metadata
from iclora_train.data.prompts import TEMPLATE_KEY
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.training.checkpointing import batches_per_step
from iclora_train.training.lightning_module import ICLoRA


def export(path: Path, module: ICLoRA, base: BaseModel) -> None:
    """Write the adapter file with its metadata, read it back, and write next to it the list of its training clips, card
    and workflow."""
    config = module.config
    shards = open_data(config, "latents")
    sizes = clips_per_batch(shards, "train", config.data.batch_size, config.data.tokens_per_batch).values()
    metadata: dict[str, Any] = {
        **_reference_metadata(config.task),
        "base_model": base.name,
        "base_model_family": base.family,
        "base_model_version": base.version,
        "base_fingerprint": base.fingerprint,
        "task": config.task.name,
        "trigger": config.task.trigger,
        "config_hash": config_hash(config),
        "rank": _range(rank for _, rank in module.ranks),
        "steps": config.trainer["max_steps"],
        "learning_rate": config.optim.optimizer.get("lr", "the optimizer's own"),
        "batch_size": _range(sizes),
        "clips": shards.splits["train"],
        "size": f"{config.data.width}x{config.data.height}x{config.data.frames}",
        "fps": config.data.fps or "of the clips",
        **makers_metadata(config.task),
        **conditions_metadata(config.task.conditions),
        **source_metadata(shards),
    }
    batches = batches_per_step(config)
    if batches > 1:
        metadata["batches_per_step"] = batches
    if config.data.prompt is not None:
        metadata[TEMPLATE_KEY] = config.data.prompt
    with module.averaged():
        weights = lora.adapter_weights(module.transformer)
        slots = next((parameter.detach().clone() for parameter in module.slots), None)
    adapter = lora.Adapter(weights, _as_text(metadata), slots)
    save_rounded(path, adapter, config.export_dtype)
    write_trained_on(path, Path(config.data.root), shards)
    card.write_card(path)


def _reference_metadata(task: Task) -> dict[str, Any]:
    """How the references of a task are used, or that it has none."""
    metadata: dict[str, Any] = {
        DOWNSCALE: task.reference_downscale,
        **use_metadata(task.reference_use),
        **references_metadata(task.more_references),
    }
    if not task.has_reference:
        metadata[KIND] = PLAIN
    if task.reference_frame is not None:
        metadata[FRAME] = frame_text(task.reference_frame)
    if task.reference_temporal_scale != 1:
        metadata[TEMPORAL] = task.reference_temporal_scale
    return metadata | sound_metadata(task)


def _as_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in metadata.items()}


def loader_notes(config: Config, base: BaseModel) -> list[str]:
    """A line for each published program that cannot place the references of the task; none for a base of our own."""
    size = f"{config.data.width}x{config.data.height}x{config.data.frames}"
    given = conditions_metadata(config.task.conditions)
    metadata = {**_reference_metadata(config.task), **given, FAMILY: base.family, VERSION: base.version, "size": size}
    slots = torch.zeros(len(config.task.reference_names), 1) if config.task.reference_slots else None
    return _loader_notes(lora.Adapter({}, _as_text(metadata), slots))


def _loader_notes(adapter: lora.Adapter) -> list[str]:
    published = card.published_version(adapter.metadata) is not None
    return [f"note: {line}" for line in loader_limits(adapter)] if published else []


def _range(values: Iterable[int]) -> str:
    """`8`, or `8 to 32` for different values."""
    return " to ".join(map(str, dict.fromkeys((min(values := list(values)), max(values)))))


def require_whole(adapter: Path) -> None:
    """ConfigError if the adapter of a finished run is damaged, for example copied by half."""
    try:
        lora.read(adapter)
    except ConfigError as error:
        raise ConfigError(
            f"{adapter} is damaged ({error}): delete it and run the same command, which exports it again"
        ) from error


def evaluate(config: Config, folder: Path, adapter: Path) -> None:
    """Evaluate the adapter with `python -m eval`, unless the run folder has scores of exactly this file."""
    path = results_folder(config, folder / "eval") / "scores.json"
    if not _is_judged(path, adapter):
        # The evaluation runs without the launcher's variables, which tell how many GPUs this node has for the run.
        devices = [f"eval.devices={count}"] if (count := evaluation_processes(config)) > 1 else []
        run_module("eval", *devices, environment=single_process_environment())


def _is_judged(scores: Path, adapter: Path) -> bool:
    """Whether `scores` holds the evaluation of exactly this adapter. A damaged file is replaced by a new evaluation."""
    if not scores.exists():
        return False
    try:
        return judged_adapter(scores) == sha256(adapter)
    except DamagedFileError as error:
        print(f"warning: {error}", file=sys.stderr)
        return False


def finish(config: Config, folder: Path, adapter: Path, console: Console) -> None:
    """Add the scores to the card, then print the primary metric of the evaluation and the paths of all results."""
    results = results_folder(config, folder / "eval")
    scores_path = results / "scores.json"
    is_current = _is_judged(scores_path, adapter)
    scores = read_scores(scores_path) if is_current else None
    card_path, *workflows = card.write_card(adapter, scores_path if is_current else None)
    if scores is not None:
        metric = scores["primary"]
        for condition, row in scores["cells"].items():
            if metric not in row:
                continue
            value = row[metric]
            has_interval = value["low"] is not None
            interval = f"[{value['low']:.3f}, {value['high']:.3f}]" if has_interval else "(one recording)"
            console.print(f"{metric:>12}  {condition:18} {value['mean']:.3f}  {interval}")
    for line in _loader_notes(lora.read(adapter)):
        console.print(line)
    for name, path in (
        ("adapter", adapter),
        ("card", card_path),
        *(("ComfyUI", path) for path in workflows),
        ("samples", folder / "samples"),
        ("log", folder / "metrics.csv"),
        ("report", results / "report.html"),
    ):
        if path.exists():
            console.print(f"{name:8} {path}")


def plan_evaluation(config: Config, shards: ShardSet, console: Console) -> bool:
    """Print how the evaluation is adapted to the data. Returns whether there are windows to evaluate.

    ConfigError if the evaluation would be refused after training.
    """
    try:
        require_at_hand(config.eval.metrics, config.eval.weights)
        plan = EvaluationPlan.of(config, shards)
        _require_same_windows(config, plan)
    except TooFewWindowsError as error:
        console.print(f"note: no evaluation after training: {error}")
        return False
    except ConfigError as error:
        raise ConfigError(f"{error}. To train without an evaluation set eval.after_training=false") from error
    for note in plan.notes:
        console.print(f"note: {note}")
    return True


def _require_same_windows(config: Config, plan: EvaluationPlan) -> None:
    """ConfigError unless the evaluation has the windows and seeds of eval.against, where no budget chooses them."""
    against = config.eval.against
    if against is None:
        return
    require(Path(against).exists(), f"eval.against={against} does not exist")
    earlier = read_comparable_scores(find_scores(Path(against)))
    same = [clip.get("key") for clip in earlier["clips"]] == [sample.key for sample in plan.samples]
    require(
        config.eval.budget_seconds is not None or (same and earlier["seeds"] == config.eval.seeds),
        f"eval.against={against} cannot be compared with this run's evaluation: its windows or seeds differ. Evaluate "
        "it again with the same data, eval.windows and eval.seeds",
    )

"""One evaluation from settings to report: the whole of it on one page."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from eval import scores as scores_json
from eval.cells import batches, grid
from eval.render import Renderer, Store
from eval.report import write_report
from eval.scoring import Scorer, progress_bar, say
from eval.windows import HeldOut
from iclora_train.config import Config
from iclora_train.files import sha256
from iclora_train.ltx2.chosen import base_of


def adapter_path(config: Config) -> Path:
    """The adapter to judge: `adapter=<file>`, or the one the run has exported."""
    return Path(config.adapter) if config.adapter else Path(config.runs_dir, config.run, "adapter.safetensors")


def results_folder(config: Config) -> Path:
    """Where scores.json and report.html go: in the run's folder; a named adapter has a folder of its own there."""
    run = Path(config.runs_dir, config.run)
    if config.adapter is None:
        return run / "eval"
    path = Path(config.adapter)
    return run / f"eval-{path.stem}-{sha256(path)[:8]}"


def evaluate(config: Config) -> Path:
    """Judge an adapter; returns the report. Interrupted, the same command goes on where it was.

    ConfigError: no adapter, an adapter or shards of another base, leakage, too few windows.
    """
    started = time.perf_counter()
    console = Console()
    base = base_of(config.model)
    held = HeldOut.open(config, base)
    adapter = adapter_path(config)
    renderer = Renderer(config, base, adapter, held, Store(Path(config.runs_dir, config.run, "eval-cells")))
    scorer = Scorer(renderer, batches(held.windows, config.eval.seeds, config.eval.batch_size))
    say(console, f"{config.task.name}: {adapter} on {len(held.windows)} windows x {len(config.eval.seeds)} seeds")
    with progress_bar(console) as progress:
        measured = scorer.run(grid(config.eval.strengths), progress)
    scores = scores_json.assemble(config, renderer, measured, adapter, time.perf_counter() - started)
    folder = results_folder(config)
    scores_json.write(folder / "scores.json", scores)
    report = write_report(folder, scores, scorer)
    say(console, *scores_json.headline(scores), f"scores  {folder / 'scores.json'}", f"report  {report}")
    return report

"""One evaluation from settings to report: the whole of it on one page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from eval import scores as scores_json
from eval.clips.clip_source import ClipCache, ClipSource
from eval.clips.conditions import batches
from eval.clips.external import VideoFolder
from eval.clips.judged_adapter import NONE, adapter_path, open_adapter
from eval.clips.sampled import SampledClips
from eval.clips.windows import HeldOut
from eval.compare import compare, load
from eval.judging.symptoms import find_symptoms
from eval.metrics import Suite
from eval.report import wandb_log
from eval.report.exhibits import exhibits
from eval.report.page import write_page
from eval.scoring.scorer import Scorer, say
from eval.synthetic.run import ProbeClips, run_probes
from iclora_train.config import Config, require
from iclora_train.core.atomic_files import sha256
from iclora_train.core.progress import progress_bar
from iclora_train.ltx2.base_model import open_base


def results_folder(config: Config) -> Path:
    """Where scores.json and report.html go: into the run's folder, what is named by hand in a folder of its own."""
    run = Path(config.runs_dir, config.run)
    if config.videos is not None:
        return run / f"eval-videos-{Path(config.videos).resolve().name}"
    if config.adapter is None or config.adapter == NONE:
        return run / ("eval" if config.adapter is None else "eval-none")
    path = adapter_path(config)
    return run / f"eval-{path.stem}-{sha256(path)[:8]}"


def open_source(config: Config) -> ClipSource:
    """Where the clips come from: the sampler with the adapter, or a folder of videos. ConfigError: it does not fit."""
    base = open_base(config.model)
    held = HeldOut.open(config, base)
    store = ClipCache(Path(config.runs_dir, config.run, "eval-cells"))
    if config.videos is not None:
        require(config.adapter is None, "videos= and adapter= each name what is judged: give one of them, not both")
        return VideoFolder(config, base, held, store)
    return SampledClips(config, base, open_adapter(config, base), held, store)


def evaluate(config: Config) -> Path:
    """Judge an adapter, or a folder of videos; returns the report. Interrupted, the same command goes on where it was.

    ConfigError: no adapter, an adapter or shards of another base, leakage, too few windows, clips that are missing, of
    another size, or shifted in time, and an eval.against that cannot be compared.
    """
    started = time.perf_counter()
    console = Console()
    before = None if config.eval.against is None else load(Path(config.eval.against))
    source, suite = open_source(config), Suite.of(config.task)
    scorer = Scorer(source, batches(source.held.windows, source.seeds, config.eval.batch_size), suite)
    _announce(source, suite, config, console)
    signals, shown = _signals(source, console) if isinstance(source, SampledClips) else (None, {})
    results = scorer.run(console)
    found = scores_json.assemble(config, source, suite, results)
    found["simple"] = signals
    found["timings"]["wall_seconds"] = round(time.perf_counter() - started, 1)
    found["flags"] = find_symptoms(found)
    folder = results_folder(config)
    scores_json.write(folder / "scores.json", found)
    shown_clips = wandb_log.keeping(exhibits(scorer, suite.control), folder, config)
    compared = None if before is None else compare(before, found)
    report = write_page(folder, found, shown_clips, shown, compared)
    wandb_log.log(folder, found, config)
    say(console, *scores_json.headline(found), f"scores  {folder / 'scores.json'}", f"report  {report}")
    return report


def _signals(renderer: SampledClips, console: Console) -> tuple[dict[str, Any], dict[str, ProbeClips]]:
    """The simple signals, with a bar over their clips."""
    with progress_bar("simple signals", None, "clip", console=console) as bar:
        found, shown = run_probes(renderer, bar.update)
    say(console, f"  simple signals     {found['seconds']:7.1f} s   {found['passed']} of {found['of']} pass")
    return found, shown


def _announce(source: ClipSource, suite: Suite, config: Config, console: Console) -> None:
    """What is judged on what, and what should be known of it."""
    count = f"{len(source.held.windows)} windows x {len(source.seeds)} seeds"
    say(console, f"{config.task.name}: {source.judged.path} on {count}")
    notes = [f"{absent.metric} is not run: {absent.reason}" for absent in suite.not_run]
    say(console, *(f"note: {note}" for note in (source.judged.note, *notes) if note is not None))

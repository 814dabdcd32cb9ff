"""Run one evaluation, from settings to report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.clips.clip_source import ClipCache, ClipSource
from eval.clips.conditions import batches
from eval.clips.external import VideoFolder
from eval.clips.judged_adapter import NONE, adapter_path, open_adapter
from eval.clips.leakage import require_unseen
from eval.clips.sampled import SampledClips
from eval.clips.windows import HeldOut
from eval.compare import compare, load
from eval.judging.harm import harm
from eval.judging.symptoms import find_symptoms
from eval.metrics import Suite
from eval.report import wandb_log
from eval.report.exhibits import exhibits
from eval.report.outputs import save_outputs
from eval.report.page import write_page
from eval.scores import assemble, headline, write
from eval.scoring.scorer import Scorer, print_lines
from eval.synthetic.run import ProbeClips, run_probes
from iclora_train.config import Config, require
from iclora_train.core.atomic_files import exclusive, sha256
from iclora_train.core.console import make_console
from iclora_train.core.progress import progress_bar
from iclora_train.ltx2.base_model import open_base


def results_folder(config: Config) -> Path:
    """Folder of scores.json and report.html: `eval` for the run's own adapter, another name for anything else."""
    run = Path(config.runs_dir, config.run)
    if config.videos is not None:
        return run / f"eval-videos-{Path(config.videos).resolve().name}"
    if config.adapter is None or config.adapter == NONE:
        return run / ("eval" if config.adapter is None else "eval-none")
    path = adapter_path(config)
    return run / f"eval-{path.stem}-{sha256(path)[:8]}"


def open_source(config: Config) -> ClipSource:
    """The source of the clips: the sampler with the adapter, or a folder of videos.

    Raises ConfigError if adapter, shards or videos do not fit the settings.
    """
    base = open_base(config.model)
    held_out = HeldOut.open(config, base)
    cache = ClipCache(Path(config.runs_dir, config.run, "eval-cells"))
    if config.videos is not None:
        require(config.adapter is None, "videos= and adapter= cannot be evaluated together: give one of them")
        return VideoFolder(config, base, held_out, cache)
    judged = open_adapter(config, base)
    if judged.adapter is not None:
        known = held_out.known_clips(Path(config.data.root))
        judged = judged.with_note(require_unseen(config, adapter_path(config), known, held_out.divided))
    return SampledClips(config, base, judged, held_out, cache)


def evaluate(config: Config) -> Path:
    """Evaluate an adapter or a folder of videos; returns the path of the report. An interrupted evaluation resumes.

    Raises ConfigError for a missing adapter, an adapter or shards of another base, leakage, too few windows, clips that
    are missing, differ in size or are shifted in time, an `eval.against` that cannot be compared, and another process
    that evaluates into the same folder.
    """
    started = time.perf_counter()
    console = make_console()
    earlier = None if config.eval.against is None else load(Path(config.eval.against))
    source = open_source(config)
    folder = results_folder(config)
    with exclusive(folder, "stop it; this evaluation then continues with its clips"):
        return _evaluate(config, source, folder, earlier, console, started)


def _evaluate(
    config: Config, source: ClipSource, folder: Path, earlier: dict[str, Any] | None, console: Console, started: float
) -> Path:
    """Sample, measure, and write the results into `folder`. started: of the evaluation, by `time.perf_counter`."""
    frames, *size, _ = source.held_out.pair(source.held_out.windows[0]).target.shape
    suite = Suite.of(config.task, min(size), frames)
    scorer = Scorer(source, batches(source.held_out.windows, source.seeds, config.eval.batch_size), suite)
    _print_header(source, suite, config, console)
    probe_scores, probe_clips = _probes(source, console) if isinstance(source, SampledClips) else (None, {})
    results = scorer.run(console)
    scores = assemble(config, source, suite, results)
    scores["simple"] = probe_scores
    scores["timings"]["wall_seconds"] = round(time.perf_counter() - started, 1)
    scores["harm"] = harm(scores)
    scores["flags"] = find_symptoms(scores)
    write(folder / "scores.json", scores)
    windows = wandb_log.save_clips(exhibits(scorer, suite.control), folder, config)
    windows = save_outputs(windows, folder, source.seeds[0])
    comparison = None if earlier is None else compare(earlier, scores)
    report = write_page(folder, scores, windows, probe_clips, comparison)
    wandb_log.log(folder, scores, config)
    print_lines(console, *headline(scores), f"scores  {folder / 'scores.json'}", f"report  {report}")
    return report


def _probes(source: SampledClips, console: Console) -> tuple[dict[str, Any], dict[str, ProbeClips]]:
    """Run the synthetic probes under a progress bar."""
    with progress_bar("synthetic probes", None, "clip", console=console) as bar:
        scores, clips = run_probes(source, bar.update)
    print_lines(console, f"  synthetic probes   {scores['seconds']:7.1f} s   {scores['passed']} of {scores['of']} pass")
    return scores, clips


def _print_header(source: ClipSource, suite: Suite, config: Config, console: Console) -> None:
    """Print what is evaluated, on how many clips, and notes about it."""
    count = f"{len(source.held_out.windows)} windows x {len(source.seeds)} seeds"
    print_lines(console, f"{config.task.name}: {source.judged.path} on {count}")
    notes = [f"{missing.metric} is not run: {missing.reason}" for missing in suite.not_run]
    print_lines(
        console, *(f"note: {note}" for note in (source.judged.note, *source.held_out.notes, *notes) if note is not None)
    )

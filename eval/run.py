"""Run one evaluation, from settings to report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.clips.clip_source import ClipCache, ClipSource
from eval.clips.conditions import Item, batches
from eval.clips.cost import ClipCost, Forecast
from eval.clips.external import VideoFolder
from eval.clips.judged_adapter import NONE, JudgedAdapter, adapter_path, open_adapter
from eval.clips.leakage import require_unseen
from eval.clips.sampled import SampledClips
from eval.clips.sampling_ranks import FIRST, Samplers, SamplingRank, samplers, sampling_rank
from eval.clips.windows import HeldOut
from eval.compare import compare, load, require_comparable
from eval.estimate import estimate_sampling
from eval.judging.answer import answer
from eval.judging.harm import harm
from eval.judging.symptoms import find_symptoms
from eval.junit import write_claims
from eval.metrics import Suite
from eval.metrics.extra import ClipFeatures, clip_features
from eval.planning import apply_budget
from eval.ranks import sample_for_first, sample_together, start_samplers
from eval.report import wandb_log
from eval.report.exhibits import exhibits
from eval.report.media import Media
from eval.report.outputs import save_outputs
from eval.report.page import sizes, write_page
from eval.scores import assemble, headline, identity
from eval.scoring.measuring_time import NOT_MEASURED, MeasuringTime, measure_measuring
from eval.scoring.scorer import Scorer, print_lines
from eval.scoring.sound_scores import measures_sound
from eval.sequential import Work, sample_until_decided
from eval.suites import control_notes, suite_of
from eval.synthetic.run import ProbeClips, ProbeSampler, probe_sampler, run_probes, unfinished_probes
from iclora_train.config import Config, ConfigError, require
from iclora_train.config.extra_metrics import require_at_hand
from iclora_train.core.atomic_files import exclusive, seen_alive, sha256
from iclora_train.core.console import make_console
from iclora_train.core.fingerprint import digest
from iclora_train.core.progress import progress_bar
from iclora_train.core.results_folder import is_of_videos
from iclora_train.core.results_folder import results_folder as folder_of_protocol
from iclora_train.core.scores import values_digest
from iclora_train.core.training_time import evaluation_budget
from iclora_train.ltx2.base_model import BaseModel, open_base


def results_folder(config: Config) -> Path:
    """Folder of scores.json and report.html: by what is evaluated, and by protocol (`core.results_folder`).

    The second of two folders of videos with the same name has a hash of its path in the name of its results.
    """
    folder = _folder_of_adapter(config)
    results = folder_of_protocol(
        config, folder.with_name(f"{folder.name}-sequential") if config.eval.sequential else folder
    )
    if config.videos is None or is_of_videos(results, Path(config.videos)):
        return results
    path = str(Path(config.videos).resolve())
    return folder_of_protocol(config, folder.with_name(f"{folder.name}-{digest(path)[:8]}"))


def _folder_of_adapter(config: Config) -> Path:
    """`eval` in the run's folder for the run's own adapter, another name for anything else."""
    if config.videos is not None:
        return Path(config.runs_dir, config.run, f"eval-videos-{Path(config.videos).resolve().name}")
    return folder_by_adapter(config, "eval")


def folder_by_adapter(config: Config, command: str) -> Path:
    """A folder of results: `command` in the run's folder for the run's own adapter, else with the adapter's name."""
    run = Path(config.runs_dir, config.run)
    if config.adapter is None or config.adapter == NONE:
        return run / (command if config.adapter is None else f"{command}-none")
    path = adapter_path(config)
    return run / f"{command}-{path.stem}-{sha256(path)[:8]}"


def open_source(config: Config) -> ClipSource:
    """The source of the clips: the sampler with the adapter, or a folder of videos.

    Raises ConfigError if adapter, shards or videos do not fit the settings.
    """
    require(
        not config.task.video_given,
        f"task {config.task.name} makes the sound of a given video, and eval judges videos: make the sounds with "
        "`python -m iclora_train.generate source=CLIP audio=generate`, and compare them by `python -m eval.sound`",
    )
    base = open_base(config.model)
    held_out = HeldOut.open(config, base)
    cache = ClipCache(Path(config.runs_dir, config.run, "eval-cells"))
    if config.videos is not None:
        require(config.adapter is None, "videos= and adapter= cannot be evaluated together: give one of them")
        return VideoFolder(config, base, held_out, cache)
    return SampledClips(config, base, open_unseen_adapter(config, base, held_out), held_out, cache)


def open_unseen_adapter(config: Config, base: BaseModel, held_out: HeldOut) -> JudgedAdapter:
    """The adapter under evaluation. ConfigError if it does not fit, or was trained on the clips it is judged on."""
    judged = open_adapter(config, base)
    if judged.adapter is None:
        return judged
    known = held_out.known_clips(Path(config.data.root))
    return judged.with_note(require_unseen(config, adapter_path(config), known, held_out.divided))


def evaluate(config: Config) -> Path:
    """Evaluate an adapter or a folder of videos; returns the path of the report. An interrupted evaluation resumes.

    Raises ConfigError for a missing adapter, an adapter or shards of another base, leakage, too few windows, clips that
    are missing, differ in size or are shifted in time, an `eval.against` that cannot be compared, and another process
    that evaluates into the same folder.
    """
    started = time.perf_counter()
    console = make_console()
    require_at_hand(config.eval.metrics, config.eval.weights)
    earlier = None if config.eval.against is None else load(Path(config.eval.against))
    rank = sampling_rank(config)
    source = open_source(config)
    folder = results_folder(config)
    if rank.rank > 0:
        sample_for_first(source, folder, rank)
        return folder / "report.html"
    with exclusive(folder, "stop it; this evaluation then continues with its clips"), seen_alive(folder / FIRST):
        return _evaluate(source, folder, earlier, console, started, rank)


def _evaluate(
    source: ClipSource,
    folder: Path,
    earlier: dict[str, Any] | None,
    console: Console,
    started: float,
    rank: SamplingRank,
) -> Path:
    """Sample, measure, and write the results into `folder`. started: of the evaluation, by `time.perf_counter`."""
    frames, *size, _ = source.held_out.pair(source.held_out.windows[0]).target.shape
    suite = suite_of(source.config, source.held_out, min(size), frames)
    suite = replace(suite, with_sound=measures_sound(source))
    features = clip_features(source.config.eval)
    plan, (cost, measuring) = _plan(source, suite, features, folder, rank, console)
    config = source.config  # with the windows, seeds and steps of the plan
    if earlier is not None:
        require_comparable(earlier, identity(source, suite))
    _print_header(source, suite, config, console)
    has_probes = plan is None or bool(plan["probes"])
    overrides = [] if source.audio_choice is None else source.audio_choice.overrides
    with samplers("eval", rank, overrides) as group:
        work = _work(source, suite, folder, group, console)
        scorer = Scorer(source, work.batches, work.suite, features)
        costs = (cost or work.cost, measuring)
        probe_scores, probe_clips, forecast = _sample(source, work.batches, has_probes, costs, group, console)
    results = scorer.run(console, forecast, work.known)
    scores = assemble(config, source, suite, results, work.sequential)
    scores |= {"simple": probe_scores, **({} if plan is None else {"plan": plan})}
    scores["timings"]["wall_seconds"] = round(time.perf_counter() - started, 1)
    scores["harm"] = harm(scores)
    scores |= {"flags": find_symptoms(scores), "digest": values_digest(scores)}
    media = Media(folder, single=config.eval.report == "single", with_files=wandb_log.enabled(config))
    windows = save_outputs(exhibits(scorer, suite.control), media, source.seeds[0])
    comparison = None if earlier is None else compare(earlier, scores, strict=False)
    report = write_page(media, scores, windows, probe_clips, comparison)
    if config.eval.junit is not None:
        write_claims(Path(config.eval.junit), scores)
    wandb_log.log(media, scores, config)
    paths = [f"scores  {folder / 'scores.json'}", f"report  {report} ({sizes(report, media)})"]
    print_lines(console, *headline(scores), answer(scores), *paths)
    return report


def _work(source: ClipSource, suite: Suite, folder: Path, group: Samplers, console: Console) -> Work:
    """All windows; with eval.sequential those that decide the gates, to which the source is then restricted."""
    if not source.config.eval.sequential:
        return Work(batches(source.held_out.windows, source.seeds, source.config.eval.batch_size), suite)
    if not isinstance(source, SampledClips):
        raise ConfigError("videos= gives all clips, of which eval.sequential=true would leave some out: leave it out")
    return sample_until_decided(source, suite, folder, group, console)


def _sample(
    source: ClipSource,
    work: Sequence[Sequence[Item]],
    has_probes: bool,
    costs: tuple[ClipCost | None, MeasuringTime],
    group: Samplers,
    console: Console,
) -> tuple[dict[str, Any] | None, dict[str, ProbeClips], Forecast | None]:
    """Print the costs, run the probes, and sample the clips if there are several processes: one samples while it
    measures. Returns scores and clips of the probes, and the forecast of what remains to be sampled."""
    if not isinstance(source, SampledClips):
        if group.count > 1:
            line = f"note: videos= gives all clips. Nothing is sampled, so one of {group.count} processes does the work"
            print_lines(console, line)
        return None, {}, None
    sampler = probe_sampler(source) if has_probes and source.config.task.has_reference else None
    waiting = 0 if sampler is None else unfinished_probes(source, sampler)
    forecast = estimate_sampling(source, work, waiting, console, costs[0], group.count, costs[1])
    if forecast.cost is not None:
        start_samplers(group, console)
    scores, clips = (None, {}) if sampler is None else _probes(source, sampler, console)
    sample_together(source, work, group, console)
    return scores, clips, forecast if group.count == 1 else Forecast({})


def _plan(
    source: ClipSource,
    suite: Suite,
    features: ClipFeatures | None,
    folder: Path,
    rank: SamplingRank,
    console: Console,
) -> tuple[dict[str, Any] | None, tuple[ClipCost | None, MeasuringTime]]:
    """Restrict the source to eval.budget. Returns the entry `plan` of scores.json, None without a budget, and the costs
    of a clip: of sampling, None without a budget, and of measuring, none with eval.sequential, which measures first."""
    if not isinstance(source, SampledClips) or source.config.eval.sequential:
        return None, (None, NOT_MEASURED)
    budget = evaluation_budget(source.config, source.base.embedded)
    if budget is None:
        return None, (None, measure_measuring(source, suite, features))
    probes = len(probe_sampler(source).plan.samples) if source.config.task.has_reference else 0
    return apply_budget(source, folder, budget, rank.count, probes, suite, features, console)


def _probes(
    source: SampledClips, sampler: ProbeSampler, console: Console
) -> tuple[dict[str, Any], dict[str, ProbeClips]]:
    """Run the synthetic probes under a progress bar."""
    with progress_bar("synthetic probes", None, "clip", console=console) as bar:
        scores, clips = run_probes(source, sampler, bar.update)
    print_lines(console, f"  synthetic probes   {scores['seconds']:7.1f} s   {scores['passed']} of {scores['of']} pass")
    return scores, clips


def _print_header(source: ClipSource, suite: Suite, config: Config, console: Console) -> None:
    """Print what is evaluated, on how many clips, and notes about it."""
    count = f"{len(source.held_out.windows)} windows x {len(source.seeds)} seeds"
    print_lines(console, f"{config.task.name}: {source.judged.path} on {count}")
    if source.audio_choice is not None:
        print_lines(console, source.audio_choice.line)
    notes = [f"{missing.metric} is not run: {missing.reason}" for missing in suite.not_run]
    notes += control_notes(source, suite)
    if config.task.reference_sound is not None and source.audio_choice is not None and not source.audio_choice.is_on:
        notes.append("task.audio_reference is not used, because the video stream is sampled alone")
    notes = [note for note in (source.judged.remarks, *source.held_out.notes, *notes) if note is not None]
    print_lines(console, *(f"note: {note}" for note in notes))

"""The metrics that `eval.metrics` adds to those of the task; `config.extra_metrics` lists what each of them needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from eval.metrics import libraries, motion
from eval.metrics.base import Clip, MetricGroup, NotRun, Values
from eval.metrics.suite import Suite
from iclora_train.config import ConfigError, Eval
from iclora_train.config.extra_metrics import NEEDS, require_at_hand
from iclora_train.core.networks import content_hash

OF_SETS = "fvd"  # has no value per clip


@dataclass(frozen=True)
class ClipFeatures:
    """A network that describes a clip (F,H,W,3) by features (D,), with which sets of clips are compared; its name."""

    network: str
    embed: Callable[[Clip], Values]


def extra_metrics(settings: Eval) -> tuple[MetricGroup, ...]:
    """The metrics of `eval.metrics`, with their packages imported and their networks loaded.

    ConfigError for a package that is missing or broken, and for weights that are missing or of another network.
    """
    require_at_hand(settings.metrics, settings.weights)
    names = [name for name in settings.metrics if name != OF_SETS]
    return tuple(_open(name, getattr(settings.weights, name, None)) for name in names)


def clip_features(settings: Eval) -> ClipFeatures | None:
    """The network of FVD, if `eval.metrics` names it. ConfigError as above."""
    if OF_SETS not in settings.metrics:
        return None
    require_at_hand([OF_SETS], settings.weights)
    from eval.metrics import embeddings  # noqa: PLC0415  (transformers is slow to import)

    return ClipFeatures(*embeddings.video_features(Path(str(settings.weights.fvd))))


def with_extra_metrics(suite: Suite, settings: Eval, side: int, frames: int) -> Suite:
    """The suite of a task with the metrics of `eval.metrics`, which come last in the report.

    side, frames: shorter side and number of frames of the clips. A metric that they are too small for is `not_run`.
    """
    groups = extra_metrics(settings)
    obstacles = [NotRun(metric.key, group.obstacle(side, frames)) for group in groups for metric in group.metrics]
    missing = tuple(entry for entry in obstacles if entry.reason)
    return replace(suite, groups=(*suite.groups, *groups), not_run=(*suite.not_run, *missing))


def versions_and_weights(settings: Eval) -> tuple[dict[str, str], dict[str, str]]:
    """What decides the values of the chosen metrics: distribution -> version, and metric -> hash of its weights."""
    needs = {name: NEEDS[name] for name in settings.metrics}
    versions = {need.distribution: version(need.distribution) for need in needs.values() if need.distribution}
    weights = {name: str(getattr(settings.weights, name)) for name, need in needs.items() if need.weights}
    return versions, {name: content_hash(Path(path)) for name, path in weights.items()}


def _open(name: str, weights: str | None) -> MetricGroup:
    try:
        return WITHOUT_WEIGHTS[name]() if weights is None else _with_weights(name, Path(weights))
    except ImportError as error:
        raise ConfigError(f"eval.metrics: {name} cannot be used here ({error}): {NEEDS[name].install}") from error


def _with_weights(name: str, path: Path) -> MetricGroup:
    from eval.metrics import embeddings, trunks  # noqa: PLC0415  (transformers is slow to import)

    openers: dict[str, Callable[[Path], MetricGroup]] = {
        "lpips": trunks.lpips,
        "dists": trunks.dists,
        "clip": embeddings.clip,
        "dino": embeddings.dino,
    }
    return openers[name](path)


WITHOUT_WEIGHTS: dict[str, Callable[[], MetricGroup]] = {
    "vmaf": lambda: libraries.vmaf(neg=False),
    "vmaf_neg": lambda: libraries.vmaf(neg=True),
    "ssimulacra2": libraries.ssimulacra2,
    "flip": libraries.flip,
    "cvvdp": libraries.cvvdp,
    "warp_own": lambda: motion.WARP_OWN,
}

"""The metrics of an evaluation: of its task, of the controls of its windows, and on request."""

from __future__ import annotations

from eval.clips.clip_source import ClipSource
from eval.clips.windows import HeldOut
from eval.judging.verdicts import MIN_RECORDINGS, MIN_WINDOWS, are_few
from eval.metrics import Suite
from eval.metrics.extra import with_extra_metrics
from eval.metrics.structure import Readers
from iclora_train.config import Config, Task
from iclora_train.data.controls import Control, leading_reference, mixed_controls


def suite_of(config: Config, held_out: HeldOut, side: int, frames: int) -> Suite:
    """The metrics for the windows of an evaluation. side, frames: shorter side and number of frames of the clips.

    Raises ConfigError if a network cannot be loaded.
    """
    controls = mixed_controls(config.task, [held_out.controls[window.key] for window in held_out.windows])
    readers = Readers(config.eval.depth_network, config.eval.pose_network)
    suite = Suite.of(config.task, side, frames, readers, controls)
    return with_extra_metrics(suite, config.eval, side, frames)


def metric_of_each_reference(task: Task, suite: Suite) -> dict[str, str]:
    """Name -> metric by which one sees that a reference is followed; empty for a task with a single reference.

    The metric of its control if it is one. Of the others the first has the metric of adherence; any further one has
    PSNR, or the primary metric where that is not the one of adherence (colours, of which a grey reference shows none).
    """
    if not task.more_references:
        return {}
    others = suite.primary if suite.primary != suite.adherence else "psnr"
    metrics = {}
    for number, (name, part) in enumerate(zip(task.reference_names, task.for_references(), strict=True)):
        if (control := suite.controls.get(Control(part.maker).name)) is not None:
            metrics[name] = control.primary
        else:
            metrics[name] = suite.adherence if number == leading_reference(task) else others
    return metrics


def control_notes(source: ClipSource, suite: Suite) -> list[str]:
    """A note for each control of a set with several that has too few windows or recordings to be decided."""
    windows, notes = source.held_out.windows, []
    for name in suite.controls:
        of_control = [w for w in windows if name in {control.name for control in source.held_out.controls[w.key]}]
        if are_few(len(of_control), recordings := len({window.source for window in of_control})):
            notes.append(
                f"control {name} has {len(of_control)} of {len(windows)} windows, of {recordings} recordings: its "
                f"claims need {MIN_WINDOWS} windows of {MIN_RECORDINGS} recordings to be decided; raise eval.windows, "
                "or prepare more clips"
            )
    return notes

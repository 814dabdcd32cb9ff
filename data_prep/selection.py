"""What a preparation takes from its clips: the report, the tables on the screen, and the errors if that is nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from data_prep.clips.splits import Splits
from data_prep.clips.windows import Window
from data_prep.select_clips import Dropped, ids_without_caption
from iclora_train.config import Config, Data, require
from iclora_train.core.console import make_console
from iclora_train.data.shards import ShardSet


def selection_report(
    windows: Mapping[str, Sequence[Window]], splits: Splits, dropped: Dropped, notes: list[str], config: Config
) -> dict[str, Any]:
    """The content of report.json about the clips: `kept`, `dropped`, and the entries that are not empty.

    notes: lines about the listing. Those about splits and windows are added to them, and printed.
    """
    clips = [probed for probed in splits.clips if probed.part is None or probed.part[0] == 0]  # each clip once
    added = [*splits.notes, *short_supply(windows["train"], config.data)]
    for note in added:
        print(f"note: {note}")
    optional = {
        "moved": _moved(splits),
        "without_caption": ids_without_caption(clips) if config.data.prompt is None else [],
        "notes": [*notes, *added],
        "timing": {probed.clip.id: line for probed in clips if (line := probed.timing_note(config.data.fps))},
        "converted": {probed.clip.id: ", ".join(probed.info.changes) for probed in clips if probed.info.changes},
    }
    kept = {split: {"clips": len({w.clip for w in group}), "windows": len(group)} for split, group in windows.items()}
    report: dict[str, Any] = {"kept": kept, "dropped": dropped + splits.dropped}
    return report | {name: value for name, value in optional.items() if value}


def _moved(splits: Splits) -> list[dict[str, str]]:
    """Clips whose split is not the one that is drawn from their ids, each with its split and the reason."""
    of = splits.split_of
    return [{"clip": clip, "split": of[clip], "reason": why} for clip, why in splits.moved.items() if clip in of]


def short_supply(windows: Sequence[Window], data: Data) -> Iterator[str]:
    """Lines about fewer train windows than the settings ask for."""
    if windows and len(windows) < data.train_windows:
        yield f"data.train_windows={data.train_windows}, but data.pick={data.pick} gives {len(windows)} windows"
    sizes = Counter((*window.size, len(window.indices)) for window in windows)
    if sizes and data.tokens_per_batch is None and max(sizes.values()) < data.batch_size:
        yield (
            f"data.batch_size={data.batch_size} is more than the train windows of any size (at most "
            f"{max(sizes.values())}): training refuses it; lower data.batch_size"
        )


def show_selection(report: Mapping[str, Any], path: Path) -> None:
    """Print the tables of kept, moved and dropped clips on stdout, and how many clips `path`, the report, lists."""
    table = Table("split", "clips", "windows", title="kept")
    for split, counts in report["kept"].items():
        table.add_row(split, str(counts["clips"]), str(counts["windows"]))
    console = make_console()
    console.print(table)
    for title, columns in (("moved", ("clip", "split", "reason")), ("dropped", ("clip", "reason"))):
        if entries := report.get(title):
            table = Table(*(Column(name, overflow="fold") for name in columns), title=title)
            for entry in entries:
                table.add_row(*(entry[name] for name in columns))
            console.print(table)
    if uncaptioned := report.get("without_caption"):
        print(f"{len(uncaptioned)} clips have no caption, only the trigger; {path} lists them")
    if timing := report.get("timing"):
        print(f"{len(timing)} clips have a variable frame rate or repeated frames; {path} lists them")
    if converted := report.get("converted"):
        clip, change = next(iter(converted.items()))
        print(f"{len(converted)} clips are converted ({clip}: {change}; ...); {path} lists them")


def require_train_pairs(root: Path, report: Mapping[str, Any], config: Config) -> None:
    """ConfigError with the reason if there is nothing to train on."""
    where = f"data.clips={config.data.clips}: no train clip could be used"
    kept, dropped = report["kept"], report["dropped"]
    held_out = sum(kept[split]["clips"] for split in kept if split != "train")
    reason = f" ({dropped[0]['clip']}: {dropped[0]['reason']})" if dropped else ""
    if held_out:
        reason = "; the list puts all usable clips into val or heldout: list one as train"
    require(kept["train"]["windows"] > 0, f"{where}; see the table{reason}")
    train_pairs = ShardSet.open(root / "pairs").splits.get("train", 0)
    require(
        train_pairs > 0, f"the checks left out every training pair; {root / 'contact.html'} shows them with the reasons"
    )

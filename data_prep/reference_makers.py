"""The makers of all references of a task."""

from __future__ import annotations

from typing import Any

from data_prep.makers import Maker, build_maker
from data_prep.makers.edit.edits import Frame
from data_prep.makers.given import FIRST_COLUMN, Given
from iclora_train.config import ConfigError, Task, require
from iclora_train.config.places import ANY, is_drawn


def makers_of_references(task: Task) -> list[tuple[str, Maker]]:
    """Name and maker of each reference of a task, in order; of a task without references its maker `none`.

    ConfigError names the entry of task.more_references whose maker or arguments are wrong.
    """
    first = build_maker(task.maker, task.maker_args)
    is_first_column = not isinstance(first, Given) or first.column == FIRST_COLUMN
    require(is_first_column, "task.maker_args.column: the first reference is read from the column `reference`")
    _require_same_frame(first, task.reference_frame, "task.reference_frame", "")
    makers = [(task.maker, first)]
    for number, more in enumerate(task.more_references):
        where = f"task.more_references[{number}] ({more.name})"
        try:
            maker = build_maker(more.maker, more.maker_args)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        names_column = not isinstance(maker, Given) or maker.column != FIRST_COLUMN
        require(names_column, f"{where}: set maker_args.column to another column of the list, e.g. reference_2")
        _require_same_frame(maker, more.frame, f"{where}: frame", f"{where}: ")
        makers.append((more.maker, maker))
    return makers


def _require_same_frame(maker: Maker, place: Any, key: str, before: str) -> None:
    """ConfigError where the place of a reference is drawn, and edit.frame shows another frame than that.

    key: the setting of the place. before: of the message.
    """
    shows_it = not isinstance(maker, Frame) or maker.frame in (ANY, place)
    shown = maker.frame if isinstance(maker, Frame) else None
    require(
        shows_it or not is_drawn(place),
        f"{before}task.maker_args.frame={shown}: {key}={place} is drawn for each clip, and the reference shows this "
        f"frame: set task.maker_args.frame={ANY} too",
    )

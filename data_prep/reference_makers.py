"""The makers of all references of a task."""

from __future__ import annotations

from data_prep.makers import Maker, build_maker
from data_prep.makers.given import FIRST_COLUMN, Given
from iclora_train.config import ConfigError, Task, require


def makers_of_references(task: Task) -> list[tuple[str, Maker]]:
    """Name and maker of each reference of a task, in order; of a task without references its maker `none`.

    ConfigError names the entry of task.more_references whose maker or arguments are wrong.
    """
    first = build_maker(task.maker, task.maker_args)
    is_first_column = not isinstance(first, Given) or first.column == FIRST_COLUMN
    require(is_first_column, "task.maker_args.column: the first reference is read from the column `reference`")
    makers = [(task.maker, first)]
    for number, more in enumerate(task.more_references):
        where = f"task.more_references[{number}] ({more.name})"
        try:
            maker = build_maker(more.maker, more.maker_args)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        names_column = not isinstance(maker, Given) or maker.column != FIRST_COLUMN
        require(names_column, f"{where}: set maker_args.column to another column of the list, e.g. reference_2")
        makers.append((more.maker, maker))
    return makers

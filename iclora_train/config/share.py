"""The setting `share` of data_prep: `2/8` is the second of eight shares of one data set, a process for each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from iclora_train.config.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """Share `number`, from 1, of `count`. It has every count-th item."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read `2/8`. ConfigError for anything else."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise ConfigError(
                f"share={text} must be k/n with k from 1 to n, e.g. 2/8: the second of eight processes that prepare "
                "one data set; null for a process that prepares all of it"
            )
        return cls(number, count)

    def owns(self, position: int) -> bool:
        """Whether the item at this position, from 0, belongs to the share."""
        return position % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

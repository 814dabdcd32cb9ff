"""Pair makers: each turns a target clip into the reference that the adapter is trained to follow.

`task.maker` selects one by name. Every module in this folder and below is imported here, in alphabetical order, so a
new maker is one new file: `makers/<kind>/<file>.py` with `@register("<kind>.<name>")`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from data_prep.makers.base import Maker, SourceWindow, build_maker, register

__all__ = ["Maker", "SourceWindow", "build_maker", "import_makers", "register"]


def import_makers(package: str, folders: Iterable[str]) -> None:
    """Import every module of `package` in `folders` and its subpackages, so that their makers are registered.

    ImportError names the module that cannot be imported.
    """
    for info in sorted(pkgutil.iter_modules(list(folders), f"{package}."), key=lambda info: info.name):
        try:
            module = importlib.import_module(info.name)
        except ImportError as error:
            file = f"{info.name.replace('.', '/')}.py"
            raise ImportError(f"the pair maker {file} cannot be imported: {error}", name=info.name) from error
        if info.ispkg:
            import_makers(info.name, module.__path__)


import_makers(__name__, __path__)

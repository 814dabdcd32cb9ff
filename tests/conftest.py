"""Fixtures that several files of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from iclora_train.adapters.base_spec import BaseSpec
from scripts.synthetic_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LTX-2.3 checkpoint in one official file."""
    return write_checkpoint(tmp_path_factory.mktemp("ltx"), "2.3")


@pytest.fixture(scope="module")
def spec(official: Path) -> BaseSpec:
    return BaseSpec.open(str(official))

"""Fixtures that several files of tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from iclora_train.adapters.base_spec import BaseSpec
from scripts.synthetic_checkpoint import write_checkpoint
from tests.prep import write_clips
from tests.tiny import write_tiny_base


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LTX-2.3 checkpoint in one official file."""
    return write_checkpoint(tmp_path_factory.mktemp("ltx"), "2.3")


@pytest.fixture(scope="module")
def spec(official: Path) -> BaseSpec:
    return BaseSpec.open(str(official))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with random weights."""
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of short clips in all splits (`prep.write_clips`)."""
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The clips are too small for several threads, and tests share few cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

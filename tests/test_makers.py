"""The registry of pair makers: files of a folder are imported in a fixed order, and a name gives a maker."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import data_prep.makers.control
from data_prep.makers import build_maker, import_makers, register
from data_prep.makers.base import MAKERS, Maker
from iclora_train.config import ConfigError
from iclora_train.config.hydra_app import task_names
from iclora_train.data.reference_kinds import REFERENCE_KINDS
from scripts import task_pictures

NEW_MAKER = """
from dataclasses import dataclass
from data_prep.makers.base import Maker, register

@register("control.negative")
@dataclass(frozen=True)
class Negative(Maker):
    strength: int = 1

    def __call__(self, frames, rng, source):
        return 255 - frames, {}
"""


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A second folder of the package data_prep.makers.control. Registered makers and modules are restored."""
    monkeypatch.setattr(data_prep.makers.control, "__path__", [*data_prep.makers.control.__path__, str(tmp_path)])
    before = dict(MAKERS)
    yield tmp_path
    MAKERS.clear()
    MAKERS.update(before)
    for name in ("negative", "broken"):
        sys.modules.pop(f"data_prep.makers.control.{name}", None)


def test_a_new_file_is_a_new_maker(makers: Path) -> None:
    with pytest.raises(ConfigError, match=r"task.maker='control.negative' is not one of control.canny"):
        build_maker("control.negative", {})
    (makers / "negative.py").write_text(NEW_MAKER)
    importlib.invalidate_caches()
    import_makers("data_prep.makers", data_prep.makers.__path__)
    maker = build_maker("control.negative", {"strength": 2})
    assert isinstance(maker, Maker)
    assert (maker.margin, maker.needs, maker.check({})) == (0, (), None)
    with pytest.raises(ConfigError, match=r"task.maker_args.size is not an argument of control.negative; .* strength"):
        build_maker("control.negative", {"size": 2})


def test_a_file_that_cannot_be_imported_is_named(makers: Path) -> None:
    (makers / "broken.py").write_text("import a_package_that_is_missing\n")
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match=r"data_prep/makers/control/broken.py .* 'a_package_that_is_missing'"):
        import_makers("data_prep.makers", data_prep.makers.__path__)
    (makers / "broken.py").write_text("def\n")
    with pytest.raises(SyntaxError, match=r"broken.py"):
        import_makers("data_prep.makers", data_prep.makers.__path__)


def test_a_name_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError, match=r"given is registered in data_prep.makers.given and tests.test_makers"):

        @register("given")
        class Other(Maker):
            pass


def test_every_process_registers_the_makers_in_the_same_order() -> None:
    code = "from data_prep.makers.base import MAKERS; print(*MAKERS)"
    names = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert names == [name for name in MAKERS if name in names]
    sources = "".join(path.read_text() for path in Path("data_prep/makers").glob("**/[!_]*.py"))
    assert len(names) == len(re.findall(r"^@register\(", sources, re.MULTILINE))
    assert set(REFERENCE_KINDS) <= set(names)


def test_every_task_with_a_maker_for_its_reference_has_a_picture_in_the_docs() -> None:
    no_picture = {
        "day_to_night",
        "water",
        "shave",
        "cross_eyed",
        "depth",
        "style",
        "extend",
        "regenerate",
        "dub",
        "foley",
    }
    assert set(task_pictures.CLIPS) == set(task_names()) - no_picture
    pictures = {path.stem: path.stat().st_size for path in Path("docs/pictures/tasks").glob("*.jpg")}
    assert pictures.keys() == task_pictures.CLIPS.keys()
    assert sum(pictures.values()) < 2**20
    text = Path("docs/tasks.md").read_text(encoding="utf-8")
    assert all(f"(pictures/tasks/{name}.jpg)" in text for name in pictures)
    assert all(f"### {name}\n" in text for name in task_names())


def test_a_picture_shows_target_and_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["task_pictures", str(tmp_path), "--tasks", "colorize"])
    task_pictures.main()
    picture = cv2.imread(str(tmp_path / "colorize.jpg")).astype(int)
    height, width = picture.shape[0], (picture.shape[1] - task_pictures.GAP) // 2
    target, reference = picture[:, :width], picture[:, -width:]
    assert (height, width) == (192, 320)
    assert np.ptp(target, axis=-1).mean() > 5 * np.ptp(reference, axis=-1).mean()

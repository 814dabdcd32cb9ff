"""Helpers of the data_prep tests: a small folder of clips, its settings, and a clip as the source of a maker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from data_prep.clips.clip_list import Clip, list_clips
from data_prep.clips.crop import Crop
from data_prep.clips.windows import Window
from data_prep.engines.base import Engine
from data_prep.makers import SourceWindow, build_maker
from data_prep.pairs import ReferenceScale, SourceVideo, make_reference, read_windows
from iclora_train.config import Config, ConfigError, to_config
from iclora_train.config.hydra_app import conf_dir
from tests.clips import write_clip
from tests.engine_tasks import halve, refuse_three

SIZE = ("data.frames=5", "data.height=32", "data.width=32")


def write_clips(folder: Path, splits: tuple[str, ...] = ("train", "train", "train", "val", "heldout")) -> Path:
    """Write clips clip0, clip1, ... and a csv list with these splits."""
    rows = ["id,video,caption,split"]
    for i, split in enumerate(splits):
        write_clip(folder / f"clip{i}.mp4", 24 + i, seed=i)
        rows.append(f"clip{i},clip{i}.mp4,a moving texture {i},{split}")
    (folder / "list.csv").write_text("\n".join(rows))
    return folder / "list.csv"


def overrides(root: Path, clips: Path, base: Path, *more: str) -> list[str]:
    """The command line of data_prep for task deblur on a tiny base."""
    paths = [f"model.checkpoint={base}", f"data.clips={clips}", f"data.root={root}"]
    counts = ["data.train_windows=30", "data.heldout_windows=4"]
    return ["conf=deblur", "model.name=tiny", "data.keep=lossless", *paths, *SIZE, *counts, *more]


def config_of(root: Path, clips: Path, base: Path, *more: str) -> Config:
    """The composed settings of `overrides`."""
    ConfigStore.instance().store(name="schema", node=Config)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return to_config(hydra.compose("prep", overrides(root, clips, base, *more)))


def listed(config: Config) -> list[Clip]:
    """The clips of the settings, in the order of their ids."""
    return list_clips(config.data.clips, config.data.heldout_fraction)


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def whole_clip(frames: np.ndarray, **files: Path) -> SourceWindow:
    """The source of frames (F,H,W,3) that are a whole uncropped clip with id `a`, at 25 fps."""
    size = (frames.shape[1], frames.shape[2])
    return SourceWindow("a", Path(), tuple(range(len(frames))), 25.0, Crop(size, size, (0, 0), size, False), files)


def remake(video: SourceVideo, record: dict[str, Any]) -> np.ndarray:
    """Make the reference of a pair again, from its record and its source video (the clip, or a supplied reference)."""
    window = Window.from_record(record["window"])
    frames = next(read_windows(video.path, [window]))
    maker = build_maker(record["maker"], record["args"])
    scale = ReferenceScale(record["downscale"], record["temporal_scale"])
    return make_reference(frames, window, maker, video, record["seed"], scale, record.get("place"))[0]


def check_results(engine: Engine) -> None:
    """Results of any engine are ordered, and the ConfigError of an item is raised."""
    assert list(engine.map(halve, range(14))) == [number / 2 for number in range(14)]
    assert list(engine.map(halve, [])) == []
    with pytest.raises(ConfigError, match=r"task\.maker_args\.model=x"):
        list(engine.map(refuse_three, range(9)))
    assert list(engine.map(halve, range(3))) == [0.0, 0.5, 1.0]

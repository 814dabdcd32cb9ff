"""Every task of conf/conf that needs no sound: from a new clip to a video on nano by commands alone, as
docs/signals.md lists them. The adapters have random weights and the metadata of an export."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch

from iclora_train.adapters import lora
from iclora_train.adapters.conditions import conditions_metadata
from iclora_train.adapters.reference_makers import makers_metadata
from iclora_train.config import Lora, Task
from iclora_train.config.hydra_app import task_names
from iclora_train.config.named_task import task_named
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.clip import probe, read_clip
from iclora_train.training.export import _reference_metadata
from tests.command import run
from tests.test_depth import write_network

SAMPLES = Path(__file__).parent.parent / "data_prep" / "samples" / "clips"
SIZE = ["width=64", "height=64", "frames=9", "fps=24"]
CLIP = ["reference=clip.mp4", *SIZE]
SIGNAL = [*CLIP, "signal=auto"]
WORDS = {  # task -> the words of `generate` besides adapter, prompt and out
    "canny": SIGNAL,
    "canny_still": SIGNAL,
    "pose": SIGNAL,
    "motion_tracks": [*SIGNAL, "signal_settings.tracks=tracks.json", "first_frame=first.png"],
    "depth": [*SIGNAL, "signal_settings={maker_args: {model: network}}"],
    "union": [*CLIP, "signal=pose"],
    "inpaint": [*SIGNAL, "signal_settings.mask=mask.png"],
    "outpaint": ["reference=clip.mp4", "frames=9", "signal=auto", "signal_settings.border=[40,0,40,0]"],
    "in_between": [*SIGNAL, "first_frame=first.png"],
    "extend": ["prefix=clip.mp4", "frames=81", "width=64", "height=64"],
    "regenerate": ["source=clip.mp4", "regenerate=mask.png", "frames=9", "width=64", "height=64"],
    "style": SIZE,
}
MADE_BEFORE = [  # of masks, by a command too
    ["mask", "region=box", "box=[40,40,100,100]", "clip=clip.mp4", "out=mask.png"],
]


def visual_tasks() -> list[str]:
    tasks = [(name, task_named(name, [], "nano")) for name in task_names()]
    return [name for name, task in tasks if task is not None and not task.needs_audio]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip that shows a person, its first picture, tracks, a depth network and a mask of a box."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "clip.mp4").write_bytes((SAMPLES / "talk_red_shirt_close.mp4").read_bytes())
    cv2.imwrite(str(folder / "first.png"), next(read_clip(folder / "clip.mp4"))[..., ::-1])
    (folder / "tracks.json").write_text(json.dumps([[{"x": 90, "y": 60}, {"x": 100, "y": 70}, {"x": 130, "y": 50}]]))
    write_network(folder / "network", "relative")
    for words in MADE_BEFORE:
        result = run(folder, "data_prep.signal", *words)
        assert result.code == 0, result.err
    return folder


def write_adapter(path: Path, task: Task, checkpoint: str = "nano", size: str = "64x64x9") -> None:
    """A random adapter for a base with the metadata that an export gives it."""
    base = BaseModel.open(checkpoint)
    transformer = base.transformer()
    lora.attach(transformer, Lora(rank=2), 0)
    metadata = {
        **_reference_metadata(task),
        **makers_metadata(task),
        **conditions_metadata(task.conditions),
        "base_model_family": base.family,
        "base_model_version": base.version,
        "base_fingerprint": base.fingerprint,
        "base_model": base.name,
        "task": task.name,
        "trigger": task.trigger,
        "size": size,
        "fps": 24,
    }
    weights = {name: (a, torch.ones_like(b) / 1000) for name, (a, b) in lora.adapter_weights(transformer).items()}
    lora.save(path, lora.Adapter(weights, {key: str(value) for key, value in metadata.items()}))


@pytest.mark.slow
@pytest.mark.parametrize("name", visual_tasks())
def test_a_clip_becomes_a_video_of_the_task(name: str, folder: Path) -> None:
    task = task_named(name, [], "nano")
    assert task is not None
    write_adapter(folder / f"{name}.safetensors", task)
    words = [
        f"adapter={name}.safetensors",
        "prompt=a person speaks",
        f"out={name}.mp4",
        f"conf={name}",
        "sample.steps=2",
    ]
    result = run(folder, "iclora_train.generate", *words, *WORDS.get(name, SIGNAL), "cache=cache", "device=cpu")
    assert result.code == 0, result.err
    assert "is not given" not in result.out  # every part and reference that training had
    info = probe(folder / f"{name}.mp4")
    assert info.frames == (81 if name == "extend" else 9)
    made = name in WORDS and task.has_reference
    assert bool(list(folder.glob(f"{name}.signal*"))) == made

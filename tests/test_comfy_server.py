"""Every task's workflow on a real ComfyUI: `COMFYUI=/path/to/ComfyUI pytest -m comfyui` (docs/ci.md).

The server runs on a CPU with tiny bases of random weights and random text features; everything else is ComfyUI's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iclora_train.adapters.card import write_card
from iclora_train.config.hydra_app import task_names
from iclora_train.config.named_task import task_named
from iclora_train.ltx2.weights.versions import VERSIONS
from iclora_train.media.clip import probe
from tests.comfyui.models import write_input, write_models
from tests.comfyui.server import Server, comfyui
from tests.test_tasks_from_a_clip import write_adapter

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.timeout(900),
    pytest.mark.skipif("COMFYUI" not in os.environ, reason="COMFYUI is not set"),
]
SIZE = "128x128x17"
LONG = {"extend": "128x128x81"}  # its beginning has 49 frames
WITHOUT_WORKFLOW: set[str] = set()
CASES = [(task, version) for task in task_names() for version in VERSIONS]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("comfyui")
    return folder, write_models(folder / "models", folder / "bases")


@pytest.fixture(scope="module")
def server(checkpoints: tuple[Path, dict[str, Path]]) -> Iterator[Server]:
    with comfyui(Path(os.environ["COMFYUI"]), checkpoints[0]) as server:
        yield server


def write_workflows(server: Server, checkpoint: Path, task_name: str, version: str) -> list[tuple[Json, Json]]:
    """Both forms of each workflow of a random adapter, which is put among the server's LoRAs; their files as input."""
    task = task_named(task_name, [], VERSIONS[version].conf)
    assert task is not None
    path = server.base / "models" / "loras" / f"{task_name}-{version}.safetensors"
    path.parent.mkdir(exist_ok=True)
    write_adapter(path, task, str(checkpoint), LONG.get(task_name, SIZE))
    write_card(path)
    graphs = sorted(path.parent.glob(f"{path.stem}*.workflow.json"))
    apis = [graph.with_name(graph.name.replace(".workflow.json", ".api.json")) for graph in graphs]
    pairs = [
        (json.loads(graph.read_text()), json.loads(api.read_text())) for graph, api in zip(graphs, apis, strict=True)
    ]
    for _, api in pairs:
        for node in api.values():
            for value in node["inputs"].values():
                if isinstance(value, str) and value.endswith((".mp4", ".png")):
                    write_input(server.base / "input" / value)
    return pairs


@pytest.mark.parametrize(("task", "version"), CASES)
def test_a_workflow_is_accepted_and_makes_a_video(
    task: str, version: str, server: Server, checkpoints: tuple[Path, dict[str, Path]]
) -> None:
    pairs = write_workflows(server, checkpoints[1][version], task, version)
    assert bool(pairs) == (task not in WITHOUT_WORKFLOW)
    for _, api in pairs:
        outputs = server.run(api)
        files = [file for node in outputs.values() for file in node.get("images", []) if file["type"] == "output"]
        (video,) = [file for file in files if file["filename"].endswith(".mp4")]
        info = probe(server.base / "output" / video["subfolder"] / video["filename"])
        width, height, frames = map(int, LONG.get(task, SIZE).split("x"))
        assert (info.width, info.height, info.frames) == (width, height, frames)

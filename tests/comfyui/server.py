"""A ComfyUI server as a process: start it, ask it, run prompts on it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

HERE = Path(__file__).parent
START_SECONDS, RUN_SECONDS = 240, 240
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}


@dataclass(frozen=True)
class Server:
    """A running server. base: the folder of its models, input and output files."""

    url: str
    base: Path

    def ask(self, path: str, content: object = None) -> tuple[int, Any]:
        """Status and JSON of a request; `content` is posted."""
        data = None if content is None else json.dumps(content).encode()
        request = Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)

    def run(self, api: dict[str, Any]) -> dict[str, Any]:
        """Run a workflow in the API format; its outputs by node. Asserts that the server accepts and finishes it."""
        status, answer = self.ask("/prompt", {"prompt": api})
        assert (status, answer.get("node_errors")) == (200, {}), json.dumps(answer)[:4000]
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            _, history = self.ask(f"/history/{answer['prompt_id']}")
            if entry := history.get(answer["prompt_id"]):
                messages = [content for kind, content in entry["status"]["messages"] if kind == "execution_error"]
                shown = [(m["node_type"], m["exception_message"], "".join(m["traceback"][-3:])) for m in messages]
                assert entry["status"]["status_str"] == "success", shown
                return entry["outputs"]
            time.sleep(0.2)
        raise AssertionError(f"not finished within {RUN_SECONDS} seconds")


@contextmanager
def comfyui(checkout: Path, base: Path) -> Iterator[Server]:
    """Start the server of a checkout; its node packs are loaded, and `random_text` before them.

    COMFYUI_PYTHON: the Python that has ComfyUI's requirements; without it, the one that runs the tests.
    """
    for name in ("models", "input", "output", "custom_nodes", "user/default"):
        (base / name).mkdir(parents=True, exist_ok=True)
    shutil.copytree(HERE / "random_text", base / "custom_nodes" / "random_text", dirs_exist_ok=True)
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS))
    paths = {"checkout": {"base_path": str(checkout), "custom_nodes": "custom_nodes"}}
    (base / "paths.yaml").write_text(json.dumps(paths))  # JSON is YAML
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [os.environ.get("COMFYUI_PYTHON", sys.executable), HERE / "launch.py", checkout / "main.py", "--cpu"]
    words += ["--listen", "127.0.0.1", "--port", port, "--base-directory", base, "--disable-api-nodes"]
    words += ["--extra-model-paths-config", base / "paths.yaml", "--database-url", "sqlite:///:memory:"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (base / "log.txt").open("w") as log:
        process = subprocess.Popen(list(map(str, words)), cwd=checkout, env=environment, stdout=log, stderr=log)
    try:
        yield _started(process, Server(f"http://127.0.0.1:{port}", base))
    finally:
        process.terminate()
        process.wait(20)


def _started(process: subprocess.Popen[bytes], server: Server) -> Server:
    """The server when it answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, (server.base / "log.txt").read_text()[-4000:]
        try:
            server.ask("/system_stats")
        except OSError:
            time.sleep(0.5)
        else:
            return server
    raise AssertionError((server.base / "log.txt").read_text()[-4000:])

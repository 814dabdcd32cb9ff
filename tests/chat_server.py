"""A server of OpenAI's chat form in a thread: it describes frames by their mean colour, and fails as a test wishes."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np

from tests.tiny_captioner import RGB

Reply = tuple[int, bytes, dict[str, str]]  # status, body, headers


@dataclass
class ChatServer:
    """failures: replies to the next questions, before any answer; None breaks the connection. answer: the text for a
    request and the names of the colours of its frames."""

    answer: Callable[[dict[str, Any], list[str]], str]
    models: list[str] = field(default_factory=lambda: ["qwen"])
    key: str | None = None
    failures: list[Reply | None] = field(default_factory=list)
    seconds: float = 0.0  # that an answer takes
    requests: list[dict[str, Any]] = field(default_factory=list)
    busy: int = 0
    most_busy: int = 0
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, path: str, body: dict[str, Any] | None, authorization: str | None) -> Reply | None:
        """The reply to a GET (no body) or POST."""
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, f'{{"error": "the key {authorization} is wrong"}}'.encode(), {}
        if body is None:
            return 200, json.dumps({"data": [{"id": name} for name in self.models]}).encode(), {}
        assert path == "/v1/chat/completions"
        with self.lock:
            self.requests.append(body)
            if self.failures:
                return self.failures.pop(0)
        time.sleep(self.seconds)
        content = body["messages"][0]["content"]
        colours = [colour_of(part["image_url"]["url"]) for part in content if part["type"] == "image_url"]
        choice = {"message": {"role": "assistant", "content": self.answer(body, colours)}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice]}).encode(), {}


def colour_of(url: str) -> str:
    """The name of the colour that is nearest to the mean of a JPEG in a data URL."""
    kind, _, data = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR_RGB)
    mean = picture.mean((0, 1))
    return min(RGB, key=lambda name: float(np.abs(mean - RGB[name]).sum()))


@contextmanager
def serve(server: ChatServer) -> Iterator[ChatServer]:
    """Run the server on a free port inside the `with`; its address is then known."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.respond(None)

        def do_POST(self) -> None:
            self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def respond(self, body: dict[str, Any] | None) -> None:
            with server.lock:
                server.busy += 1
                server.most_busy = max(server.most_busy, server.busy)
            reply = server.reply(self.path, body, self.headers.get("Authorization"))
            with server.lock:
                server.busy -= 1
            if reply is None:
                self.close_connection = True
                return
            status, text, headers = reply
            self.send_response(status)
            for name, value in {"Content-Length": str(len(text)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError):  # a client that was stopped no longer reads
                self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.address = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()

"""A headless chromium for tests: real key presses and clicks, screenshots, and all errors of the console.

Tests drive it by the Chrome DevTools Protocol over two pipes, which needs no extra package.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
# key -> (code, Windows virtual key code) of a DevTools key event
KEYS = {" ": ("Space", 32), "ArrowLeft": ("ArrowLeft", 37), "ArrowRight": ("ArrowRight", 39), "Tab": ("Tab", 9)}
KEYS |= {"ArrowUp": ("ArrowUp", 38), "ArrowDown": ("ArrowDown", 40), "Escape": ("Escape", 27), "Enter": ("Enter", 13)}


class Browser:
    """One page of a running browser. complaints: errors of the console, scripts and the Content Security Policy."""

    def __init__(self, reader: Any, writer: Any) -> None:
        self._reader, self._writer, self._number = reader, writer, 0
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol; returns its result."""
        self._number += 1
        call = {"id": self._number, "method": method, "params": params}
        self._writer.write(json.dumps(call | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]

    def _read(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._reader.read(1)) != b"\0":
            assert byte, "the browser closed its pipe"
            data += byte
        message = json.loads(data)
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        return message

    def open(self, path: Path, width: int = 1280, height: int = 900, scripts: bool = True) -> None:
        """Load a file and wait until it is complete."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.send("Page.navigate", url=path.as_uri())
        self.until(f"location.href === {json.dumps(path.as_uri())} && document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.03)

    def press(self, key: str) -> None:
        """Press and release a key."""
        code, key_code = KEYS[key] if key in KEYS else (f"Key{key.upper()}", ord(key.upper()))
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        event = {"key": key, "code": code, "windowsVirtualKeyCode": key_code}
        self.send("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector: str, x: float = 0.5, y: float = 0.5, drag_to: tuple[float, float] | None = None) -> None:
        """Click at (x, y) of an element, as shares of its size; `drag_to` moves there before releasing the button."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = self.run(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")

        def mouse(kind: str, share: tuple[float, float], **more: Any) -> None:
            position = {"x": box["x"] + share[0] * box["width"], "y": box["y"] + share[1] * box["height"]}
            self.send("Input.dispatchMouseEvent", type=kind, **position, button="left", **more)

        mouse("mousePressed", (x, y), clickCount=1, buttons=1)
        if drag_to is not None:
            mouse("mouseMoved", drag_to, buttons=1)
        mouse("mouseReleased", drag_to or (x, y), clickCount=1)

    def screenshot(self, path: Path) -> None:
        """Save a screenshot as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile in `folder`; closed at the end."""
    assert CHROMIUM is not None
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    flags = f"--headless --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir={folder / 'profile'}"
    flags += " --no-first-run --mute-audio"
    process = subprocess.Popen(
        ["bash", "-c", f"exec {CHROMIUM} {flags} 3<&{to_read} 4>&{from_write}"],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    with open(to_write, "wb", buffering=0) as writer, open(from_read, "rb") as reader:
        try:
            yield Browser(reader, writer)
        finally:
            writer.close()  # the browser exits when the pipe is closed
            process.wait(20)

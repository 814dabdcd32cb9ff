"""The captioner behind an HTTP endpoint: answers, failures of the server, keys, several requests at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.captions import http_client
from data_prep.captions.answers import Answer
from data_prep.captions.endpoint import Endpoint
from data_prep.captions.questions import Question
from iclora_train.config import Captioner, ConfigError
from tests.chat_server import ChatServer, Reply, serve
from tests.command import run, start
from tests.tiny_captioner import RGB, write_coloured

KEY = "sk-a-secret-key"
AT_ONCE = {"Retry-After": "0"}
ONE_PICTURE = [Question((np.full((64, 64, 3), RGB["red"], np.uint8), "Describe."), 0, 7)]


def by_colours(_body: dict[str, Any], colours: list[str]) -> str:
    seen = list(dict.fromkeys(colours))
    return f"A {seen[0]} ball rolls over the floor and becomes {seen[-1]} at the end."


def command(server: ChatServer, folder: Path, *more: str) -> tuple[str, ...]:
    settings = (f"captioner.endpoint={server.address}", "captioner.frames=3", "data.root=root")
    return ("data_prep", "caption", "conf=deblur", f"data.clips={folder}", *settings, *more)


def test_the_command_asks_several_clips_at_a_time_and_again_after_failures(tmp_path):
    kinds = {f"clip{i}": colours for i, colours in enumerate([("red", "blue"), ("green",), ("blue",), ("grey", "red")])}
    for name, colours in kinds.items():
        write_coloured(tmp_path / f"clips/{name}.mp4", *colours)
    failures: list[Reply | None] = [(429, b"too many", AT_ONCE), (503, b"starting", AT_ONCE), (500, b"", AT_ONCE)]
    with serve(ChatServer(by_colours, key=KEY, failures=failures, seconds=0.2)) as server:
        arguments = command(server, tmp_path / "clips", "captioner.requests=3")
        process = start(tmp_path, *arguments, variables={"OPENAI_API_KEY": KEY})
        process.join(60)
    printed = (tmp_path / "out.txt").read_text() + (tmp_path / "err.txt").read_text()
    assert process.exitcode == 0, printed
    for name, colours in kinds.items():
        text = (tmp_path / f"clips/{name}.txt").read_text()
        assert text == f"A {colours[0]} ball rolls over the floor and becomes {colours[-1]} at the end.\n"
    assert len(server.requests) == 4 + 3
    assert 2 <= server.most_busy <= 3
    assert KEY not in printed
    first = server.requests[0]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("qwen", 0.0, 256)
    parts = first["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"] * 3 + ["text"]
    assert [part["text"] for part in parts[:-1:2]] == ["<0.0 seconds>", "<0.5 seconds>", "<0.9 seconds>"]
    assert "sharpness" in parts[-1]["text"], "the instruction of the task family restoration"


def test_wrong_answers_are_asked_again_with_another_seed_then_reported(tmp_path):
    for name, colour in {"bad": "green", "once": "red"}.items():
        write_coloured(tmp_path / f"clips/{name}.mp4", colour)

    def answer(body: dict[str, Any], colours: list[str]) -> str:
        good = colours[0] == "red" and body["temperature"] > 0
        return "A red ball rolls over the floor." if good else "I cannot describe what I see."

    with serve(ChatServer(answer)) as server:
        result = run(tmp_path, *command(server, tmp_path / "clips", "captioner.attempts=3"))
    assert result.code == 1
    assert (tmp_path / "clips/once.txt").read_text() == "A red ball rolls over the floor.\n"
    assert not (tmp_path / "clips/bad.txt").exists()
    report = json.loads((tmp_path / "root/captions.json").read_text())
    (row,) = report["without_caption"]
    assert (row["clip"][:3], row["reason"], row["answer"]) == ("bad", "refused", "I cannot describe what I see.")
    seeds = [request["seed"] for request in server.requests]
    assert len(seeds) == 2 + 2 + 1
    assert len(set(seeds)) == len(seeds)


def test_an_edit_shows_both_clips_and_may_be_written_in_the_form_of_pairs(tmp_path):
    write_coloured(tmp_path / "before.mp4", "grey")
    write_coloured(tmp_path / "after.mp4", "green")
    (tmp_path / "list.csv").write_text("video,reference\nafter.mp4,before.mp4\n")

    def answer(_body: dict[str, Any], colours: list[str]) -> str:
        assert colours == ["grey"] * 3 + ["green"] * 3
        return "Reference shows a grey floor. Edited shows a green floor."

    with serve(ChatServer(answer)) as server:
        result = run(tmp_path, *command(server, tmp_path / "list.csv", "conf=shave", "captioner.form=edit"))
    assert result.code == 0, result.err
    assert (tmp_path / "after.txt").read_text() == "Reference shows a grey floor. Edited shows a green floor.\n"


def test_a_signal_ends_the_command_while_the_server_is_silent(tmp_path):
    write_coloured(tmp_path / "clips/a.mp4", "red")
    with serve(ChatServer(by_colours, seconds=30.0)) as server:
        process = start(tmp_path, *command(server, tmp_path / "clips"))
        while not server.requests and process.is_alive():
            time.sleep(0.02)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(10)
    assert process.exitcode == 143
    assert (tmp_path / "err.txt").read_text().splitlines()[-1].startswith("terminated: the same command continues")
    assert not list((tmp_path / "clips").glob("*.txt*"))


def ask(server: ChatServer, key: str | None = None, **settings: Any) -> list[Answer]:
    captioner = Captioner(endpoint=server.address, **settings)
    return list(Endpoint.open(captioner, key).answers(ONE_PICTURE))


def test_a_broken_connection_and_a_slow_answer_are_tried_again(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.01)
    with serve(ChatServer(by_colours, failures=[None, None])) as server:
        assert "red" in ask(server)[0].text
        assert len(server.requests) == 3
    monkeypatch.setattr(http_client, "TRIES", 2)
    with (
        serve(ChatServer(by_colours, seconds=0.5)) as server,
        pytest.raises(ConfigError, match="did not answer 2 times"),
    ):
        ask(server, timeout=0.1)


def test_the_pauses_grow_up_to_a_limit_and_follow_the_server(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    failures: list[Reply | None] = [(503, b"", {})] * 3 + [
        (429, b"", {"Retry-After": "7"}),
        (429, b"", {"Retry-After": "999"}),
    ]
    with serve(ChatServer(by_colours, failures=failures)) as server:
        ask(server)
    assert [pause for pause in pauses if pause] == [1.0, 2.0, 4.0, 7.0, 60.0]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((400, b'{"error": "at most 1 image may be provided"}', {}), "at most 1 image.*captioner.frames"),
        ((404, b"no such model", {}), r"status 404 \(no such model\): check captioner.model"),
        ((307, b"", {"Location": "http://127.0.0.1:1/v1"}), "status 307.*redirects to"),
        ((200, b"<html>hello</html>", {}), "no JSON: <html>hello</html>.*ends in /v1"),
        ((200, b'{"answer": "a dog"}', {}), "form of OpenAI's chat completions.*ends in /v1"),
        ((200, b'{"choices": []}', {}), "form of OpenAI's chat completions.*ends in /v1"),
    ],
)
def test_an_error_that_trying_again_does_not_change_ends_at_once(failure, message):
    with serve(ChatServer(by_colours, failures=[failure])) as server:
        with pytest.raises(ConfigError, match=message):
            ask(server)
        assert len(server.requests) == 1


def test_a_server_that_stays_overloaded_is_given_up(monkeypatch):
    monkeypatch.setattr(http_client, "TRIES", 3)
    with serve(ChatServer(by_colours, failures=[(429, b"slow down", AT_ONCE)] * 3)) as server:
        with pytest.raises(ConfigError, match=r"status 429 \(slow down\): set captioner.requests lower"):
            ask(server)
        assert len(server.requests) == 3


def test_a_key_is_asked_for_and_never_printed():
    with serve(ChatServer(by_colours, key=KEY)) as server:
        with pytest.raises(ConfigError, match="set the variable OPENAI_API_KEY"):
            ask(server)
        with pytest.raises(ConfigError, match="the key in OPENAI_API_KEY is not accepted") as refused:
            ask(server, key="sk-wrong")
        assert "sk-wrong" not in str(refused.value)
        server.failures = [(400, f"bad request with {KEY}".encode(), {})]
        with pytest.raises(ConfigError, match=r"bad request with \.\.\.") as refused:
            ask(server, key=KEY)
        assert KEY not in repr(Endpoint.open(Captioner(endpoint=server.address), KEY).client)


def test_the_model_is_the_only_one_or_named():
    with serve(ChatServer(by_colours, models=["a", "b"])) as server:
        with pytest.raises(ConfigError, match=r"serves a, b: choose one with captioner\.model"):
            ask(server)
        with pytest.raises(ConfigError, match=r"captioner\.model=c is not served.*it serves a, b"):
            ask(server, model="c")
        ask(server, model="b")
        assert server.requests[-1]["model"] == "b"


def test_a_server_that_is_not_there_is_named_before_any_clip_is_decoded(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    write_coloured(tmp_path / "clips/a.mp4", "red")
    settings = (f"captioner.endpoint=http://127.0.0.1:{port}/v1", "data.root=root")
    result = run(tmp_path, "data_prep", "caption", "conf=deblur", f"data.clips={tmp_path / 'clips'}", *settings)
    assert result.code == 2
    assert "does not answer (Connection refused): start the server, or correct the address" in result.err

"""JSON over HTTP to an endpoint of the OpenAI form: an overloaded server is asked again, an error names its remedy."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from typing import IO, Any

from iclora_train.config import ConfigError

TRIES = 6  # of a request that an overloaded or restarting server does not answer
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; a wait is twice as long as the one before
OVERLOADED = (408, 409, 425, 429)  # statuses to wait at, besides those from 500 on
MODELS_TIMEOUT = 20.0  # seconds for the list of models, so that a wrong address is noticed early
SHOWN = 200  # characters of a server's message


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: the key would be sent to another server."""

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str) -> None:
        return None


@dataclass(frozen=True)
class HttpClient:
    """Requests to `address`, the URL up to /v1, with the API key in their header if there is one."""

    address: str
    key: str | None = field(repr=False)
    timeout: float

    def models(self) -> list[str] | None:
        """The names of the models that the server lists, or None if it has no such list. ConfigError as in `post`."""
        try:
            reply = self._send("/models", None, min(self.timeout, MODELS_TIMEOUT))
            return [str(model["id"]) for model in reply["data"]]
        except urllib.error.HTTPError as error:
            if error.code in (404, 405, 501):
                return None
            raise self._refused("/models", error) from error
        except (KeyError, TypeError) as error:
            raise self._wrong_form("another JSON than a list of models") from error
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(
                f"{self._name()} does not answer ({_reason(error)}): start the server, or correct the address"
            ) from error

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that the server answers to `body`. ConfigError names the reason and the remedy.

        Statuses 429 and 5xx, timeouts and broken connections are tried again, after the time that the server asks for.
        """
        wait = FIRST_WAIT
        for left in reversed(range(TRIES)):
            try:
                return self._send(path, body, self.timeout)
            except urllib.error.HTTPError as error:
                if left == 0 or not (error.code >= 500 or error.code in OVERLOADED):
                    raise self._refused(path, error) from error
                pause = _retry_after(error.headers, wait)
            except (OSError, http.client.HTTPException) as error:
                if left == 0:
                    raise ConfigError(
                        f"{self._name()} did not answer {TRIES} times ({_reason(error)}): look at the server, or set "
                        "captioner.requests lower or captioner.timeout higher"
                    ) from error
                pause = wait
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)
        raise AssertionError("the last try returns or raises")

    def _send(self, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.address + path, data, headers)
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=timeout) as reply:
            text = reply.read()
        try:
            return json.loads(text)
        except ValueError as error:
            raise self._wrong_form(f"no JSON: {self._shown(text)}") from error

    def _refused(self, path: str, error: urllib.error.HTTPError) -> ConfigError:
        """The error for a status that no further try changes."""
        if error.code in (401, 403):  # the message of the server may hold a part of the key
            key = "the key in OPENAI_API_KEY is not accepted" if self.key else "set the variable OPENAI_API_KEY"
            return ConfigError(f"{self._name()} refuses access (status {error.code}): {key}")
        with error:
            message = self._shown(error.read())
        remedy = {
            404: "check captioner.model, and that the address ends in /v1",
            413: "set captioner.frames or captioner.side lower",
            429: "set captioner.requests lower",
        }.get(error.code, "see the log of the server")
        if 300 <= error.code < 400:
            remedy = "give the address that it redirects to"
        if error.code == 400:
            remedy = "set captioner.frames or captioner.side lower, or let the server accept more pictures per prompt"
        return ConfigError(f"{self._name()} answers {path} with status {error.code} ({message}): {remedy}")

    def _wrong_form(self, reason: str) -> ConfigError:
        return ConfigError(f"{self._name()} answers with {reason}. Give the address that ends in /v1")

    def _name(self) -> str:
        return f"captioner.endpoint={self.address}"

    def _shown(self, text: bytes) -> str:
        """The start of a server's message on one line, without the key."""
        line = " ".join(text.decode(errors="replace").split())
        return (line.replace(self.key, "...") if self.key else line)[:SHOWN] or "no message"


def _reason(error: Exception) -> str:
    """Why a connection failed."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(getattr(inner, "strerror", None) or inner) or type(inner).__name__


def _retry_after(headers: Message, wait: float) -> float:
    """The seconds that the server asks to wait, or `wait`."""
    try:
        return min(max(0.0, float(headers.get("Retry-After", ""))), LONGEST_WAIT)
    except ValueError:  # none, or a date
        return wait

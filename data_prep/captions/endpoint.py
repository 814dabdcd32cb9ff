"""A captioner behind an HTTP endpoint of the OpenAI chat form, e.g. `vllm serve Qwen/Qwen3-VL-8B-Instruct`."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from multiprocessing.pool import ThreadPool
from typing import Any

import cv2

from data_prep.captions.answers import Answer, clean
from data_prep.captions.http_client import HttpClient
from data_prep.captions.questions import Part, Question, in_order
from iclora_train.config import Captioner, ConfigError, require

JPEG_QUALITY = 92


class Endpoint:
    """A model of a server. Frames are sent as JPEG in data URLs, captioner.requests questions at a time."""

    def __init__(self, client: HttpClient, model: str, settings: Captioner) -> None:
        self.client, self.model, self.settings = client, model, settings

    @classmethod
    def open(cls, settings: Captioner, key: str | None) -> Endpoint:
        """Ask the server for its models. key: of the API, if it requires one; it is never printed.

        ConfigError if the server does not answer, or does not serve captioner.model.
        """
        assert settings.endpoint is not None
        client = HttpClient(settings.endpoint.rstrip("/"), key, settings.timeout)
        listed = client.models()
        model = settings.model
        if model is None:
            require(
                listed is not None and len(listed) == 1,
                f"captioner.endpoint={settings.endpoint} serves {', '.join(listed or []) or 'no model that it names'}: "
                "choose one with captioner.model=<name>",
            )
            assert listed is not None
            model = listed[0]
        require(
            not listed or model in listed,
            f"captioner.model={model} is not served by captioner.endpoint={settings.endpoint}; it serves "
            f"{', '.join(listed or [])}",
        )
        return cls(client, model, settings)

    def answers(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """The answer to each question, in order."""
        with ThreadPool(self.settings.requests) as pool:
            for _, answer in in_order(pool, self._ask, questions, 2 * self.settings.requests):
                yield answer

    def _ask(self, question: Question) -> Answer:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [_content(part) for part in question.parts]}],
            "max_tokens": self.settings.max_tokens,
            "temperature": self.settings.temperature if question.attempt else 0.0,
            "seed": question.seed,
        }
        reply = self.client.post("/chat/completions", body)
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise ConfigError(
                f"captioner.endpoint={self.client.address} does not answer in the form of OpenAI's chat completions "
                f"({str(reply)[:120]}): give the address that ends in /v1"
            ) from error
        return Answer(clean(text if isinstance(text, str) else ""), choice.get("finish_reason") == "length")


def _content(part: Part) -> dict[str, Any]:
    """A part of a question in the form of the API."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(part, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"},
    }

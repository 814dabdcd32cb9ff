"""Ask a captioner about clips, ask again where the answer is wrong, and write one text file per clip."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Protocol

from rich.table import Column, Table

from data_prep.captions.answers import Answer, AnswerCheck
from data_prep.captions.endpoint import Endpoint
from data_prep.captions.instructions import forbidden_phrases, instruction_for, shows_reference
from data_prep.captions.questions import Question, in_order, read_question
from data_prep.clips.clip_list import Clip
from iclora_train.config import Captioner, Config
from iclora_train.config.paths import user_path
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.console import make_console, printable
from iclora_train.core.fingerprint import digest
from iclora_train.core.progress import ProgressBar, progress_bar

READERS = 4  # threads that decode clips while the model works
KEY_VARIABLE = "OPENAI_API_KEY"
SHOWN_ROWS, SHOWN_TEXT = 50, 60  # of the table on the screen


class CaptioningModel(Protocol):
    """A captioner, on this machine or behind an endpoint."""

    def answers(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """The answer to each question, in order. Questions are taken as they are needed."""
        ...


@dataclass(frozen=True)
class Uncaptioned:
    """A clip without a usable caption: why, and the last answer of the model."""

    clip: str
    path: str
    reason: str
    answer: str = ""


def open_captioning_model(settings: Captioner, key: str = "captioner.model") -> CaptioningModel:
    """The captioner of captioner.endpoint, or else of captioner.model, which `key` names in messages."""
    if settings.endpoint is not None:
        return Endpoint.open(settings, os.environ.get(KEY_VARIABLE))
    from data_prep.captions.local_model import LocalModel  # noqa: PLC0415 (transformers takes seconds to import)

    assert settings.model is not None
    return LocalModel.open(user_path(settings.model), settings, key)


def identity_of(config: Config, model: object) -> str:
    """A digest of everything that decides which captions are written. model: what identifies the model."""
    asked = [instruction_for(config, has_reference) for has_reference in (False, shows_reference(config))]
    names = ("frames", "side", "form", "max_tokens", "min_words", "most_equal", "script", "attempts", "temperature")
    settings = {name: getattr(config.captioner, name) for name in names}
    phrases = forbidden_phrases(config)
    return digest({"asked": asked, "settings": settings, "phrases": phrases, "seed": config.seed, "model": model})


def write_captions(
    clips: Sequence[Clip], files: Mapping[str, Path], model: CaptioningModel, config: Config, check: AnswerCheck
) -> list[Uncaptioned]:
    """Write the caption of each clip into its file, as soon as it is known. Returns the clips that got none.

    Clips with a wrong answer are asked again, all together, up to captioner.attempts times.
    """
    left: dict[str, Uncaptioned] = {}
    pending, attempts = list(clips), config.captioner.attempts
    for attempt in range(attempts):
        wrong = []
        text = f"asking again ({attempt + 1} of {attempts})" if attempt else "captioning"
        with progress_bar(text, len(pending), "clip") as bar:
            for clip, result in _ask(pending, model, config, attempt, bar):
                if isinstance(result, str):
                    left[clip.id] = Uncaptioned(clip.id, str(clip.path), result)
                    continue
                problem = check.problem(result)
                if problem is not None:
                    left[clip.id] = Uncaptioned(clip.id, str(clip.path), problem, result.text)
                    wrong.append(clip)
                    continue
                with write_atomic(files[clip.id]) as file:
                    file.write(f"{result.text}\n".encode())
                check.count(result.text)
                left.pop(clip.id, None)
        pending = wrong
        if not pending:
            break
    return [left[clip.id] for clip in clips if clip.id in left]


def _ask(
    clips: Sequence[Clip], model: CaptioningModel, config: Config, attempt: int, bar: ProgressBar
) -> Iterator[tuple[Clip, Answer | str]]:
    """Each clip with its answer, or with the reason why it cannot be read."""
    asked, unreadable = deque[Clip](), deque[tuple[Clip, str]]()
    ahead = 2 * (config.captioner.batch_size if config.captioner.endpoint is None else config.captioner.requests)

    def questions(pool: ThreadPool) -> Iterator[Question]:
        for clip, question in in_order(pool, partial(_read, config=config, attempt=attempt), clips, ahead):
            if isinstance(question, str):
                unreadable.append((clip, question))
            else:
                asked.append(clip)
                yield question

    with ThreadPool(READERS) as pool:
        for answer in model.answers(questions(pool)):
            yield asked.popleft(), answer
            bar.advance()
    yield from bar.track(unreadable)


def _read(clip: Clip, config: Config, attempt: int) -> Question | str:
    """The question about a clip, or why its files cannot be read."""
    try:
        return read_question(clip, config, attempt)
    except (ValueError, OSError) as error:
        return printable(str(error))


def write_list(path: Path, left: Sequence[Uncaptioned], **counts: Any) -> None:
    """Write the clips without caption as JSON, after the entries of `counts`."""
    with write_atomic(path) as file:
        entries = {**counts, "without_caption": [asdict(row) for row in left]}
        file.write(json.dumps(entries, indent=1, ensure_ascii=False).encode())


def show(left: Sequence[Uncaptioned]) -> None:
    """Print the table of the clips without caption on stdout."""
    if not left:
        return
    columns = (Column(name, overflow="fold") for name in ("clip", "reason", "last answer"))
    table = Table(*columns, title="without caption")
    for row in left[:SHOWN_ROWS]:
        text = row.answer if len(row.answer) <= SHOWN_TEXT else f"{row.answer[:SHOWN_TEXT]}..."
        table.add_row(row.clip, row.reason, printable(text))
    make_console().print(table)
    if len(left) > SHOWN_ROWS:
        print(f"and {len(left) - SHOWN_ROWS} more")


def automatic_settings(config: Config) -> Captioner:
    """The settings of the captioner that data.captioner names: a folder, or the address of an endpoint."""
    source = config.data.captioner
    assert source is not None
    if source.startswith(("http://", "https://")):
        return replace(config.captioner, endpoint=source)
    return replace(config.captioner, endpoint=None, model=source)

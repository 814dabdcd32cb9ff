"""Text on the command line reaches the settings as it was typed.

Hydra's grammar gives a meaning to commas, quotes, brackets, backslashes and `~`, and refuses letters such as é. A
prompt or a path may contain all of them, so values of text settings are quoted before Hydra parses them. Numbers,
groups (`conf=deblur`) and sweeps (`-m seed=0,1`) are left to Hydra.
"""

from __future__ import annotations

import os
import re
import types
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException

from iclora_train.config.errors import require

# settings in which `~` and unknown `${names}` stay as typed
PROMPTS = ("prompt", "negative_prompt", "data.prompt", "task.trigger", "captioner.instruction")
# arguments of a pair maker and of the command `signal`, any of which may be new: the maker and the command check them
OPEN = {"maker_args", "signal_settings"}
TEXT_OR_LIST = {"text_or_list": True}  # metadata of a field that takes a path or a list of paths
PROMPT_OR_LIST = {"prompt_or_list": True}  # metadata of a field that takes a text or a list of texts
OPTIONS_WITH_VALUE: tuple[str, ...] = (
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p"),
    *("--cfg", "-c", "--info", "-i", "--experimental-rerun"),
)
QUOTED = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
SWEEP_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag|extend_list)\(.*\)", re.DOTALL)
INTERPOLATION = re.compile(r"(?<!\\)((?:\\\\)*)\$\{")


def as_typed(arguments: list[str], schema: type, groups: Iterable[str]) -> list[str]:
    """The command line with each text quoted for Hydra. Applied twice, it gives the same command line.

    schema: the dataclass of all settings. groups: names of the groups in conf/. ConfigError for an argument that is
    neither an option nor `key=value`, such as the second word of a prompt without quotes.
    """
    result: list[str] = []
    multirun = any(argument in ("-m", "--multirun") for argument in arguments)
    for i, argument in enumerate(arguments):
        if argument.startswith(("-", "~")) or (i and arguments[i - 1] in OPTIONS_WITH_VALUE):
            result.append(argument)
            continue
        key, equals, value = argument.partition("=")
        require(bool(equals), _not_a_setting(argument, arguments[:i]))
        name = key.lstrip("+").partition("@")[0]
        names = {field.name for field in fields(schema)}
        if name in groups or "/" in name:
            value = _Untyped(names, name, multirun, is_group=True).quote(value)
        else:
            value = _rule(schema, name)(names, name, multirun).quote(value)
            is_open = _takes_any_key(schema, name) or not OPEN.isdisjoint(name.split("."))
            key = f"++{key}" if is_open and not key.startswith("+") else key  # for a new key
        result.append(f"{key}={value}")
    return result


def _not_a_setting(argument: str, before: list[str]) -> str:
    if before and before[-1].startswith("--"):
        return f"{before[-1]} {argument}: settings are written as key=value, e.g. seed=1; --help lists them"
    setting = next((text for text in reversed(before) if "=" in text and not text.startswith("-")), "prompt=A dog")
    key, _, value = setting.partition("=")
    return f'{argument!r} is not key=value; a value with spaces needs quotes: {key}="{value} {argument}"'


class _Untyped:
    """A value without a declared type, such as an argument of a pair maker: a number or list if Hydra reads it as such,
    otherwise text."""

    optional = True

    def __init__(self, names: set[str], name: str, multirun: bool, is_group: bool = False) -> None:
        self.names, self.name, self.multirun, self.is_group = names, name, multirun, is_group

    def quote(self, value: str) -> str:
        """The value in Hydra's grammar."""
        override = _parse(value)
        if override is None:
            return self._list(value, self.quote) if _is_list(value) else self._text(value)
        if override.is_sweep_override():
            sweep = override.value()
            is_text = isinstance(sweep, ChoiceSweep) and sweep.simple_form and not self.multirun and not self.is_group
            return self._text(value) if is_text else value
        parsed = override.value()
        return self._text(value) if isinstance(parsed, str) and parsed != value else value

    def _text(self, value: str) -> str:
        """A text in quotes, unless it is null or has quotes already."""
        if QUOTED.fullmatch(value) or (self.optional and value.lower() == "null"):
            return value
        if self.name not in PROMPTS:
            value = os.path.expanduser(value)
        return QuotedString(self._escape(value), Quote.single).with_quotes()

    def _escape(self, text: str) -> str:
        """Escape each `${` that begins no interpolation: in a prompt, unless it names a setting or a resolver."""

        def replace(match: re.Match[str]) -> str:
            rest = text[match.end() :]
            name = re.match(r"\s*(\.*)(\w*)", rest)
            assert name is not None
            known = bool(name[1]) or name[2] in {*self.names, "oc", "hydra"}
            closed = re.match(r"[^{}]+\}|[^{}]*\$\{", rest) is not None
            return match[0] if closed and (known or self.name not in PROMPTS) else f"{match[1] * 2}\\${{"

        return INTERPOLATION.sub(replace, text)

    def _list(self, value: str, quote: Callable[[str], str]) -> str:
        return f"[{','.join(quote(part.strip()) for part in self._parts(value[1:-1]))}]"

    def _parts(self, text: str) -> list[str]:
        return _split(text)


class _Text(_Untyped):
    """A text: with -m, commas separate the values of a sweep."""

    optional = False

    def quote(self, value: str) -> str:
        if not self.multirun:
            return self._element(value)
        if SWEEP_FUNCTION.fullmatch(value):
            return value
        return ",".join(self._element(part.strip()) for part in _split(value, brackets=True))

    def _element(self, value: str) -> str:
        return self._text(value)


class _OptionalText(_Text):
    """A text or null."""

    optional = True


class _TextList(_OptionalText):
    """A list of texts, or null."""

    def _element(self, value: str) -> str:
        return self._list(value, self._text) if _is_list(value) else value


class _TextOrList(_OptionalText):
    """A path or a list of paths. The path of an existing file may begin and end with brackets and contain commas."""

    def _element(self, value: str) -> str:
        return self._list(value, self._text) if _is_list(value) and not _exists(value) else self._text(value)

    def _parts(self, text: str) -> list[str]:
        """The parts between commas, joined where only the joined parts name a file."""
        parts, result = _split(text), []
        while parts:
            lengths = (n for n in range(1, len(parts) + 1) if _exists(",".join(parts[:n]).strip()))
            length = next(lengths, 1)
            result.append(",".join(parts[:length]))
            del parts[:length]
        return result


class _PromptOrList(_Text):
    """A text or a list of texts. Brackets around a single text, or around several parts of one, belong to the text."""

    def _element(self, value: str) -> str:
        is_list = _is_list(value) and _encloses(value) and len(_split(value[1:-1])) > 1
        return self._list(value, self._text) if is_list else self._text(value)


class _Other(_Untyped):
    """A number, a truth value, or a list of them: Hydra's."""

    def quote(self, value: str) -> str:
        return value


class _Dictionary(_Other):
    """A typed dictionary, such as {attn2: 8}."""

    def quote(self, value: str) -> str:
        override = _parse(value)
        valid = override is not None and (override.is_sweep_override() or isinstance(override.value(), dict))
        require(
            valid,
            f"{self.name}={value} is not {{key: value, ...}}, e.g. {{attn2: 8}}; a key with brackets or quotes needs a "
            "settings file",
        )
        return value


def _rule(schema: type, name: str) -> type[_Untyped]:
    """How the values of a setting are quoted, from its type in the schema."""
    hint: Any = schema
    for part in name.split("."):
        by_name = {field.name: field for field in fields(hint)} if is_dataclass(hint) else {}
        if part not in by_name:
            return _Untyped
        metadata = by_name[part].metadata
        if metadata in (TEXT_OR_LIST, PROMPT_OR_LIST):
            return _TextOrList if metadata == TEXT_OR_LIST else _PromptOrList
        hint = get_type_hints(hint)[part]
    options = set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}
    if str in options:
        return _OptionalText if type(None) in options else _Text
    if list[str] in options:
        return _TextList
    if _takes_any_key(schema, name):
        return _Dictionary
    return _Untyped if is_dataclass(hint) or hint is Any or get_origin(hint) is dict else _Other


def _takes_any_key(schema: type, name: str) -> bool:
    """Whether a setting is a typed dictionary, such as model.lora.rank_pattern, or an entry of one."""
    hint: Any = schema
    for part in name.split("."):
        if not is_dataclass(hint):
            break
        hint = get_type_hints(hint).get(part)
    return get_origin(hint) is dict and get_args(hint)[1] is not Any


def _parse(value: str) -> Override | None:
    """The override `key=value` in Hydra's grammar. None if Hydra cannot read it."""
    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return None


def _is_list(value: str) -> bool:
    return value.startswith("[") and value.endswith("]")


def _encloses(value: str) -> bool:
    """Whether the first bracket of a value is closed by its last one, as in [a,b] but not in [a], b, [c]."""
    depth = 0
    for i, letter in enumerate(QUOTED.sub(lambda match: " " * len(match[0]), value)):
        depth += (letter == "[") - (letter == "]")
        if depth <= 0:
            return depth == 0 and i == len(value) - 1
    return False


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def _split(text: str, brackets: bool = False) -> list[str]:
    """The parts between commas. An apostrophe inside a part is a letter; a part in quotes may contain commas, and with
    `brackets` a part in brackets too."""
    in_brackets = r"|\s*\[[^\]]*\]" if brackets else ""
    pattern = re.compile(rf"\s*(?:{QUOTED.pattern}){in_brackets}", re.DOTALL)
    parts, start = [], 0
    while start <= len(text):
        whole = pattern.match(text, start)
        end = text.find(",", start) if whole is None else whole.end()
        if whole is not None and text[end:].lstrip()[:1] not in ("", ","):
            end = start  # only the beginning of the part is in quotes
        end = text.find(",", end)
        end = len(text) if end < 0 else end
        parts.append(text[start:end])
        start = end + 1
    return [] if parts == [""] else parts

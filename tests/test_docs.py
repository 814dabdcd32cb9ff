"""README and docs name only commands, files, settings and links that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from lightning import Trainer
from omegaconf.errors import OmegaConfBaseException

from data_prep.signal.mask_settings import MaskSettings
from data_prep.signal.settings import SignalSettings
from eval.diagnosis.settings import DiagnoseSettings
from eval.transfer.settings import TransferConfig
from iclora_train.adapters.__main__ import parser
from iclora_train.config import Config
from iclora_train.config.command_line import as_typed
from iclora_train.config.hydra_app import _groups, conf_dir, explain_error, register_schema
from iclora_train.generate.settings import GenerateSettings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LOG = sorted((ROOT / "docs" / "log").glob("*.md"))  # dated entries, which may name files that no longer exist
PACKAGES = ("iclora_train", "data_prep", "eval")
TOP = (*PACKAGES, "conf", "docs", "scripts", "tests")
CONFIGS = {  # command -> the file it composes, and its schema
    "iclora_train": ("train", Config),
    "data_prep": ("prep", Config),
    "eval": ("eval", Config),
    "eval.handout": ("eval", Config),
    "eval.diagnose": ("diagnose", DiagnoseSettings),
    "eval.transfer": ("transfer", TransferConfig),
    "iclora_train.generate": ("generate", GenerateSettings),
    "iclora_train.signal": ("signal", SignalSettings),
}
PLACEHOLDER = re.compile(r"<[^>]*>|\.\.\.|\bmine\b|\$\{?\w+")
GENERATED = re.compile(r"^(runs|shards|samples|checkpoints|pairs|latents|eval)/")  # files that a run writes

FILES = (".py", ".md", ".yaml", ".json", ".jsonl", ".csv", ".html")  # endings of file names that look like settings


def module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code(page: Path) -> Iterator[str]:
    """Inline code, and the lines of code blocks: continuations joined, shell variables of the block filled in."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for block in blocks:
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            assignment = re.fullmatch(r"([A-Z]+)=[\"']?(.*?)[\"']?(\s+#.*)?", line)
            if assignment:
                variables[assignment[1]] = assignment[2]
            else:
                yield re.sub(r"\$([A-Z]+)\b", lambda match: variables.get(match[1], match[0]), line)  # noqa: B023
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, *LOG], ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page_id(page)} links to {target}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page_id(page)}: {target} is not a heading"


def alternatives(name: str) -> list[str]:
    """a/{b,c}.py -> a/b.py, a/c.py."""
    match = re.search(r"\{([^{}]*)\}", name)
    if match is None:
        return [name]
    return [
        alternative
        for part in match[1].split(",")
        for alternative in alternatives(name[: match.start()] + part + name[match.end() :])
    ]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_exist(page: Path) -> None:
    for text in code(page):
        for word in re.findall(r"[\w{},*./-]+", text):
            name = word.rstrip(".,/").split("::")[0]
            in_repository = name.startswith(tuple(f"{top}/" for top in TOP)) and not GENERATED.match(name)
            if not in_repository or PLACEHOLDER.search(text):
                continue
            for path in alternatives(name):
                assert list(ROOT.glob(path)), f"{page_id(page)} names {path}, which does not exist"


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `python -m`, `torchrun ... -m` and the like, one list per command."""
    for line in code(page):
        match = re.search(r"(?:python|torchrun\b.*?) -m +(.+)", line)
        if match:
            try:
                yield shlex.split(re.split(r"\s+#|\s[|>&]", match[1])[0])
            except ValueError as error:
                pytest.fail(f"{page_id(page)}: {line}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_modules_of_commands_exist(page: Path) -> None:
    for module, *words in commands(page):
        if module.split(".")[0] not in (*PACKAGES, "scripts"):
            continue
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"{page_id(page)}: python -m {module} does not exist"
        if module.startswith("scripts."):
            assert spec.origin is not None
            source = Path(spec.origin).read_text()
            for flag in (word.split("=")[0] for word in words if word.startswith("--")):
                assert f'"{flag}"' in source, f"{page_id(page)}: {module} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_settings_of_commands_compose(page: Path) -> None:
    for module, *words in commands(page):
        if module not in CONFIGS:
            continue
        name, schema = ("mask", MaskSettings) if words[:1] == ["mask"] else CONFIGS[module]
        settings = [word for word in words if "=" in word and not word.startswith("-") and not PLACEHOLDER.search(word)]
        if "-m" in words:  # for a sweep, its first job
            settings = [word.split(",")[0] for word in settings]
        try:
            compose_settings(name, schema, settings)
        except (HydraException, OmegaConfBaseException) as error:
            pytest.fail(f"{page_id(page)}: python -m {module} {' '.join(settings)}: {explain_error(error)}")


def compose_settings(name: str, schema: type, overrides: list[str]) -> Any:
    register_schema(schema)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(name, overrides=as_typed(overrides, schema, _groups()))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_adapter_commands_parse(page: Path) -> None:
    choices = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for text in code(page):
        match = re.search(r"(?<!from )iclora_train\.adapters (\w+)(.*)", text)
        if match is None or "|" in text:
            continue
        command, rest = match.groups()
        assert command in choices, f"{page_id(page)}: iclora_train.adapters has no command {command}"
        flags = {flag for action in choices[command]._actions for flag in action.option_strings}
        for flag in re.findall(r"--[\w-]+", rest):
            assert flag in flags, f"{page_id(page)}: iclora_train.adapters {command} has no {flag}"


def keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every setting of a dataclass: `data`, `data.fps`, `model.lora.rank`."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        yield prefix + field.name
        kinds = [hints[field.name], *get_args(hints[field.name])]
        for kind in kinds:
            if isinstance(kind, type) and is_dataclass(kind):
                yield from keys(kind, f"{prefix}{field.name}.")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_settings_named_in_text_exist(page: Path) -> None:
    settings = {*keys(TransferConfig), *keys(GenerateSettings)}
    open_sections = ("trainer", "logger", "task.maker_args", "optim.optimizer")  # arguments of other libraries
    trainer = {*signature(Trainer).parameters, "memory"}
    sections = {key.split(".")[0] for key in settings if "." in key} | {"trainer"}
    for text in code(page):
        for name in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_0-9]+)+)(?=$|[\s=,;:)\]])", text):
            section, _, key = name.partition(".")
            in_package = section in PACKAGES and (module_exists(name) or module_exists(name.rpartition(".")[0]))
            if in_package or section not in sections or name.endswith(FILES):
                continue
            if section == "trainer":
                assert key in trainer, f"{page_id(page)} names {name}, which is not an argument of lightning.Trainer"
            elif not name.startswith(open_sections):
                assert name in settings, f"{page_id(page)} names {name}, which is not a setting"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for text in code(page):
            for target in re.findall(r"^make ([a-z-]+)", text):
                assert target in targets, f"{page_id(page)}: make {target} does not exist"

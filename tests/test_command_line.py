"""Prompts and paths on the command line reach the settings as they were typed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from iclora_train.config import Config, ConfigError
from iclora_train.config.command_line import as_typed
from iclora_train.config.hydra_app import conf_dir, register_schema
from iclora_train.generate.settings import GenerateSettings

GROUPS = [path.name for path in conf_dir().iterdir() if path.is_dir()]
TEXTS = [
    "A dog, running.",
    "A man's dog.",
    "été à la plage, 東京 🐕",
    '"Stop!" she said.',
    '"Stop!", she said, "now"',
    "take (1)",
    "clips [v2]",
    "[v2] clips",
    "a=b; c # d {e} : f & g | h * ? ! % @ ^",
    "costs $5, or ${price}, or ${",
    "C:\\clips\\new",
    "ends with a backslash\\",
    "it's \\'odd\\",
    "  spaces around  ",
    "two\nlines and a\ttab",
    "007",
    "1e3",
    "true",
    "-5",
    "choice(a,b)",
    "",
]


def composed(name: str, *arguments: str) -> DictConfig:
    schema = GenerateSettings if name == "generate" else Config
    register_schema(schema)
    typed = as_typed(list(arguments), schema, GROUPS)
    assert as_typed(typed, schema, GROUPS) == typed  # a command that starts another one passes it on
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(name, typed)


def generate(*arguments: str) -> DictConfig:
    required = {"adapter": "a", "reference": "r", "out": "o.mp4"}
    keys = {argument.partition("=")[0] for argument in arguments}
    return composed("generate", *(f"{k}={v}" for k, v in required.items() if k not in keys), *arguments)


def value_of(schema: type, key: str, text: str) -> Any:
    """The value of a setting that is set to `text` on the command line, as Hydra and OmegaConf read it."""
    typed = as_typed([f"{key}={text}"], schema, GROUPS)
    assert as_typed(typed, schema, GROUPS) == typed
    return OmegaConf.create({"value": OverridesParser.create().parse_override(typed[0]).value()}).value


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_is_taken_as_typed(text: str) -> None:
    assert value_of(GenerateSettings, "prompt", text) == text
    assert value_of(GenerateSettings, "negative_prompt", text) == text


@pytest.mark.parametrize("text", [text for text in TEXTS if "${" not in text])
def test_a_path_or_name_is_taken_as_typed(text: str) -> None:
    for key in ("data.clips", "data.root", "runs_dir", "run", "task.trigger", "model.vae", "adapter", "eval.against"):
        assert value_of(Config, key, text) == text


def test_a_whole_command_is_taken_as_typed() -> None:
    texts = ["A dog, running.", "A man's dog.", "été (1)"]
    settings = generate(f"prompt={texts[0]}", f"negative_prompt={texts[1]}", f"reference=clips [v2]/{texts[2]}.mp4")
    assert [settings.prompt, settings.negative_prompt] == texts[:2]
    assert settings.reference == "clips [v2]/été (1).mp4"


@pytest.mark.parametrize("text", ["a, b", "été", "/models (1)/b's.onnx", "a=b", "C:\\new", "a [b]"])
def test_text_without_a_declared_type_is_taken_as_typed(text: str) -> None:
    for key in ("+task.maker_args.model", "+logger.wandb.notes", "optim.optimizer.name"):
        assert value_of(Config, key, text) == text


def test_random_text_is_taken_as_typed() -> None:
    letters = random.Random(0)
    for _ in range(100):
        text = "".join(letters.choice("ab é'\"\\,;=()[]{}$:#~-_/\n") for _ in range(letters.randint(1, 12)))
        if (text[0], text[-1]) in {("'", "'"), ('"', '"')}:
            continue  # quotes of its own
        if (text[0], text[-1]) == ("[", "]"):
            continue  # may be a list
        assert value_of(GenerateSettings, "prompt", text) == text


def test_a_value_in_quotes_of_its_own_is_taken_without_them() -> None:
    assert value_of(GenerateSettings, "prompt", "'A dog, running.'") == "A dog, running."
    assert value_of(GenerateSettings, "prompt", '"It\'s a dog."') == "It's a dog."


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.root", "/x/${task.name} (1)", "/x/deblur (1)"),
        ("run", "${task.name}, seed ${seed}", "deblur, seed 0"),
        ("data.root", "${oc.env:ICLORA_TEST_FOLDER}/a b", "/the folder/a b"),
        ("data.root", "\\${task.name}", "${task.name}"),
    ],
)
def test_interpolations_work_in_paths(key: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICLORA_TEST_FOLDER", "/the folder")
    assert OmegaConf.select(composed("train", "conf=deblur", f"{key}={value}"), key) == expected


def test_an_interpolation_of_a_setting_works_in_a_prompt() -> None:
    assert generate("prompt=take ${seed} for ${price}", "seed=3").prompt == "take 3 for ${price}"
    assert list(generate("prompt=[take ${seed},${price}]", "seed=3").prompt) == ["take 3", "${price}"]


def test_the_home_folder_is_expanded_in_paths_and_not_in_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert composed("train", "conf=deblur", "data.clips=~/my clips").data.clips == "/home/ann/my clips"
    assert composed("train", "conf=deblur", "model.vae=~").model.vae == "/home/ann"
    settings = generate("reference=[~/a.mp4,~/b.mp4]", "out=~/out.mp4", "prompt=~/not a path")
    assert settings.reference == ["/home/ann/a.mp4", "/home/ann/b.mp4"]
    assert (settings.out, settings.prompt) == ("/home/ann/out.mp4", "~/not a path")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.mp4", "a.mp4"),
        ("007", "007"),
        ("take (1).mp4", "take (1).mp4"),
        ("[a.mp4,b.mp4]", ["a.mp4", "b.mp4"]),
        ("[a.mp4, man's.mp4,dog's.mp4]", ["a.mp4", "man's.mp4", "dog's.mp4"]),
        ('["a, b.mp4",c.mp4]', ["a, b.mp4", "c.mp4"]),
        ("[here, there.mp4,c.mp4]", ["here, there.mp4", "c.mp4"]),  # an existing file
        ("[v2]", "[v2]"),  # an existing folder
        ("[v3]", ["v3"]),
    ],
)
def test_a_path_or_a_list_of_paths(value: str, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here, there.mp4").touch()
    (tmp_path / "[v2]").mkdir()
    assert value_of(GenerateSettings, "reference", value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[A dog runs.,A cat sleeps.]", ["A dog runs.", "A cat sleeps."]),
        ("[A man's dog., the dog's man]", ["A man's dog.", "the dog's man"]),
        ('["A dog, running.",null,007]', ["A dog, running.", "null", "007"]),
        ("[a [sks] dog,~/b]", ["a [sks] dog", "~/b"]),
        ("[A dog runs]", "[A dog runs]"),  # one text
        ("[sks] dog, a cat, [x]", "[sks] dog, a cat, [x]"),
        ("'[A dog, running]'", "[A dog, running]"),
        ("null", "null"),
    ],
)
def test_a_prompt_or_a_list_of_prompts(value: str, expected: Any) -> None:
    assert value_of(GenerateSettings, "prompt", value) == expected


def test_null_numbers_and_lists_keep_their_types() -> None:
    settings = generate("attention_mask=[null,m (1).png]", "adapter_strength=[0.5,1]", "first_frame=null", "fps=24")
    assert settings.attention_mask == [None, "m (1).png"]
    assert (settings.adapter_strength, settings.first_frame, settings.fps) == ([0.5, 1], None, 24.0)
    config = composed("train", "conf=deblur", "data.buckets=[64x64x9, 32x32x9]", "task.maker_args.radius=[1.0,2.0]")
    assert (config.data.buckets, config.task.maker_args.radius) == (["64x64x9", "32x32x9"], [1.0, 2.0])
    assert composed("train", "conf=deblur", "trainer.max_steps=3", "data.buckets=null").trainer.max_steps == 3


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("data.root=a,b", "data.root='a','b'"),
        ("data.root='a, b', ~", "data.root='a, b','/home/ann'"),
        ("prompt=A man's dog., A cat.", "prompt='A man\\'s dog.','A cat.'"),
        ("reference=[a,b],c", "reference=['a','b'],'c'"),
        ("conf=deblur,canny", "conf=deblur,canny"),
        ("seed=0,1", "seed=0,1"),
        ("data.root=choice(a,b)", "data.root=choice(a,b)"),
    ],
)
def test_commas_separate_the_values_of_a_sweep(argument: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    schema = GenerateSettings if argument.startswith(("prompt", "reference")) else Config
    assert as_typed(["-m", argument], schema, GROUPS) == ["-m", expected]


def test_options_and_their_values_are_left_alone() -> None:
    arguments = ["--config-dir", "/a=b (1)", "--cfg", "job", "~task.trigger", "conf=deblur"]
    assert as_typed(arguments, Config, GROUPS) == arguments


def test_a_word_without_quotes_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"'dog' is not key=value.*prompt=\"A dog\""):
        as_typed(["prompt=A", "dog", "runs"], GenerateSettings, GROUPS)
    with pytest.raises(ConfigError, match="--max-steps 3: settings are written as key=value"):
        as_typed(["conf=deblur", "--max-steps", "3"], Config, GROUPS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model.lora.rank_pattern={attn2.*: 8, ff.net.?: 16}"], {"attn2.*": 8, "ff.net.?": 16}),
        (["model.lora.rank_pattern={attn2:8}", "+model.lora.rank_pattern={ff:4}"], {"attn2": 8, "ff": 4}),
        (["model.lora.rank_pattern.attn2=8"], {"attn2": 8}),
        (["model.lora.rank_pattern={}"], {}),
    ],
)
def test_a_dictionary_of_patterns_needs_no_plus(arguments: list[str], expected: dict[str, int]) -> None:
    assert composed("train", "conf=deblur", *arguments).model.lora.rank_pattern == expected


@pytest.mark.parametrize("value", ["8", "attn2", "{attn2", "{transformer_blocks.[0-9]: 8}", "{'attn2': 8}"])
def test_a_value_that_is_no_dictionary_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.rank_pattern=.* is not \{key: value, \.\.\.\}"):
        composed("train", f"model.lora.rank_pattern={value}")

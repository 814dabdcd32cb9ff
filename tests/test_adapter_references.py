"""The layouts of an adapter's references in its file: written, read, checked, and kept by the commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iclora_train.adapters.__main__ import main
from iclora_train.adapters.algebra import combine
from iclora_train.adapters.check import check
from iclora_train.adapters.conditions import conditions_of
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import Adapter, read, save
from iclora_train.adapters.metadata import metadata_findings
from iclora_train.adapters.references import MORE, ReferenceLayout, more_layouts, references_metadata
from iclora_train.config import ConfigError, Task
from iclora_train.config.references import MoreReference

APPEARANCE = {"name": "appearance", "downscale": 2, "temporal_scale": 1, "frame": 0}
MOTION = {"name": "motion", "downscale": 4, "temporal_scale": 2, "frame": None}
FACTOR = {"reference_downscale_factor": "1"}


def more(*entries: object) -> dict[str, str]:
    return {**FACTOR, MORE: json.dumps(entries)}


def adapter_with(metadata: dict[str, str], seed: int = 0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 4096, generator=generator), torch.randn(8, 2, generator=generator)
    return Adapter({"transformer_blocks.0.attn1.to_q": (a, b)}, metadata)


def test_the_layouts_of_a_task_are_read_as_they_were_written(tmp_path: Path) -> None:
    task = Task(
        name="two",
        maker="control.canny",
        more_references=[
            MoreReference("appearance", "edit.frame", {"frame": -1}, downscale=2, frame=-1, p=0.8),
            MoreReference("motion", "control.motion", downscale=4, temporal_scale=2),
        ],
    )
    save(tmp_path / "a.safetensors", adapter_with({**FACTOR, **references_metadata(task.more_references)}))
    layouts = read(tmp_path / "a.safetensors").references
    assert layouts == [
        ReferenceLayout("first"),
        ReferenceLayout("appearance", 2, 1, -1),
        ReferenceLayout("motion", 4, 2),
    ]
    assert [layout.p for layout in layouts] == [1, 0.8, 1]
    assert [layout.name for layout in layouts] == task.reference_names


def test_an_adapter_with_one_reference_has_the_layout_of_the_older_keys() -> None:
    assert references_metadata([]) == {}
    metadata = {"reference_downscale_factor": "2", "reference_temporal_scale_factor": "4"}
    assert Adapter({}, metadata).references == [ReferenceLayout("first", 2, 4)]
    assert Adapter({}, {"reference_frame": "-1"}).references == [ReferenceLayout("first", frame=-1)]
    assert Adapter({}, {**metadata, "adapter_kind": "lora"}).references == []


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("edges and style", r"more_references='edges and style' is not the list"),
        ("[" * 100_000, r"is not the list of an adapter's further references"),
        ("[]", "is not the list"),
        ('{"name": "a"}', "is not the list"),
        ("[1]", r"more_references\[0\] is '1', not a reference with a name"),
        ('[{"downscale": 2}]', r"\[0\] has the name 'null', not a letter"),
        ('[{"name": "a|b"}]', r"\[0\] has the name '\"a\|b\"', not a letter"),
        (
            '[{"name": "a"}, {"name": "b", "downscale": 0}]',
            r"\[1\] has downscale='0', not a whole number from",
        ),
        ('[{"name": "a", "temporal_scale": 2.0}]', r"has temporal_scale='2\.0', not a whole number"),
        ('[{"name": "a", "downscale": true}]', "has downscale='true', not a whole number"),
        ('[{"name": "a", "frame": "last"}]', r"has frame='\"last\"', not the number of a frame"),
        ('[{"name": "a", "frame": 0, "temporal_scale": 2}]', "begins at frame 0 and has another frame rate"),
        ('[{"name": "a", "p": NaN}]', "has p='NaN', not a share"),
        ('[{"name": "a"}, {"name": "a"}]', "two references named 'a'"),
    ],
)
def test_a_malformed_layout_is_a_finding_and_no_reader_fails(text: str, finding: str, tmp_path: Path) -> None:
    metadata = {**FACTOR, MORE: text}
    path = tmp_path / "a.safetensors"
    with pytest.raises(ConfigError, match=finding):
        save(path, adapter_with(metadata))  # reads the file back
    (found,) = check(path)
    assert len(found) < 300
    assert Adapter({}, metadata).references[0].name == "first"
    if "two references" not in finding:
        assert more_layouts(metadata) == []


def test_every_malformed_entry_is_named() -> None:
    findings = metadata_findings(more({"name": 1}, APPEARANCE, {"name": "b", "frame": 10**6}))
    assert [finding.split("]")[0] for finding in findings] == [f"metadata {MORE}[0", f"metadata {MORE}[2"]


def test_conditions_that_are_nested_too_deep_are_foreign_text() -> None:
    assert conditions_of({"target_conditions": "[" * 100_000}) == []


def test_check_prints_the_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.safetensors", adapter_with(more(APPEARANCE)))
    with pytest.raises(SystemExit, match="0"):
        main(["check", str(tmp_path / "a.safetensors")])
    assert "2 references: first, factor 1; appearance, factor 2, at frame 0" in capsys.readouterr().out


def test_a_combination_keeps_the_references_on_which_all_agree() -> None:
    one, two = adapter_with(FACTOR), adapter_with(more(APPEARANCE), seed=1)
    three = adapter_with(more(APPEARANCE, MOTION), seed=2)
    for adapters, names in (
        ([one, two], ["first", "appearance"]),
        ([three, two], ["first", "appearance", "motion"]),
        ([one, one], ["first"]),
    ):
        both = combine([(adapter, 0.5) for adapter in adapters])
        assert [layout.name for layout in both.references] == names
        assert metadata_findings(both.metadata) == []
    plain = adapter_with({**FACTOR, "adapter_kind": "lora"})
    assert combine([(plain, 1.0), (three, 1.0)]).references == three.references
    other = adapter_with(more({**APPEARANCE, "name": "style", "frame": 8}))
    with pytest.raises(ConfigError, match=r"disagree on more_references, appearance \(factor 2, at frame 0, factor 2"):
        combine([(two, 1.0), (other, 1.0)])


def test_convert_keeps_the_references(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, adapter_with(more(APPEARANCE)))
    assert import_adapter(path).references == read(path).references
    larger = import_adapter(path, factors=ReferenceFactors(downscale=4)).references
    assert larger == [replace(larger[0], downscale=4), ReferenceLayout("appearance", 2, 1, 0)]
    plain = import_adapter(path, factors=ReferenceFactors(reference=False))
    assert MORE not in plain.metadata

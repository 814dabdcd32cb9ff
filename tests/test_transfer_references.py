"""eval.transfer of a task with several references: each is swapped alone under every choice, also in two stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.transfer.run import results_folder, transfer
from iclora_train.ltx2.base_model import BaseModel
from scripts.synthetic.upsampler import write_upsampler
from tests.eval_world import build, write_adapter
from tests.test_eval import violations
from tests.test_eval_references import LAYOUT, SETTINGS, with_still
from tests.test_eval_transfer import SCHEMA, settings
from tests.tiny import CHANNELS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_reference_is_swapped_alone_under_every_choice(tmp_path: Path) -> None:
    world = build(tmp_path, task="canny", settings=SETTINGS, controlled=with_still)
    write_adapter(world.adapter, BaseModel.open(str(world.root / "base")), more_references=LAYOUT)
    small = {"in_channels": CHANNELS, "mid_channels": 32, "num_blocks_per_stage": 1}
    write_upsampler(world.root / "upsampler.safetensors", **small)
    chosen = ("steps=[3]", "schedules=[two_stage]", "sizes=[0.5]", "precisions=[]", "adapter_strengths=[]")
    config = settings(
        *world.arguments,
        f"transfer.upsampler={world.root / 'upsampler.safetensors'}",
        *(f"transfer.{text}" for text in chosen),
    )
    assert transfer(config) == []
    folder = results_folder(config)
    record = json.loads((folder / "transfer.json").read_text())
    assert violations(record, SCHEMA) == []
    rows = {row["name"]: row for row in record["choices"]}
    measured = {name for name, row in rows.items() if row["references"]}
    assert measured == {"task's settings", "3 steps", "two stages"}
    for name in measured:
        used = rows[name]["references"]
        assert list(used) == ["first", "still"]
        assert used["first"]["lost"]["n"] == used["still"]["lost"]["n"] == 4
        assert used["first"]["lost"]["mean"] != used["still"]["lost"]["mean"]
    shares = [rows[name]["references"]["still"]["lost"]["mean"] for name in sorted(measured)]
    assert len(set(shares)) == 3
    assert rows["16x16x5"]["obstacle"].startswith("averaging down changes the references of control.canny")
    page = (folder / "transfer.html").read_text()
    assert page.count("lost when one reference is swapped") == 1
    assert f"still {shares[0]:.2f} <" in page

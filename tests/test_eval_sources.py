"""An evaluation on several sources (`data.sources`): windows of all, figures of each, no leakage between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.run import evaluate
from iclora_train.core.fingerprint import digest
from iclora_train.data.heldout import EvaluationPlan
from iclora_train.data.mixture import Mixture, open_data
from tests.eval_world import World, build, compose_config, scores
from tests.test_eval import SCHEMA, violations


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two sets of one base. `cat` is held out in the first, and the same file is a train clip of the second."""
    folder = tmp_path_factory.mktemp("mixed")
    first = build(folder / "first", {"train": ["sea", "road"], "heldout": ["cat", "dog"]})
    build(folder / "second", {"train": ["cat", "lake"], "heldout": ["fog", "hat"]})
    sources = "[{root: first, name: old, weight: 2}, {root: second, name: new}]"
    for name in ("first", "second"):
        sources = sources.replace(f"root: {name}", f"root: {folder / name}/shards")
    overrides = [o for o in first.overrides if not o.startswith("data.root")]
    return World(first.root, [*overrides, "data.root=mixed", f"data.sources={sources}", "eval.strengths=[1.0,0.0]"])


def test_windows_come_from_all_sources_and_none_was_trained_on(mixed: World) -> None:
    config = mixed.config("eval.windows=8")
    plan = EvaluationPlan.of(config)
    assert sorted(set(plan.recordings)) == ["new-cat", "new-fog", "new-hat", "old-dog"]
    assert {sample.key.partition("-")[0] for sample in plan.samples} == {"old", "new"}
    latents = open_data(config, "latents")
    assert isinstance(latents, Mixture)
    trained = {latents.samples[i].source for i in latents.indices("train")}
    assert trained == {"old-sea", "old-road", "new-lake"}
    assert plan.pairs.made_from.sources["new-cat"].video == digest("cat")


def test_scores_have_the_figures_of_each_source(mixed: World) -> None:
    report = evaluate(mixed.config()).read_text()
    result = scores(mixed)
    assert violations(result, SCHEMA) == []
    keys, psnr = [clip["key"] for clip in result["clips"]], result["windows"]["adapter+reference"]["psnr"]
    assert set(result["sources"]) == {"old", "new"}
    for source, cells in result["sources"].items():
        values = [value for key, value in zip(keys, psnr, strict=True) if key.startswith(f"{source}-")]
        assert cells["adapter+reference"]["psnr"]["mean"] == pytest.approx(np.mean(values), abs=1e-5)
        assert cells["adapter+reference"]["psnr"]["n"] == len(values)
    assert 'id="sources"' in report


def test_one_source_can_be_evaluated_alone(mixed: World, tmp_path: Path) -> None:
    """As any finished set: without data.sources, by data.root."""
    overrides = [o for o in mixed.arguments if not o.startswith(("data.root", "data.sources"))]
    config = compose_config([*overrides, f"data.root={mixed.root}/shards", f"runs_dir={tmp_path}"])
    assert [sample.source for sample in EvaluationPlan.of(config).samples] == ["cat", "cat", "dog", "dog"]

"""A task without references: a plain LoRA, from clips to the adapter file."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.makers import build_maker
from iclora_train.adapters.check import check, notes
from iclora_train.adapters.file import read
from iclora_train.config import ConfigError
from iclora_train.data.mixture import open_data
from iclora_train.data.shards import ShardSet
from iclora_train.media.shard_clip import decode_clip
from tests.command import Result, read_csv, run
from tests.prep import SIZE, write_clips
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents

TRAIN = ["trainer.accelerator=cpu", "model.lora.rank=2", "optim=adamw", "trainer.max_steps=4", "logger=csv"]
TRAIN += ["eval.after_training=false", "sample.steps=2", "validation.sigmas=[0.3,0.7]", "validation.loss_every=2"]
REFERENCE_CHECKS = ("shape", "offset", "blank", "static", "clipped", "coverage")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], Result]:
    """A folder with a prepared set, the settings that prepared it, and what the command printed.

    The list names references that do not exist: a task without references does not read them.
    """
    folder = tmp_path_factory.mktemp("style")
    base = write_tiny_base(folder / "base")
    clips = write_clips(folder / "clips", ("train",) * 3 + ("val",) * 2 + ("heldout",) * 2)
    head, *rows = clips.read_text().splitlines()
    clips.write_text("\n".join([f"{head},reference", *(f"{row},missing.mp4" for row in rows)]))
    settings = ["conf=style", "model.name=tiny", f"model.checkpoint={base}", f"data.clips={clips}", "data.root=shards"]
    settings += [*SIZE, "data.train_windows=10", "data.heldout_windows=4"]
    return folder, settings, run(folder, "data_prep", *settings)


def test_a_pair_is_the_target_and_its_caption(prepared: tuple[Path, list[str], Result]) -> None:
    folder, _, result = prepared
    assert result.code == 0, result.err
    pairs, latents = (ShardSet.open(folder / "shards" / kind) for kind in ("pairs", "latents"))
    assert len(pairs) == len(latents) == 18
    for i in range(len(pairs)):
        assert latents.read_latents(i).references == ()
        record = pairs.record(i)
        assert record.record["maker"] == "none"
        assert record.caption.startswith("a moving texture")
    held = pairs.indices("heldout")[0]
    assert pairs.read_pair(held).references == ()
    assert pairs.read_pair(held).target.shape == (5, 32, 32, 3)
    assert set(pairs.read_previews(pairs.indices("train")[0])) == {"target"}


def test_only_checks_that_apply_are_shown(prepared: tuple[Path, list[str], Result]) -> None:
    folder, _, result = prepared
    for name in REFERENCE_CHECKS:
        assert f"\n {name} " not in result.out
    for name in ("vae", "duplicate", "caption_long"):
        assert f"\n {name} " in result.out
    page = (folder / "shards/contact.html").read_text()
    assert page.count('title="the clip"') == 18
    assert "reference above target" not in page


def test_the_set_is_verified_and_previewed(prepared: tuple[Path, list[str], Result]) -> None:
    folder, settings, _ = prepared
    verified = run(folder, "data_prep", "verify", "data.root=shards")
    assert verified.code == 0, verified.err
    preview = run(folder, "data_prep", "preview", *settings, "data.root=other")
    assert preview.code == 0, preview.err
    clips = [decode_clip(path.read_bytes()) for path in (folder / "other/preview").glob("*.mp4")]
    assert len(clips) > 0
    assert {clip.shape for clip in clips} == {(5, 32, 32, 3)}  # the target alone


def test_a_run_trains_validates_and_exports_a_plain_lora(prepared: tuple[Path, list[str], Result]) -> None:
    folder, settings, _ = prepared
    result = run(folder, "iclora_train", *settings, *TRAIN, "validation.windows=4", "run=run")
    assert (result.code, result.err) == (0, "")
    first, *_, last = read_csv(folder / "runs/run/metrics.csv")
    assert not [column for column in first if "swap" in column or "correct" in column or "control" in column]
    assert float(first["adapter_gain"]) == 0  # B is zero before the first step
    losses = {name: float(last[f"val_{name}_0.3"]) + float(last[f"val_{name}_0.7"]) for name in ("none", "base")}
    assert float(last["adapter_gain"]) == pytest.approx(1 - losses["none"] / losses["base"], abs=1e-5)
    assert losses["none"] != losses["base"]
    sampled = next((folder / "runs/run/samples").glob("step-00000004-*.mp4"))
    assert decode_clip(sampled.read_bytes()).shape == (5, 32, 2 * 32, 3)  # output and target
    assert "swapped" not in result.out
    assert "adapter gain" in result.out
    path = folder / "runs/run/adapter.safetensors"
    adapter = read(path)
    assert not adapter.in_context
    assert adapter.metadata["reference_downscale_factor"] == "1"
    assert (check(path), notes(path, adapter)) == ([], [])
    checked = run(folder, "iclora_train.adapters", "check", str(path))
    assert "a plain LoRA, which takes no reference" in checked.out
    card = path.with_suffix(".md").read_text()
    assert "# style: a LoRA for tiny" in card
    assert "| reference | none |" in card


def test_captions_are_dropped_in_a_task_without_references(prepared: tuple[Path, list[str], Result]) -> None:
    folder, settings, _ = prepared
    more = ["validation.loss_every=0", "validation.windows=4", "run=dropout", "flow.caption_dropout_p=0.5"]
    result = run(folder, "iclora_train", *settings, *TRAIN, *more)
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["conf=style", "task.family=edit"], "maker none .* and family style .* go together"),
        (["conf=deblur", "task.family=style"], "maker none .* and family style .* go together"),
        (["conf=style", "task.reference_frame=-1"], r"task\.reference_frame=-1: task\.maker=none has no ref"),
        (["conf=style", "task.reference_downscale=2"], r"task\.reference_downscale=2: task\.maker=none has no ref"),
        (
            ["conf=style", "+task.maker_args.radius=2"],
            r"task\.maker_args=.*radius.*: task\.maker=none has no ref",
        ),
        (["conf=style", "flow.reference_p=0.9"], r"flow\.reference_p=0\.9: task\.maker=none has no reference"),
        (["conf=style", "flow.locality=1"], r"flow\.locality=1\.0: task\.maker=none has no reference"),
        (["conf=style", "data.references=before"], r"data\.references=before: task\.maker=none has no reference"),
    ],
)
def test_settings_of_references_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


def test_a_source_with_references_is_refused(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    common = [f"model.checkpoint={base}", *SETTINGS]
    for task in ("style", "canny"):
        write_tiny_latents(tmp_path / task / "latents", base, composed(f"conf={task}", *common))
    source = f"data.sources=[{{root: {tmp_path}/%s}}]"
    of_style = composed("conf=style", *common, source % "style")
    open_data(of_style, "latents").require_settings(of_style)
    for task, other, words in (("style", "canny", "has references"), ("canny", "style", "has no reference")):
        config = composed(f"conf={task}", *common, source % other)
        with pytest.raises(ConfigError, match=words):
            open_data(config, "latents").require_settings(config)


def test_no_other_maker_can_use_it() -> None:
    union = build_maker("none", {})
    with pytest.raises(ConfigError, match="no other maker can use it"):
        union(None, None, None)  # type: ignore[arg-type]

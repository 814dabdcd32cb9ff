"""eval from the command line on a tiny random base: complete, resumable, and strict about what it is given."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from eval.cells import Item, batches, grid, sweep
from eval.charts import strength_curve
from eval.media import Media
from eval.render import Store, half_columns, half_masks, to_pixels
from eval.run import evaluate
from eval.windows import HeldOut, Window, check_leakage, partners, spread
from iclora_train import lora
from iclora_train.config import Config, ConfigError, check
from iclora_train.fingerprint import content_settings, digest
from iclora_train.hydra_main import conf_dir
from iclora_train.ltx2.base import Base
from iclora_train.members import latent_members, pair_members
from iclora_train.pair import LatentPair, Pair, VideoShape
from iclora_train.reference import mask_to_grid
from iclora_train.shards import Sample, ShardWriter
from tests.command import run, start
from tests.tiny import SETTINGS, SHAPE, write_tiny_base

SCHEMA = json.loads((Path(__file__).parent.parent / "eval" / "scores.schema.json").read_text())
MODULES = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")


@dataclass(frozen=True)
class World:
    """A tiny base, held-out shards for it, an adapter, and the overrides that name them."""

    root: Path
    overrides: list[str]

    @property
    def adapter(self) -> Path:
        return self.root / "adapter.safetensors"

    @property
    def results(self) -> Path:
        """Where the evaluation of `adapter` goes."""
        return next((self.root / "runs" / "deblur-nano").glob("eval-adapter-*"))

    def config(self, *more: str) -> Config:
        return compose_config([*self.arguments, *more])

    @property
    def arguments(self) -> list[str]:
        """What follows `python -m eval`."""
        return [*self.overrides, f"adapter={self.adapter}"]


def compose_config(overrides: list[str]) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return check(compose("eval", overrides))


def clip(seed: int) -> np.ndarray:
    """Coloured blocks that move by a pixel a frame, uint8 (F,H,W,3)."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([blocks[:, t : t + SHAPE.width] for t in range(SHAPE.frames)])


def write_shards(
    root: Path, base: Base, config: Config, sources: dict[str, list[str]], recording: Callable[[str], str]
) -> None:
    """Pair and latent shards: of every source clip two windows; the reference is the target at half brightness."""
    videos = {name: {"video": digest(name)} for names in sources.values() for name in names}
    settings = content_settings(config)
    made_pairs = {"settings": settings, "sources": videos}
    made_latents = {
        "settings": settings,
        "pairs": digest(made_pairs),
        "base": {"parts": base.latent_fingerprints},
    }
    writers = (ShardWriter(root / "pairs", "pairs", made_pairs), ShardWriter(root / "latents", "latents", made_latents))
    vae = base.vae()
    text = base.text()
    for split, names in sources.items():
        members: tuple[list[Any], list[Any]] = ([], [])
        for name in names:
            for i in range(2):
                seed = sum(name.encode()) + 100 * i
                record: dict[str, object] = {"source": recording(name)}
                pair = Pair(f"{split}-{name}-{i}", clip(seed), (clip(seed) // 2,), "moving blocks", SHAPE.fps, record)
                shape = VideoShape(*pair.target.shape[:3], SHAPE.fps)
                target, reference = (latent_of(vae, pixels) for pixels in (pair.target, pair.references[0]))
                latents = LatentPair(pair.key, target, (reference,), text.encode([pair.caption])[0], SHAPE.fps)
                members[0].append(pair_members(pair, name))
                members[1].append(latent_members(latents, shape, name, {}))
        for writer, samples in zip(writers, members, strict=True):
            writer.write(f"{split}-000000.tar", samples)
    writers[1].write_empty(text.encode([""])[0])
    for writer in writers:
        writer.finish([f"{split}-000000.tar" for split in sources])


def latent_of(vae: Any, pixels: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return vae.encode(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)[0]


def write_adapter(path: Path, base: Base, **metadata: str) -> None:
    """A random adapter, strong enough to change what is sampled."""
    generator = torch.Generator().manual_seed(0)
    linears = dict(base.transformer().named_modules())
    weights = {}
    for name in (f"transformer_blocks.{i}.{module}" for i in range(2) for module in MODULES):
        wide, deep = linears[name].weight.shape
        weights[name] = (torch.randn(2, deep, generator=generator), 0.2 * torch.randn(wide, 2, generator=generator))
    known = {"base_model_family": base.family, "base_model_version": base.version, "reference_downscale_factor": "1"}
    lora.save(path, lora.Adapter(weights, {**known, **metadata}))


def build(
    root: Path, sources: dict[str, list[str]] | None = None, recording: Callable[[str], str] = lambda clip: ""
) -> World:
    """The whole small world below `root`."""
    folder = write_tiny_base(root / "base")
    overrides = [
        "conf=deblur",
        *SETTINGS,
        f"model.checkpoint={folder}",
        f"data.root={root / 'shards'}",
        f"runs_dir={root / 'runs'}",
        "model.precision=fp32",
        "sample.steps=2",
        "eval.windows=4",
        "eval.seeds=[0,1]",
        "eval.batch_size=3",
        "eval.strengths=[1.0,0.5,0.0]",
    ]
    base = Base.open(str(folder))
    sources = sources or {"train": ["sea", "road"], "heldout": ["cat", "dog"]}
    write_shards(root / "shards", base, compose_config(overrides), sources, recording)
    write_adapter(root / "adapter.safetensors", base)
    return World(root, overrides)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The world is too small for more, and tests share few cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which the command has been run once, from beginning to end."""
    world = build(tmp_path_factory.mktemp("judged"))
    done = run(world.root, "eval", *world.arguments)
    assert done.code == 0, done.err
    assert f"report  {world.results / 'report.html'}" in done.out
    return world


@pytest.fixture
def world(judged: World, tmp_path: Path) -> World:
    """A fresh world with nothing judged yet; shards and base are those of `judged`."""
    shutil.copy(judged.adapter, tmp_path / "adapter.safetensors")
    overrides = [o for o in judged.overrides if not o.startswith("runs_dir")]
    return World(tmp_path, [*overrides, f"runs_dir={tmp_path / 'runs'}"])


def scores(world: World) -> dict[str, Any]:
    return json.loads((world.results / "scores.json").read_text())


def violations(value: Any, schema: dict[str, Any], where: str = "$") -> list[str]:
    """What of a JSON value breaks a schema, for the keywords that scores.schema.json uses."""
    if "$ref" in schema:
        return violations(value, SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]], where)
    found = []
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    fits = any(value is None if n == "null" else isinstance(value, kinds[n]) for n in names)
    if names and (not fits or (isinstance(value, bool) and "boolean" not in names)):
        return [f"{where}: {value!r} is no {' or '.join(names)}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is none of {schema['enum']}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{where}: {value} is below {schema['minimum']}")
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            found.append(f"{where}: {len(value)} items")
        found += [v for i, x in enumerate(value) for v in violations(x, schema.get("items", {}), f"{where}[{i}]")]
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
        found += [f"{where}: no {key}" for key in schema.get("required", []) if key not in value]
        for key, inner in value.items():
            rule = known.get(key, other)
            found += [f"{where}.{key}: unknown"] if rule is False else violations(inner, rule, f"{where}.{key}")
    return found


def test_scores_follow_the_schema(judged: World) -> None:
    found = scores(judged)
    assert violations(found, SCHEMA) == []
    assert violations({**found, "task": 3, "extra": 1}, SCHEMA) == ["$.task: 3 is no string", "$.extra: unknown"]
    assert [entry["s"] for entry in found["strength"]] == [1, 0.5, 0]
    assert found["strength"][0]["metrics"] == found["cells"]["adapter+reference"]
    assert all(row["psnr"]["n"] == 4 for row in found["cells"].values())


def test_cells_differ_as_they_should(judged: World) -> None:
    found = scores(judged)
    psnr = {name: row["psnr"]["mean"] for name, row in found["cells"].items()}
    models = [psnr[name] for name in ("adapter+reference", "base+reference", "base", "adapter", "swapped")]
    assert len({round(value, 6) for value in models}) == 5
    assert psnr["input"] == pytest.approx(np.mean(found["windows"]["input"]["psnr"]), abs=1e-5)
    assert found["cells"]["floor"]["edge_gap"]["mean"] < 0
    assert found["mask"]["null_change"]["mean"] < 0.01  # strength 0 is as if there were no reference
    assert found["strength"][-1]["metrics"]["psnr"]["mean"] == pytest.approx(psnr["adapter"], abs=0.01)
    assert found["mask"]["inside"]["mean"] > 0


def test_a_killed_evaluation_goes_on_and_ends_the_same(judged: World, world: World) -> None:
    """Killed with -9 as soon as a few batches are on disk; the second run keeps them and gives the same scores."""
    kept = world.root / "runs" / "deblur-nano" / "eval-cells"
    process = start(world.root, "eval", *world.arguments)
    while len(list(kept.glob("*.safetensors"))) < 3 and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    before = {path: path.stat().st_mtime_ns for path in kept.glob("*.safetensors")}
    assert not list(world.root.rglob("scores.json"))
    assert 3 <= len(before) < len(list((judged.root / "runs").rglob("*.safetensors")))
    assert run(world.root, "eval", *world.arguments).code == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    again, whole = (without_run(scores(w)) for w in (world, judged))
    assert again == whole


def without_run(found: dict[str, Any]) -> dict[str, Any]:
    """Scores without what tells one run from another: times, the command, where files lie."""
    provenance = {k: v for k, v in found["provenance"].items() if k not in ("command", "settings")}
    return {**found, "timings": None, "adapter": found["adapter"]["sha256"], "provenance": provenance}


def test_the_base_is_not_sampled_again_for_another_adapter(judged: World) -> None:
    kept = judged.root / "runs" / "deblur-nano" / "eval-cells"
    before = len(list(kept.iterdir()))
    other = judged.root / "other.safetensors"
    write_adapter(other, Base.open(str(judged.root / "base")), task="another")
    evaluate(judged.config(f"adapter={other}"))
    cells, count = grid([1.0, 0.5, 0.0]), 3  # batches of a cell: 8 items, 3 at a time
    assert len(list(kept.iterdir())) - before == count * sum(cell.adapter for cell in cells)


def test_half_precision_and_guidance_make_other_clips(world: World) -> None:
    kept, counts = world.root / "runs" / "deblur-nano" / "eval-cells", []
    for more in ("model.precision=bf16", "sample.guidance=2.0"):
        evaluate(world.config(more))
        assert violations(scores(world), SCHEMA) == []
        counts.append(len(list(kept.iterdir())))
    assert counts[1] == 2 * counts[0]


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({"a": 1}, torch.zeros(1, 5, 8, 8, 3, dtype=torch.uint8), 1.5)
    clips, seconds = store.read({"a": 1})
    assert (clips.shape, seconds) == ((1, 5, 8, 8, 3), 1.5)
    store.path({"a": 1}).write_bytes(b"half a file")
    with pytest.raises(ConfigError, match="is damaged"):
        store.read({"a": 1})


class Page(HTMLParser):
    """What a page refers to, and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "poster", "data")]


def test_report_is_one_file_and_complete(judged: World) -> None:
    text = (judged.results / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert [link for link in page.links if not link.startswith(("data:", "#"))] == []
    assert "http://" not in text
    assert "https://" not in text
    assert page.tags.count("video") == 4 * 6
    assert [path.name for path in judged.results.iterdir() if path.is_dir()] == []
    for row in scores(judged)["cells"]:
        assert f'<th scope="row">{row}</th>' in text
    for verdict in scores(judged)["verdicts"]:
        assert verdict["claim"] in text
    embedded = re.search(r'<script type="application/json" id="scores">(.*?)</script>', text, re.DOTALL)
    assert embedded is not None
    assert json.loads(embedded[1]) == scores(judged)


def test_large_media_lie_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.media.INLINE_BYTES", 200)
    media = Media(tmp_path)
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert media.picture("flat", np.zeros_like(frame)).startswith("data:image/png;base64,")
    assert media.picture("busy", frame) == "media/busy.png"
    assert (tmp_path / "media" / "busy.png").stat().st_size > 200


@pytest.mark.parametrize("low_high", [(24.1, 31.7), (0.2, 0.9), (5.0, 5.0)])
def test_curve_stays_inside_its_frame(low_high: tuple[float, float]) -> None:
    low, high = low_high
    points = [(s, {"mean": v, "low": v - 0.1, "high": v + 0.1, "n": 9}) for s, v in ((0, low), (0.5, high), (1, high))]
    chart = strength_curve("PSNR <dB>", points, [("input", {"mean": low, "low": None, "high": None, "n": 1})])
    assert "&lt;dB&gt;" in chart
    heights = [float(y) for y in re.findall(r'cy="([-\d.]+)"', chart)]
    assert len(heights) == 3
    assert all(0 <= y <= 260 for y in heights)


def refused(config: Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(config)


def test_leakage_is_refused(tmp_path: Path) -> None:
    leaky = build(tmp_path, {"train": ["sea", "cat"], "heldout": ["cat", "dog"]})
    refused(leaky.config(), r"leakage: cat of split heldout \(1 clips in all\)")


@pytest.mark.parametrize(
    ("judged_as", "leaks"), [({"dog", "its bytes"}, False), ({"copy", "cat's bytes"}, True), ({"cut", "cat.mov"}, True)]
)
def test_a_copy_and_a_cut_of_the_same_recording_leak(judged_as: set[str], leaks: bool) -> None:
    known = {"cat": frozenset({"cat", "cat.mov", "cat's bytes"}), "it": frozenset(judged_as)}
    if leaks:
        with pytest.raises(ConfigError, match="leakage: it"):
            check_leakage({"it"}, {"cat"}, known, "heldout")
    else:
        check_leakage({"it"}, {"cat"}, known, "heldout")


def test_cuts_of_one_recording_are_one_source(tmp_path: Path) -> None:
    """Four clips of two recordings: partners are of the other recording, and claims count two units."""
    sources = {"train": ["sea"], "heldout": ["cat", "cat close", "dog", "dog close"]}
    world = build(tmp_path, sources, recording=lambda clip: f"{clip.split()[0]}.mov")
    held = HeldOut.open(world.config("eval.windows=8"), Base.open(str(tmp_path / "base")))
    assert [window.source for window in held.windows] == ["cat.mov"] * 4 + ["dog.mov"] * 4
    assert [window.partner for window in held.windows] == [4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"base_model_version": "2.5"}, "was trained on tiny 2.5, this base is tiny 2.3"),
        ({"base_model_family": "ltx"}, "was trained on ltx 2.3"),
        ({"reference_downscale_factor": "2"}, "wants references at downscale 2"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(judged: World, metadata: dict[str, str], message: str) -> None:
    path = judged.root / "foreign.safetensors"
    write_adapter(path, Base.open(str(judged.root / "base")), **metadata)
    refused(judged.config(f"adapter={path}"), message)


def test_what_is_missing_is_named(judged: World, tmp_path: Path) -> None:
    refused(judged.config(f"adapter={tmp_path / 'none.safetensors'}"), r"none.safetensors does not exist")
    refused(judged.config("eval.windows=5"), "holds 4 windows of split heldout")
    refused(judged.config("eval.split=val"), "holds 0 windows of split val")
    refused(judged.config(f"data.root={tmp_path}"), "run data_prep")
    other = write_tiny_base(tmp_path / "base", seed=1)
    refused(judged.config(f"model.checkpoint={other}"), "was made by another base")


def sample_of(key: str, source: str) -> Sample:
    return Sample(key, "heldout", "heldout-0.tar", 0, 0, 0, "32x32x5", source)


def test_windows_are_spread_evenly_over_sources() -> None:
    samples = [sample_of(f"a{i}", "a") for i in range(10)] + [sample_of(f"b{i}", "b") for i in range(3)]
    own = {"a": "a", "b": "b"}
    assert [s.key for s in spread(samples, own, 4)] == ["a2", "a7", "b0", "b2"]
    assert len(spread(samples, own, 9)) == 9
    assert len({s.key for s in spread(samples, own, 13)}) == 13


@pytest.mark.parametrize("sources", ["aabb", "aabbcc", "aaab", "abcabc", "aaaabbc"])
def test_partners_are_of_another_source(sources: str) -> None:
    chosen = partners(list(sources))
    assert all(sources[i] != sources[j] for i, j in enumerate(chosen))
    if len({sources.count(name) for name in sources}) == 1:
        assert sorted(chosen) == list(range(len(sources)))


def test_one_source_cannot_be_swapped() -> None:
    with pytest.raises(ConfigError, match="at least two"):
        partners(["a", "a"])


def test_noise_belongs_to_window_and_seed() -> None:
    windows = [Window(i, f"w{i}", "a", "32x32x5", 0) for i in range(3)]
    seeds = [item.noise_seed for batch in batches(windows, [0, 1], 4) for item in batch]
    assert len(set(seeds)) == 6
    assert Item(replace(windows[0], number=7), 0).noise_seed == seeds[0]


def test_a_batch_has_one_frame_rate() -> None:
    windows = [Window(i, f"w{i}", "a", f"32x32x5@{rate}", 0) for i, rate in enumerate((25, 30, 25))]
    made = batches(windows, [0, 1], 3)
    assert [len(batch) for batch in made] == [3, 1, 2]
    assert all(len({item.window.bucket for item in batch}) == 1 for batch in made)


def test_zero_and_one_are_always_among_the_strengths() -> None:
    assert sweep([0.5]) == [1, 0.5, 0]
    names = [cell.name for cell in grid([0.5])]
    assert len(set(names)) == len(names) == 8


@pytest.mark.parametrize("width", [4, 5])
def test_half_masks_fall_on_whole_tokens_where_they_can(width: int) -> None:
    tokens = mask_to_grid(half_masks([True, False], width), (2, 3, width))  # (2,f,h,w)
    row = [1.0] * (width // 2) + [0.5] * (width % 2) + [0.0] * (width // 2)
    assert tokens[0, 1, 2].tolist() == row
    assert tokens[1, 0, 0].tolist() == row[::-1]


def test_columns_leave_out_the_band_on_both_sides() -> None:
    assert half_columns(64, 8, keep_left=True) == (slice(0, 24), slice(40, 64))
    assert half_columns(64, 8, keep_left=False) == (slice(40, 64), slice(0, 24))


def test_pixels_are_rounded() -> None:
    levels = torch.tensor([0, 1, 127, 254, 255])
    video = (levels / 127.5 - 1).reshape(1, 1, 5, 1, 1).expand(1, 3, 5, 1, 1)
    assert to_pixels(video + 0.003)[0, :, 0, 0, 0].tolist() == levels.tolist()

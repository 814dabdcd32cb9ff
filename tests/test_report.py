"""report.html as a file: complete, self-contained, escaped, with unmeasured values marked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from html.parser import HTMLParser
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.clips.windows import Window
from eval.compare import compare
from eval.judging.ranking import Example, first_examples, ranking
from eval.report import first_screen
from eval.report.charts import bars, frame_line, probe_curve, strength_curve
from eval.report.exhibits import Clips, Exhibit, examples
from eval.report.masks import fade, half_tile
from eval.report.media import Media, change_clip, thumbnail
from eval.report.outputs import save_outputs
from eval.report.page import sizes, write_page
from eval.statistics.estimates import estimate
from eval.synthetic.run import ProbeClips
from iclora_train.config import ConfigError, Eval
from iclora_train.media.shard_clip import decode_clip
from tests.scores_example import FRAMES, clip, example, exhibits

SECTIONS = ["examples", "gates", "diagnostics", "conditions", "clips", "windows", "provenance", "probes"]
VOID = ("meta", "link", "input", "br", "img")


class Page(HTMLParser):
    """Checks nesting; collects tags, addresses, ids, and the text of every table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.rows: list[str] = []
        self.styled: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")
        for name, value in attrs:
            if name in ("src", "href"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name == "style" or name.startswith("on"):
                self.styled.append(f"{tag} {name}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "tr" in self.open:
            self.rows[-1] += data + " "


@pytest.fixture(scope="module")
def scores() -> dict[str, Any]:
    return example()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, scores: dict[str, Any]) -> str:
    folder = tmp_path_factory.mktemp("report")
    text = write_page(Media(folder, single=True), scores, islice(exhibits(scores), 4)).read_text()
    assert {path.name for path in folder.iterdir()} == {"report.html", "scores.json"}
    return text


def write(folder: Path, scores: dict[str, Any], **more: Any) -> str:
    return write_page(Media(folder), scores, islice(exhibits(scores), 1), **more).read_text()


def test_the_page_is_one_file_without_network_access_and_its_links_resolve(text: str) -> None:
    page = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    assert len(page.ids) == len(set(page.ids))
    internal = [address for address in page.addresses if address.startswith("#") and "window-" not in address]
    assert {address[1:] for address in internal} <= set(page.ids)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert page.styled == []  # the Content Security Policy would block them


def test_the_page_embeds_scores_json(text: str, scores: dict[str, Any]) -> None:
    embedded = re.search(r'<script type="application/json" id="scores">(.*?)</script>', text, re.DOTALL)
    assert embedded is not None
    assert json.loads(embedded[1]) == scores


def test_tables_have_every_row_verdict_symptom_and_window(text: str, scores: dict[str, Any]) -> None:
    rows = Page(text).rows
    labels = [*scores["cells"], *(clip["key"] for clip in scores["clips"]), "depth_error", "adapter.sha256"]
    labels += [verdict["claim"] for verdict in scores["verdicts"]] + [flag["symptom"] for flag in scores["flags"]]
    assert [label for label in labels if not any(row.strip().startswith(label) for row in rows)] == []
    assert "memory not measured" in " ".join(" ".join(row.split()) for row in rows)


def test_text_is_escaped(text: str) -> None:
    assert "<title>deblur &lt;1&gt;: 1 of 2 gates not measured (swap_drop), 1 holds</title>" in text
    assert "PSNR above the &lt;degraded&gt; input" in text
    assert "blocks &lt;0&gt;" in text


def test_sections_without_content_are_left_out(tmp_path: Path, scores: dict[str, Any]) -> None:
    """Clips of another program have no base, strengths, masks or second seed, and unmeasured values."""
    bare = {
        **deepcopy(scores),
        "strength": [],
        "mask": None,
        "control": None,
        "diversity": {},
        "frames": {},
        "flags": [],
    }
    bare["cells"] = {name: bare["cells"][name] for name in ("adapter+reference", "input")}
    bare["windows"] = {name: bare["windows"][name] for name in ("adapter+reference", "input")}
    bare["windows"]["adapter+reference"]["ssim"][0] = None
    del bare["cells"]["input"]["ssim"]
    first = next(exhibits(scores))
    clips = {name: first.clips[name] for name in ("adapter+reference", "reference", "target")}
    page = Page(write_page(Media(tmp_path), bare, [type(first)(first.window, first.fps, "", clips)]).read_text())
    assert "clips" in page.ids
    assert not {"probes", "strength", "mask"} & set(page.ids)
    assert page.tags.count("video") == 3 + 3 + 2  # three of the first screen, three of the window, two of the viewer


def test_synthetic_probes_come_last(tmp_path: Path, scores: dict[str, Any]) -> None:
    signal = {"claim": "it <moves>", "threshold": 4.0, "floor": 20.0, "passed": True}
    path, line = [[float(i), 2.0 * i] for i in range(FRAMES)], [float(i) for i in range(FRAMES)]
    simple = {
        **{"passed": 2, "of": 3, "seconds": 3.2, "kind": "edges"},
        "signals": [
            {**signal, "name": "square", "value": 1.0, "requested": path, "found": path},
            {**signal, "name": "line", "value": 1.0, "requested": line, "found": line},
            {**signal, "name": "ramp", "value": 9.0, "requested": [7.5], "found": [1.5], "passed": False},
        ],
        "not_run": [{"signal": "hold", "reason": "nothing to draw"}],
    }
    probe_clips = {"square": ProbeClips(clip(1), clip(1)[::2, ::2, ::2], clip(2), clip(3))}
    page = Page(text := write(tmp_path, {**scores, "simple": simple}, probe_clips=probe_clips))
    sections = [name for name in page.ids if name in SECTIONS]
    assert sections == SECTIONS
    assert "2 of 3 probes pass" in text
    assert "requested 7.5, measured 1.5" in text
    assert any("hold" in row and "nothing to draw" in row for row in page.rows)
    assert text.count('aria-label="requested') == 0
    assert text.count(', square"') == 4


def test_an_earlier_evaluation_is_compared_paired(tmp_path: Path, scores: dict[str, Any]) -> None:
    before = deepcopy(scores)
    before["windows"]["adapter+reference"]["psnr"] = [v - 2 for v in scores["windows"]["adapter+reference"]["psnr"]]
    before["provenance"]["precision"] = "bf16"
    page = Page(text := write(tmp_path, scores, comparison=compare(before, scores)))
    changed = next(row for row in page.rows if row.startswith("PSNR, dB") and "2.00 to 2.00" in row)
    assert changed.split()[-6:-2] == ["2.00", "2.00", "to", "2.00"]
    assert "bf16" in text


def test_the_worst_windows_come_first(scores: dict[str, Any]) -> None:
    order = ranking(scores).worst_first()
    assert (order[0], order[-1]) == (3, 5)
    assert (examples(scores)[0], examples(scores)[-1], len(examples(scores))) == (3, 5, 6)
    hard = deepcopy(scores)  # a clip that is hard for everybody is not the worst: the order is by gain
    for row in ("adapter+reference", "input"):
        hard["windows"][row]["psnr"][7] -= 15
    assert ranking(hard).worst_first() == order


def test_windows_of_a_control_task_are_ordered_by_agreement_above_the_base(scores: dict[str, Any]) -> None:
    control = {**deepcopy(scores), "family": "structure"}  # the input is a drawing
    output, base = (control["windows"][row]["psnr"] for row in ("adapter+reference", "base"))
    base[8] = output[8] + 1
    order = ranking(control).worst_first()
    assert (order[0], ranking(control).over) == (8, "base")
    control["metrics"]["psnr"]["better"] = "low"
    assert ranking(control).worst_first()[-1] == 8
    for row in ("base", "input"):  # clips of another program
        del control["windows"][row]
    output[3] = None
    order = ranking(control).worst_first()
    assert (order[0], order[-1]) == (5, 3)
    assert ranking(control).over is None


def test_the_first_rows_are_of_three_recordings_where_there_are_enough(scores: dict[str, Any]) -> None:
    def titles(changed: dict[str, Any]) -> list[tuple[str, int, int]]:
        return [(example.title, example.rank, example.of) for example in first_examples(changed)]

    own = deepcopy(scores)
    for i, facts in enumerate(own["clips"]):
        facts["source"] = f"tape {i}"
    assert titles(own) == [("worst gain", 1, 11), ("median", 6, 11), ("best gain", 11, 11)]
    worst, best = ranking(own).worst_first()[0], ranking(own).worst_first()[-1]
    own["clips"][best]["source"] = own["clips"][worst]["source"]
    assert titles(own) == [("worst gain", 1, 11), ("median", 6, 11), ("best gain of another recording", 10, 11)]
    one = deepcopy(own)
    for facts in one["clips"]:
        facts["source"] = "tape"
    assert titles(one) == [("worst gain", 1, 11), ("median", 6, 11), ("best gain", 11, 11)]
    assert len({example.number for example in first_examples(one)}) == 3
    two = deepcopy(own)
    two["clips"] = two["clips"][:2]
    two["windows"] = {row: {m: v[:2] for m, v in metrics.items()} for row, metrics in two["windows"].items()}
    assert titles(two) == [("worst gain", 1, 2), ("best gain", 2, 2)]


def test_the_first_screen_has_the_answer_and_three_rows(tmp_path: Path, scores: dict[str, Any]) -> None:
    chosen = {example.number for example in first_examples(scores)}
    windows = (exhibit for exhibit in exhibits(scores) if exhibit.window.number in chosen)
    text = write_page(Media(tmp_path), scores, windows).read_text()
    first = text[text.index("<header>") : text.index('<section id="gates">')]
    assert '<h1>deblur &lt;1&gt; <span class="warn">1 of 2 gates hold, 1 not measured</span></h1>' in first
    assert '<p class="answer">deblur &lt;1&gt; is better than its input' in first
    assert re.findall(r"<h3>([a-z ]+):", first) == ["worst gain", "median", "best gain of another recording"]
    titles = ["reference", "without adapter", "with adapter", "target"]
    assert re.findall(r"<figcaption><b>(.*?)</b>", first) == titles * 3
    assert first.count('poster="data:image/jpeg') == 12
    assert "Ordered by the gain over the input in PSNR, dB, mean over seeds." in first


def test_the_first_screen_is_ordered_by_gain_also_in_a_metric_that_is_better_when_low(
    tmp_path: Path, scores: dict[str, Any]
) -> None:
    control, example_of_3 = deepcopy(scores), Example(3, "worst gain", 1, 11)
    control |= {"family": "structure", "primary": "flicker", "adherence": "flicker"}
    control["windows"]["base"]["flicker"] = [v + 1.5 for v in control["windows"]["adapter+reference"]["flicker"]]
    note = first_screen.rows({3: "row"}, [example_of_3], control)
    assert "Ordered by the gain over the base without reference in flicker, levels, mean over seeds." in note
    exhibit = next(exhibit for exhibit in exhibits(control) if exhibit.window.number == 3)
    assert "<h3>worst gain: +1.50 levels <small>" in first_screen.row(Media(tmp_path), exhibit, control, example_of_3)
    del control["windows"]["base"]
    assert "Ordered by flicker, levels, mean over seeds." in first_screen.rows({3: "row"}, [example_of_3], control)


def test_headings_are_in_order_and_every_player_has_a_label(text: str) -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])", text[: text.index("<dialog")])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - level <= 1 for level, later in pairwise(levels))
    assert re.findall(r"<video(?![^>]*aria-label=)", text) == []
    assert re.findall(r"<img(?![^>]*alt=)", text) == []


def test_clips_are_files_beside_the_page_unless_one_file_is_asked_for(tmp_path: Path) -> None:
    media = Media(tmp_path)
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    busy = media.picture("busy", frame)
    assert busy.startswith("media/busy-")
    moving = media.clip("moving", clip(0), 24)
    decoded = decode_clip((tmp_path / moving).read_bytes())
    assert decoded.shape == (FRAMES, 192, 192, 3)
    assert np.abs(decoded[:, 1::3, 1::3].astype(float) - clip(0)).mean() < 4
    assert media.bytes == sum(path.stat().st_size for path in (tmp_path / "media").iterdir())
    later = Media(tmp_path)
    other = later.picture("busy", frame[::-1])
    assert (tmp_path / busy).exists()  # the earlier report still shows it
    later.remove_others()
    assert [f"media/{path.name}" for path in (tmp_path / "media").iterdir()] == [other]
    single = Media(tmp_path, single=True)
    assert single.picture("busy", frame).startswith("data:image/png;base64,")
    single.remove_others()
    assert list((tmp_path / "media").iterdir()) == []
    page = tmp_path / "report.html"
    page.write_bytes(bytes(300_000))
    assert sizes(page, single) == f"one file of 0.3 MB, clips and pictures {single.bytes / 1e6:.1f} MB"
    assert "0.3 MB, clips and pictures" in sizes(page, media)
    assert "beside it in media/" in sizes(page, media)


def test_a_clip_is_encoded_once_for_page_outputs_and_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []

    def encode(data: bytes) -> Callable[..., bytes]:
        return lambda frames, *_, **__: encoded.append((data, frames.shape)) or data

    monkeypatch.setattr("eval.report.media.encode_clip", encode(b"mp4"))
    monkeypatch.setattr("eval.report.media.encode_preview", encode(b"small"))

    def exhibit(height: int, width: int) -> Exhibit:
        window = Window(4, "dog-00000", "dog", "", 0)
        return Exhibit(window, 24.0, "", {"adapter+reference": np.zeros((3, height, width, 3), np.uint8)})

    def encoded_for(shown: Exhibit, single: bool) -> list[tuple[bytes, tuple[int, ...]]]:
        """What is encoded for outputs, the page, its first screen, and W&B."""
        encoded.clear()
        media = Media(tmp_path, single=single, with_files=True)
        assert list(save_outputs([shown], media, seed=7)) == [shown]
        assert (tmp_path / "outputs/dog-00000.7.mp4").read_bytes() == b"mp4"
        start = "data:video/mp4" if single else "media/004-adapter+reference-"
        assert media.shown(shown, "adapter+reference").startswith(start)
        assert media.preview(shown, "adapter+reference").startswith(start)
        assert None not in (media.file(4, "adapter+reference"), media.file(4, "adapter+reference", preview=True))
        return [*encoded]

    for single in (False, True):
        assert encoded_for(exhibit(256, 256), single) == [(b"mp4", (3, 256, 256, 3))]
        both = [(b"mp4", (3, 384, 640, 3)), (b"small", (3, 384, 640, 3))]  # the first screen, or the one file, is small
        assert encoded_for(exhibit(384, 640), single) == both
        enlarged = [(b"mp4", (3, 64, 64, 3)), (b"mp4", (3, 192, 192, 3))]  # a study gets the clip in its own size
        assert encoded_for(exhibit(64, 64), single) == enlarged


def test_thumbnails_have_one_width() -> None:
    assert thumbnail(np.zeros((64, 64, 3), np.uint8)).shape == (192, 192, 3)
    assert thumbnail(np.zeros((544, 960, 3), np.uint8)).shape == (109, 192, 3)


def test_clips_are_read_on_access() -> None:
    calls = []
    clips = Clips({"a": lambda: calls.append("a") or clip(0), "b": lambda: calls.append("b") or clip(1)})
    assert "a" in clips
    assert list(clips) == ["a", "b"]
    assert calls == []
    assert (clips["b"] == clip(1)).all()
    assert calls == ["b"]


def test_the_heat_map_is_bright_only_where_and_when_clips_differ() -> None:
    first, second = clip(0), clip(0)
    second[4, :, :32] = 255 - second[4, :, :32]
    heat = change_clip(first, second).astype(int).sum(3)
    quiet = heat[0].max()
    assert (heat[:4] == quiet).all()
    assert (heat[4, :, 32:] == quiet).all()
    assert heat[4, :, :32].mean() > quiet + 100


def test_the_overlay_covers_the_half_without_reference(tmp_path: Path, scores: dict[str, Any]) -> None:
    for exhibit, dropped in zip(exhibits(scores), (50, 0), strict=False):
        tile = half_tile(Media(tmp_path), exhibit, band=8)
        assert f'class="dropped" x="{dropped}"' in tile
        assert 'class="transition" x="37.5" y="0" width="25"' in tile


@pytest.mark.parametrize("low_high", [(24.1, 31.7), (0.2, 0.9), (5.0, 5.0), (-3.0, 2400.0)])
def test_a_curve_stays_inside_its_frame(low_high: tuple[float, float]) -> None:
    low, high = low_high
    points = [(s, {"mean": v, "low": v - 0.1, "high": v + 0.1, "n": 9}) for s, v in ((0, low), (0.5, high), (1, high))]
    level = {"mean": low, "low": None, "high": None, "n": 1}
    chart = strength_curve("PSNR <dB>", points, [("input", level)], {"half": 0.25})
    assert "&lt;dB&gt;" in chart
    heights = [float(y) for y in re.findall(r'(?:cy|y1)="([-\d.]+)"', chart)]
    assert all(0 <= y <= 260 for y in heights)
    ticks = re.findall(r'class="grid"', chart)
    assert 3 <= len(ticks) <= 9
    mark = re.search(r'class="mark" x1="([\d.]+)"', chart)
    assert mark is not None
    assert float(mark[1]) == pytest.approx(52 + 0.25 * (460 - 52 - 14), abs=0.1)


def test_bars_start_at_zero_and_lines_at_the_first_frame() -> None:
    chart = bars(
        "change", [("inside", estimate([10.0, 12.0], ["a", "b"])), ("outside", estimate([-1.0, -3.0], ["a", "b"]))]
    )
    heights = re.findall(r'<rect class="bar" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', chart)
    (top, tall), (zero, deep) = [tuple(map(float, pair)) for pair in heights]
    assert top + tall == pytest.approx(zero, abs=0.2)
    assert tall / deep == pytest.approx(11 / 2, rel=0.02)
    line = frame_line("PSNR", [30.0, 20.0, 25.0], 20.0, 30.0)
    points = [tuple(map(float, p.split(","))) for p in re.findall(r"[\d.]+,[\d.]+", line)]
    assert points == [(32.0, 3.0), (96.0, 41.0), (160.0, 22.0)]
    assert probe_curve("dot", [[0, 1], [2, 3]], [[0, 1], [2, 3]]).count("<polyline") == 4


def test_a_latent_frame_without_an_effect_keeps_its_number() -> None:
    mask = deepcopy(example()["mask"])
    weights = [block["weight"] for block in mask["fade"]["blocks"]]
    mask["fade"]["blocks"][0]["effect"] = None  # tracks start at the requested point
    mask["fade"]["correlation"] = None
    rows = re.findall(r"latent frame (\d): weight ([\d.]+)</th><td>(.*?)</td>", fade(mask, []))
    assert [(int(number), float(weight)) for number, weight, _ in rows] == [
        (i, pytest.approx(weight, abs=0.005)) for i, weight in enumerate(weights)
    ]
    assert [figure == "\N{EN DASH}" for *_, figure in rows] == [i == 0 for i in range(len(weights))]


def test_every_clip_and_picture_of_the_page_lies_beside_it(tmp_path: Path, scores: dict[str, Any]) -> None:
    worst = next(exhibit for exhibit in exhibits(scores) if exhibit.window.number == examples(scores)[0])
    media = Media(tmp_path)
    page = Page(write_page(media, scores, [worst]).read_text())
    addresses = {address for address in page.addresses if address.startswith("media/")}
    files = {path.relative_to(tmp_path).as_posix(): path.stat().st_size for path in (tmp_path / "media").iterdir()}
    assert addresses == set(files)
    assert any("strength-0.5-still" in address for address in addresses)
    assert media.bytes == sum(files.values())


def test_an_unknown_form_of_the_report_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval\.report.*'html'.*files.*single"):
        Eval(report="html")

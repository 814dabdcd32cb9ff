"""The report in a real browser: players in sync, comparison, slider, seeking, sorting, and no console errors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from copy import deepcopy
from itertools import count, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from eval.judging.ranking import first_examples
from eval.report.exhibits import Exhibit
from eval.report.media import Media
from eval.report.page import write_page
from tests.browser import CHROMIUM, Browser, browser
from tests.scores_example import FRAMES, STRENGTHS, clip, example, exhibits

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
READY = "[...near].length > 0 && [...near].every((video) => video.readyState > 1 && !video.seeking)"
SHOWN = "all('.window').filter((row) => !row.hidden).map((row) => row.id)"


@pytest.fixture(scope="module")
def scores() -> dict[str, Any]:
    return example()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, scores: dict[str, Any]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.report.exhibits.EXAMPLES", 2)  # for speed
        return write_page(Media(tmp_path_factory.mktemp("report"), single=True), scores, exhibits(scores))


@pytest.fixture(scope="module")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def page(one_browser: Browser, report: Path) -> Iterator[Browser]:
    """The freshly loaded report, stopped, with the first window on the screen; any console error fails the test."""
    one_browser.complaints.clear()
    still(one_browser, True)
    one_browser.open(report, height=500)
    one_browser.run("document.querySelector('#clips .players').scrollIntoView()")
    one_browser.until(READY)
    yield one_browser
    assert one_browser.complaints == []


def still(page: Browser, reduced: bool) -> None:
    """Whether the reader has asked the system for less motion; the page then does not play by itself."""
    value = "reduce" if reduced else "no-preference"
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": value}])


def picture(page: Browser, video: str) -> np.ndarray:
    """The picture of a player as RGB (64,64,3)."""
    draw = f"""(() => {{
      const canvas = Object.assign(document.createElement("canvas"), {{ width: 64, height: 64 }});
      const context = canvas.getContext("2d");
      context.drawImage(document.querySelector({json.dumps(video)}), 0, 0, 64, 64);
      return [...context.getImageData(0, 0, 64, 64).data];
    }})()"""
    return np.array(page.run(draw), np.uint8).reshape(64, 64, 4)[..., :3]


def screen(page: Browser, folder: Path, selector: str) -> np.ndarray:
    """Screenshot of an element, BGR."""
    page.screenshot(folder / "screen.png")
    box = page.run(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
    left, top, right, bottom = (round(box[side]) for side in ("left", "top", "right", "bottom"))
    image = cv2.imread(str(folder / "screen.png"))
    assert image is not None
    return image[top:bottom, left:right].astype(float)


def frames_shown(page: Browser) -> set[int]:
    return set(page.run("[...near].map((video) => Math.floor(placeOf(video)))"))


def wait_for_frame(page: Browser, frame: int) -> None:
    """Wait until all players stand at a frame. On a busy machine an earlier seek may end first."""
    page.until(f"{READY} && [...near].every((video) => standsAt(video, {frame}))")


@pytest.mark.parametrize("width", [1280, 800, 390])
def test_nothing_is_wider_than_the_window(page: Browser, report: Path, width: int) -> None:
    page.open(report, width)
    wider = """all("main *, header *, .controls *").filter((part) => !part.closest(".scroll, #viewer")
      && part.getBoundingClientRect().right > innerWidth).map((part) => part.outerHTML.slice(0, 80))"""
    assert page.run(wider) == []
    assert page.run("document.documentElement.scrollWidth") <= width
    page.press("c")
    assert page.run("viewer.getBoundingClientRect().right") <= width


def test_every_player_shows_the_frame_of_the_clock(page: Browser) -> None:
    for _ in range(4):
        page.press("ArrowRight")
    page.until(f"{READY} && element('frame').value === 'frame 5 of {FRAMES}'")
    assert frames_shown(page) == {4}
    frames = clip(3).astype(float)  # window 3 is the worst, so it is on the screen
    for column, shade in (("target", 1.0), ("reference", 0.8)):
        deadline = time.monotonic() + 20  # a player paints the frame a moment after the seek
        nearest, errors = -1, [0.0]
        while nearest != 4 and time.monotonic() < deadline:
            shown = picture(page, f"#window-3 [data-column='{column}'] video")
            errors = [np.abs(shown - shade * frame).mean() for frame in frames]
            nearest = int(np.argmin(errors))
        assert nearest == 4
        assert errors[4] < 8


def test_arrow_keys_step_and_wrap_round_unless_loop_is_off(page: Browser) -> None:
    page.press("ArrowLeft")
    wait_for_frame(page, FRAMES - 1)
    page.press("l")
    page.press("ArrowRight")
    assert page.run("[element('frame').value, element('loop').getAttribute('aria-pressed')]") == [
        "frame 9 of 9",
        "false",
    ]


def test_players_run_in_sync_and_stop_together(page: Browser) -> None:
    page.run("element('speed').value = '0.5'")
    page.press(" ")
    assert page.run("element('play').textContent") == "Pause"
    page.until("[...near].every((video) => !video.paused)")
    measure_offsets = """new Promise((done) => {
      const offsets = [], end = performance.now() + 1500;
      const measure = (now) => {
        for (const video of near) {
          if (!video.seeking && !video.paused) offsets.push(Math.abs(video.currentTime * 24 - clock.position));
        }
        if (now < end) requestAnimationFrame(measure); else done(offsets);
      };
      requestAnimationFrame(measure);
    })"""
    offsets = [min(frames, FRAMES - frames) for frames in page.run(measure_offsets)]  # the clip loops
    assert len(offsets) > 50
    assert np.quantile(offsets, 0.9) < 1.5  # frames
    page.press(" ")
    page.until(f"{READY} && [...near].every((video) => video.paused)")
    assert len(frames_shown(page)) == 1


def test_without_loop_playing_ends_at_the_last_frame(page: Browser) -> None:
    page.run("element('speed').value = '1'")
    page.press("l")
    page.press(" ")
    page.until("!clock.playing")
    wait_for_frame(page, FRAMES - 1)


def test_a_click_on_the_line_seeks_every_player(page: Browser) -> None:
    page.click("#window-3 svg.frames", x=6.5 / FRAMES)
    page.until(f"element('frame').value === 'frame 7 of {FRAMES}'")
    wait_for_frame(page, 6)
    assert page.run("document.querySelector('#window-3 .cursor').getAttribute('x1')") == str(6.5 / FRAMES * 192)


def test_the_worst_and_the_best_come_first_and_no_window_is_lost(page: Browser) -> None:
    shown = page.run(SHOWN)
    assert len(shown) == 10
    assert (shown[0], shown[-1]) == ("window-3", "window-5")
    assert page.run("all('.rank').map((rank) => rank.textContent).filter(Boolean).length") == 10
    page.run("element('filter').value = ''; element('filter').onchange()")
    assert len(page.run(SHOWN)) == 11
    page.run("element('sort').value = 'flicker'; element('sort').onchange()")
    by_flicker = page.run("all('.window').map((row) => Number(row.dataset.flicker))")
    assert by_flicker == sorted(by_flicker, reverse=True)


def test_a_link_to_a_window_that_is_filtered_out_shows_it(page: Browser) -> None:
    hidden = page.run("document.querySelector('.window[hidden]').id")
    page.click(f"#windows a[href='#{hidden}']")
    page.until(f"!element('{hidden}').hidden")


def test_columns_can_be_shown(page: Browser) -> None:
    assert page.run("document.querySelector('[data-column=\"VAE ceiling\"]').hidden")
    page.run("document.querySelector('details').open = true")
    page.click("input[value='VAE ceiling']")
    assert not page.run("document.querySelector('[data-column=\"VAE ceiling\"]').hidden")


def test_two_columns_are_wiped_subtracted_exchanged_and_enlarged(page: Browser, tmp_path: Path) -> None:
    page.click("#window-3 .compare")
    page.until("viewer.open && under.readyState > 1 && over.readyState > 1 && !under.seeking && !over.seeking")
    # `base` is much darker than the second column, the target.
    page.run("element('first').value = 'base'; element('first').onchange()")
    page.until("under.readyState > 1 && !under.seeking")
    page.click("#stage", drag_to=(0.5, 0.5))
    halves = np.array_split(screen(page, tmp_path, "#picture"), 2, axis=1)
    assert halves[0].mean() < 0.5 * halves[1].mean()
    page.click("#stage", x=0.5, drag_to=(1.0, 0.5))
    assert screen(page, tmp_path, "#picture").mean() == pytest.approx(halves[0].mean(), rel=0.2)
    page.press("x")
    page.until("under.readyState > 1 && !under.seeking")
    assert page.run("[element('first').value, element('second').value]") == ["target", "base"]
    page.press("2")
    assert screen(page, tmp_path, "#picture").mean() > 100  # gain 4
    page.run("element('second').value = 'target'; element('second').onchange()")
    page.until("over.readyState > 1 && !over.seeking")
    assert screen(page, tmp_path, "#picture").mean() < 2
    page.press("+")
    page.until("element('zoom').value === '150 %'")
    assert page.run("picture.getBoundingClientRect().height / stage.clientHeight") == pytest.approx(1.5, abs=0.01)
    page.press("ArrowDown")
    assert page.run("element('viewer-title').textContent") != "clip-00003"
    page.press("Escape")
    page.until("!viewer.open")


def test_blinking_alternates_and_ends_with_the_viewer(page: Browser) -> None:
    page.press("c")
    page.press("3")
    for state in ("true", "false"):
        page.until(f"upper.classList.contains('away') === {state}")
    page.press("Escape")
    page.until("!viewer.open")
    page.run("upper.classList.remove('away')")
    time.sleep(0.6)  # longer than a blink
    assert not page.run("upper.classList.contains('away')")


def test_the_slider_shows_each_strength_and_its_value(page: Browser, scores: dict[str, Any]) -> None:
    page.run("element('strength-level').scrollIntoView(); element('strength-level').focus()")
    page.press("ArrowLeft")
    levels = set(page.run("all('.tile video[data-level]').filter((v) => !v.hidden).map((v) => v.dataset.level)"))
    assert levels == {"0.75"}
    entry = next(entry for entry in scores["strength"] if entry["s"] == 0.75)["metrics"]["psnr"]
    assert f"0.75: PSNR, dB {entry['mean']:.3f}" in page.run("element('strength-figure').value")
    x_positions = page.run("[...document.querySelector('svg.strength').querySelectorAll('circle, .cursor')].map("
                  "(e) => e.getAttribute('cx') ?? e.getAttribute('x1'))")  # fmt: skip
    assert x_positions[len(STRENGTHS)] == x_positions[sorted(STRENGTHS).index(0.75)]
    video = ".tile video[data-level='0.75']"
    page.until(f"document.querySelector({json.dumps(video)}).readyState > 1")
    page.until(READY)
    assert picture(page, video).mean() == pytest.approx(clip(3)[0].mean() * (0.3 + 0.5 * 0.75), rel=0.1)


def test_the_mask_overlay_can_be_hidden(page: Browser) -> None:
    display = "getComputedStyle(document.querySelector('svg.overlay')).display"
    assert page.run(display) == "block"
    page.click("#overlay")
    assert page.run(display) == "none"


def test_downloads_contain_the_data_of_the_page(page: Browser, scores: dict[str, Any], tmp_path: Path) -> None:
    page.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for name in ("json", "csv"):
        page.click(f"#download-{name}")
        while not (tmp_path / f"scores.{name}").exists():
            page.run("new Promise((done) => setTimeout(done, 50))")
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    table = (tmp_path / "scores.csv").read_text().splitlines()
    values = sum(len(column) for row in scores["windows"].values() for column in row.values())
    assert len(table) == values + 1
    first = scores["windows"]["adapter+reference"]["psnr"][0]
    assert table[1] == f'"adapter+reference","clip-00000","tape 0.mov",psnr,{first}'


def select_another(page: Browser, file: Path) -> None:
    document = page.send("DOM.getDocument")["root"]["nodeId"]
    node = page.send("DOM.querySelector", nodeId=document, selector="#another-file")["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=node, files=[str(file)])


def test_another_scores_json_is_compared_in_the_page(page: Browser, scores: dict[str, Any], tmp_path: Path) -> None:
    other = deepcopy(scores)
    other["windows"]["adapter+reference"]["psnr"] = [v - 2 for v in other["windows"]["adapter+reference"]["psnr"]]
    other["clips"][0]["key"] = "unknown"
    (tmp_path / "other.json").write_text(json.dumps(other))
    (tmp_path / "broken.json").write_text("{")
    select_another(page, tmp_path / "other.json")
    page.until("document.querySelector('#another-table td') !== null")
    cells = page.run("[...document.querySelector('#another-table tbody tr').cells].map((cell) => cell.textContent)")
    assert (cells[0], *cells[3:]) == ("PSNR, dB", "2.00", "10 of 10")
    select_another(page, tmp_path / "broken.json")
    page.until("element('another-note').value.startsWith('broken.json is not')")


def test_metrics_that_measure_something_else_are_not_compared_in_the_page(
    one_browser: Browser, scores: dict[str, Any], tmp_path: Path
) -> None:
    this, row = deepcopy(scores), scores["windows"]["adapter+reference"]["ssim"]
    for key, group in (("agreement", "structure"), ("edge_f1", "structure"), ("clip_text", "learned")):
        this["windows"]["adapter+reference"][key] = row
        this["metrics"] = this["metrics"] | {key: {"title": key, "unit": "", "better": "high", "group": group}}
    canny = {"metric": "edge_f1", "reader": "Canny edges", "windows": list(range(11)), "recordings": 4}
    canny |= {"too_few": False, "outcome": "holds", "cells": this["cells"], "floor": 0.1, "ceiling": 0.9}
    this |= {"controls": {"canny": canny}, "readers": {"canny": "Canny edges", "pose": "BlazePose"}}
    for facts in this["clips"]:
        facts["control"] = "canny"
    this["provenance"] |= {"definitions": 2, "weights": {"clip": "ab", "dino": "cd"}}
    numbers = count()
    one_browser.complaints.clear()
    one_browser.open(write_page(Media(tmp_path), this, []))

    def compared(**changes: Any) -> tuple[list[str], str]:
        """The metrics in the table, and the note after the name of the other adapter. changes: `a__b` -> value."""
        other = deepcopy(this)
        for path, value in changes.items():
            *parents, last = path.split("__")
            entry = other
            for parent in parents:
                entry = entry[parent]
            entry[last] = value
        file = tmp_path / f"{next(numbers)}.json"  # the same name again would be no change
        file.write_text(json.dumps(other))
        one_browser.run("element('another-note').value = ''")
        select_another(one_browser, file)
        one_browser.until("element('another-note').value")
        names = one_browser.run("all('#another-table tbody tr').map((row) => row.cells[0].textContent)")
        return names, one_browser.run("element('another-note').value").partition("adapter.safetensors")[2]

    everything, note = compared(readers=dict(reversed(this["readers"].items())))
    assert (len(everything), note) == (len(this["metrics"]), "")

    def left_out(reason: str, *names: str, **changes: Any) -> None:
        expected = [name for name in everything if name.partition(",")[0] not in names]
        assert compared(**changes) == (expected, f"; left out: {', '.join(names)} ({reason})")

    left_out("another common scale of the controls", "agreement", controls__canny__floor=0.2)
    left_out("another title or unit", "SSIM", metrics__ssim__title="SSIM of luma")
    left_out("other weights of its network", "clip_text", provenance__weights={"clip": "ef", "dino": "cd"})
    left_out("another definition", "flicker", provenance__definitions=1)
    readers = {"canny": "Canny edges", "pose": "RTMPose"}
    left_out("another reader of the control", "agreement", "edge_f1", readers=readers)
    assert compared(provenance__shards={"pairs": "cd"}) == ([], "; left out: all metrics (other targets)")
    assert compared(provenance__protocol=0) == ([], "; left out: all metrics (another protocol)")
    assert one_browser.complaints == []


def test_media_files_next_to_the_page_play(one_browser: Browser, scores: dict[str, Any], tmp_path: Path) -> None:
    one_browser.complaints.clear()
    one_browser.open(write_page(Media(tmp_path), scores, islice(exhibits(scores), 1)))
    one_browser.run("document.querySelector('#clips .players').scrollIntoView()")
    one_browser.until(READY)
    assert one_browser.run("document.querySelector('.window video').getAttribute('src')").startswith("media/")
    assert one_browser.complaints == []


def test_without_scripts_tables_are_readable_and_players_have_controls(one_browser: Browser, report: Path) -> None:
    one_browser.open(report, scripts=False)
    try:
        assert one_browser.run("[...document.querySelectorAll('.window')].filter((row) => row.hidden).length") == 0
        assert one_browser.run("document.querySelector('.window video').controls")
        assert one_browser.run("document.querySelector('.controls').getBoundingClientRect().height") == 0
        assert "PSNR above the <degraded> input" in one_browser.run("document.querySelector('#gates').innerText")
    finally:
        one_browser.send("Emulation.setScriptExecutionDisabled", value=False)


CODED = 30  # frames of the clips below
CODED_FPS = 24.0


@pytest.fixture(scope="module")
def first_screen(tmp_path_factory: pytest.TempPathFactory, scores: dict[str, Any]) -> Path:
    """A report whose clips tell their frame: frame k has brightness 8 k."""
    frames = np.arange(CODED, dtype=np.uint8)[:, None, None, None].repeat(3, 3) * 8
    coded = np.broadcast_to(frames, (CODED, 192, 192, 3))
    names = ("reference", "base+reference", "adapter+reference", "target")
    chosen = {example.number for example in first_examples(scores)}
    windows = [
        Exhibit(exhibit.window, CODED_FPS, "", dict.fromkeys(names, coded))
        for exhibit in exhibits(scores)
        if exhibit.window.number in chosen
    ]
    media = Media(tmp_path_factory.mktemp("coded"), single=True)
    return write_page(media, {**scores, "strength": [], "frames": {}}, windows)


SHOWN_FRAMES = """all(".example").map((row) => all("video", row).map((video) => {
  window.scratch ??= Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
  const hidden = getComputedStyle(video.cover).visibility === "hidden", context = scratch.getContext("2d");
  context.drawImage(hidden ? video : video.cover, 0, 0, 8, 8);
  return Math.round(context.getImageData(4, 4, 1, 1).data[0] / 8);
}))"""


@pytest.mark.parametrize("speed", ["0.1", "0.25", "0.5", "1"])
def test_the_players_of_a_row_show_the_same_frame_at_every_speed(
    one_browser: Browser, first_screen: Path, speed: str
) -> None:
    one_browser.complaints.clear()
    still(one_browser, False)
    one_browser.open(first_screen, height=1000)
    one_browser.until("clock.playing")  # the rows loop without a click
    one_browser.run(f"element('speed').value = '{speed}'")
    one_browser.until("all('.example canvas').length === 12 && all('.example canvas').every((c) => c.frame >= 0)")
    sample = f"""new Promise((done) => {{
      const samples = [];
      const measure = () => {{
        samples.push({SHOWN_FRAMES});
        if (samples.length < 80) setTimeout(() => requestAnimationFrame(measure), 30); else done(samples);
      }};
      measure();
    }})"""
    samples = one_browser.run(sample)
    rows = [row for rows in samples for row in rows]
    assert len(rows) == 3 * 80
    different = [row for row in rows if len(row) != 4 or len(set(row)) > 1]
    assert len(different) <= 0.01 * len(rows), different  # on a busy machine a browser may report a frame late
    assert len({row[0] for row in rows}) >= 5  # they move
    one_browser.press(" ")
    one_browser.until(f"{SHOWN_FRAMES}.flat().every((frame) => frame === frameOf(clock.position))")
    about_the_test = "willReadFrequently"  # that this test reads pixels
    assert [text for text in one_browser.complaints if about_the_test not in text] == []


def test_a_reader_who_asked_for_less_motion_sees_the_first_frames(one_browser: Browser, first_screen: Path) -> None:
    still(one_browser, True)
    one_browser.open(first_screen, height=1000)
    one_browser.until(f"{SHOWN_FRAMES}.flat().every((frame) => frame === 0)")
    assert not one_browser.run("clock.playing")
    one_browser.press("ArrowRight")
    one_browser.until(f"{SHOWN_FRAMES}.flat().every((frame) => frame === 1)")
    one_browser.press(" ")
    one_browser.until("clock.playing")


def test_the_first_screen_holds_the_answer_and_three_rows(one_browser: Browser, first_screen: Path) -> None:
    one_browser.open(first_screen, height=900)
    assert one_browser.run("document.querySelector('.answer').getBoundingClientRect().bottom") < 250
    assert one_browser.run("all('.example video').pop().getBoundingClientRect().bottom") <= 900


def test_clips_below_the_first_screen_are_not_loaded_before_they_are_needed(
    one_browser: Browser, scores: dict[str, Any], tmp_path: Path
) -> None:
    still(one_browser, False)
    one_browser.open(write_page(Media(tmp_path), scores, islice(exhibits(scores), 3)), height=700)
    one_browser.until("all('.example canvas').some((c) => c.frame >= 0)")
    far = "all('video').filter((video) => video.getBoundingClientRect().top > 1500)"
    assert one_browser.run(f"{far}.length") > 20
    assert one_browser.run(f"{far}.filter((video) => video.preload !== 'none' || video.readyState > 0).length") == 0
    one_browser.run("document.querySelector('#strength .tile').scrollIntoView()")
    one_browser.until("all('#strength video').some((video) => video.readyState > 1)")

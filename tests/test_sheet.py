"""The contact sheet: worst pairs first, one self-contained file, keyboard control."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.checks import CheckLog, Finding, Report, pair_picture, write_results
from iclora_train.config import Config, Model, Task
from iclora_train.config.checks import Checks
from iclora_train.core.types import Pair
from tests.clips import moving
from tests.test_report import Page

KEYBOARD_SCRIPT = """
<script>
addEventListener("error", (event) => { document.title = "error: " + event.message; });
addEventListener("load", () => {
  const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key }));
  const visible = () => cards.filter((card) => !card.hidden).map((card) => card.dataset.verdict).join();
  const states = [visible()];
  press("3"); states.push(visible());
  press("j"); press("j"); states.push(current); press("k"); states.push(current);
  press("z"); states.push(cards[current].classList.contains("wide"));
  press("a"); states.push(visible());
  buttons[1].click(); states.push(visible());
  states.push(cards.every((card) => card.querySelector("img").naturalWidth > 0));
  document.title = states.join(" | ");
});
</script></body>"""


def report(number: int, verdict: str, value: float, caption: str = "") -> Report:
    finding = Finding("static", value, None, 0.5, verdict, "share of <frames>")
    return Report(f"clip-{number:05d}", "clip", "train", caption, (finding,))


def sheet(folder: Path, reports: list[Report], megabytes: float = 24.0) -> str:
    clip = moving(9, 48, 64)
    jpeg = pair_picture(Pair("clip-00000", clip, (clip,), "", 24.0))
    log = CheckLog(folder, "0123456789")
    log.write("train-000000", [(report, jpeg) for report in reports])
    config = Config(
        task=Task(name="canny & co", maker="given"),
        model=Model(name="nano", checkpoint="nano"),
        checks=Checks(sheet_megabytes=megabytes),
    )
    dropped = [{"clip": "broken", "reason": "truncated after frame <3>"}]
    write_results(folder, log, {"kept": {"train": {"clips": 1, "windows": 4}}, "dropped": dropped}, config)
    return (folder / "contact.html").read_text()


REPORTS = [
    report(0, "ok", 0.1),
    report(1, "warn", 0.6, 'a "quoted" <b>caption</b>'),
    report(2, "drop", 0.9),
    report(3, "ok", 0.4),
]


def card_keys(text: str) -> list[str]:
    return re.findall(r"</b> (clip-\d+) ", text)


def test_the_worst_come_first_with_their_values_and_reasons(tmp_path):
    text = sheet(tmp_path, REPORTS)
    assert card_keys(text) == ["clip-00002", "clip-00001", "clip-00003", "clip-00000"]
    assert "static 0.9 (at most 0.5): share of &lt;frames&gt;" in text
    assert "<title>canny &amp; co: 4 pairs, 1 left out</title>" in text
    assert "a &quot;quoted&quot; &lt;b&gt;caption&lt;/b&gt;" in text
    assert "truncated after frame &lt;3&gt;" in text


def test_the_page_is_complete_and_needs_no_other_file(tmp_path):
    page = Page(sheet(tmp_path, REPORTS))
    assert len(page.addresses) > 4
    assert all(address.startswith(("data:", "#")) for address in page.addresses)


def test_pictures_stay_within_the_size_limit_and_the_rest_is_counted(tmp_path):
    many = [replace(REPORTS[0], key=f"clip-{i:05d}") for i in range(200)]
    text = sheet(tmp_path, [*many, replace(REPORTS[2], key="clip-99999")], megabytes=0.1)
    assert 0.05 * 2**20 < sum(map(len, re.findall(r"data:image/jpeg;base64,([^\"]*)", text))) <= 0.1 * 2**20
    keys = card_keys(text)
    assert keys[0] == "clip-99999"
    assert f"checks.jsonl has {201 - len(keys)} more, none worse than these." in text


def test_a_sheet_without_pairs_says_so(tmp_path):
    text = sheet(tmp_path, [])
    Page(text)
    assert "0 pairs, 0 left out" in text


def test_pictures_show_slower_and_smaller_references_at_the_targets_size():
    clip = moving(9, 64, 64)
    same = pair_picture(Pair("clip-00000", clip, (clip,), "", 24.0))
    small = pair_picture(Pair("clip-00000", clip, (clip[::2, ::2, ::2],), "", 24.0))
    pictures = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in (same, small)]
    assert [picture.shape for picture in pictures] == [(128, 384, 3)] * 2
    assert np.abs(pictures[0].astype(int) - pictures[1])[64:].mean() < 2  # the targets are equal


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_filters_steps_and_enlarges_by_keyboard(tmp_path):
    page = tmp_path / "try.html"
    page.write_text(sheet(tmp_path, REPORTS).replace("</body>", KEYBOARD_SCRIPT))
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    result = subprocess.run(
        [*browser, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = re.search(r"<title>(.*?)</title>", result.stdout)
    assert title is not None
    states = "drop,warn,ok,ok | drop,ok,ok | 2 | 0 | true | drop,warn,ok,ok | warn,ok,ok | true"
    assert title[1] == states

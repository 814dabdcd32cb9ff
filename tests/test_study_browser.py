"""The page of a study in a real browser: clips of a pair run together, references are seen, answers can be saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.study.page import write_study
from eval.study.pairs import Sides, StudyPair
from eval.study.references import ShownReference
from tests.browser import CHROMIUM, browser
from tests.clips import moving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
TIMES = "[...document.querySelectorAll('video')].map((video) => video.currentTime)"


def test_a_short_reference_and_a_still_do_not_hold_up_the_clips(tmp_path: Path) -> None:
    """Clips of 2 s, a reference of half a second, which waits at its end, and a still."""
    clip = moving(50, 32, 48)
    references = (ShownReference(clip[:13], "first", 1), ShownReference(clip[-1:], "still", 1))
    sides = Sides(clip, np.ascontiguousarray(clip[:, :, ::-1]), 25.0, references)
    write_study(tmp_path / "study.html", "s", "Which?", [StudyPair("p", "clip", True)], [sides])
    with browser(tmp_path) as page:
        page.open(tmp_path / "study.html", width=390, height=800)
        page.click("#begin")
        page.until("document.querySelector('.left video').currentTime > 1")
        page.until(f"Math.abs({TIMES}[1] - {TIMES}[2]) < 0.1")
        reference, left, _ = page.run(TIMES)
        assert left > 1
        assert reference == pytest.approx(13 / 25, abs=0.1)
        page.until("document.querySelector('.left video').currentTime < 0.4")  # the next turn
        page.until(f"Math.abs({TIMES}[0] - {TIMES}[1]) < 0.1")
        assert page.run("document.querySelector('.reference img').naturalWidth") == 48
        assert page.run("document.documentElement.scrollWidth") <= 390
        page.click("[data-choice=left]")
        page.until("!document.getElementById('end').hidden")
        assert page.complaints == []

"""Write the page of a study: one HTML file that works offline and does not say which clip is whose."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from eval.metrics import Clip
from eval.report.media import picture_address
from eval.report.page import policy_hash
from eval.study.pairs import Sides, StudyPair
from eval.study.references import ShownReference
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.progress import progress_bar
from iclora_train.media.shard_clip import encode_clip

ASSETS = Path(__file__).parent / "assets"


def write_study(path: Path, study: str, question: str, pairs: list[StudyPair], sides: Iterable[Sides]) -> int:
    """Write the page; returns its bytes. study: the id that links answers to the key."""
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("study.css", "study.js"))
    head, tail = (
        Template((ASSETS / "study.html").read_text(encoding="utf-8"))
        .substitute(
            policy=f"default-src 'none'; media-src data:; img-src data:; style-src {policy_hash(style)}; "
            f"script-src {policy_hash(script)}; base-uri 'none'; form-action 'none'",
            style=style,
            script=script,
            question=escape(question),
            study=escape(json.dumps({"study": study, "pairs": [pair.id for pair in pairs]})),
            pairs="\0",
        )
        .split("\0")
    )
    with write_atomic(path) as file, progress_bar("pairs", len(pairs), "pair") as bar:
        file.write(head.encode())
        for pair, clips in zip(pairs, sides, strict=True):
            file.write(_pair(pair, clips).encode())
            bar.advance()
        file.write(tail.encode())
        return file.tell()


def _pair(pair: StudyPair, sides: Sides) -> str:
    shown = "".join(_reference(reference, sides.fps) for reference in sides.references)
    references = f'<div class="references">{shown}</div>' if shown else ""
    left, right = (_figure(side, "", _video(getattr(sides, side), sides.fps)) for side in ("left", "right"))
    return f'<section class="pair" id="{pair.id}" hidden>{references}<div class="sides">{left}{right}</div></section>\n'


def _reference(reference: ShownReference, fps: float) -> str:
    """A reference above the clips: a picture if it is one frame."""
    caption = f"to follow: {escape(reference.name)}" if reference.name else "to follow"
    if len(reference.frames) == 1:
        address = picture_address(reference.frames[0])
        return _figure("reference", caption, f'<img src="{address}" alt="{caption}">')
    return _figure("reference", caption, _video(reference.frames, fps / reference.slower))


def _video(clip: Clip, fps: float) -> str:
    data = base64.b64encode(encode_clip(clip, fps, lossless=False)).decode()
    return f'<video muted loop playsinline src="data:video/mp4;base64,{data}"></video>'


def _figure(side: str, caption: str, screen: str) -> str:
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{side}">{screen}{text}</figure>'

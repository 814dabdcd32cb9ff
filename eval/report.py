"""report.html: one page that opens from disk, needs no network, and reads without JavaScript (players need it)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from eval import tables
from eval.cells import BASE_REFERENCE, MASKED, OURS, SWAPPED, Cell, at_strength, grid
from eval.charts import strength_curve
from eval.media import CHANGE_FULL, Media, change_map, enlarge
from eval.metrics import DIRECTIONS, Clip
from eval.scoring import CEILING, INPUT, Scorer
from eval.windows import Window
from iclora_train.files import write_whole

ASSETS = Path(__file__).parent / "report_assets"
PLAYERS = (  # column title -> which figures stand under it
    ("reference", INPUT),
    ("base + reference", BASE_REFERENCE),
    ("adapter + reference", OURS),
    ("target", None),
    ("VAE ceiling", CEILING),
    ("swapped reference", SWAPPED),
)
EXAMPLES = 4  # windows shown in the film strip and on the mask page, of as many recordings, mask sides in turn


@dataclass(frozen=True)
class Exhibit:
    """A window and its clips of the first seed, under the names of cells and of player columns."""

    window: Window
    fps: float
    caption: str
    clips: Mapping[str, Clip]


def exhibits(scorer: Scorer, strengths: list[float]) -> Iterator[Exhibit]:
    """Every window with its clips, read back from disk one batch at a time."""
    for batch in scorer.batches:
        first = scorer.batches[0][0].seed
        wanted = [(i, item.window) for i, item in enumerate(batch) if item.seed == first]
        if not wanted:
            continue
        made = {cell.name: scorer.renderer.clips(cell, batch)[0] for cell in grid(strengths)}
        for i, window in wanted:
            pair = scorer.held.pair(window)
            clips = {name: cell_clips[i] for name, cell_clips in made.items()}
            clips |= {"reference": pair.references[0], "target": pair.target, CEILING: scorer.ceiling(window.number)}
            yield Exhibit(window, pair.fps, pair.caption, clips)


def write_report(folder: Path, scores: Mapping[str, Any], scorer: Scorer) -> Path:
    """Write report.html (and media/ beside it when the clips are too large to go inside). Returns its path."""
    media = Media(folder)
    strengths = [entry["s"] for entry in scores["strength"]]
    rows, strips, masks = [], [], []
    sources: set[str] = set()  # of the examples
    for exhibit in exhibits(scorer, strengths):
        rows.append(_player_row(media, exhibit, scores))
        wanted_side = exhibit.window.mask_left == (len(sources) % 2 == 0)
        if wanted_side and len(sources) < EXAMPLES and exhibit.window.source not in sources:
            sources.add(exhibit.window.source)
            strips.append(_strip(media, exhibit, strengths))
            masks.append(_mask_row(media, exhibit))
    passed = sum(verdict["passed"] for verdict in scores["verdicts"])
    page = Template((ASSETS / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{scores['task']}: {passed} of {len(scores['verdicts'])} claims hold"),
        subtitle=_subtitle(scores),
        style=(ASSETS / "report.css").read_text(encoding="utf-8"),
        script=(ASSETS / "report.js").read_text(encoding="utf-8"),
        verdicts=tables.verdicts(scores["verdicts"]),
        cells=tables.cells(scores["cells"], scores["primary"]),
        curves=_curves(scores),
        strips="".join(strips),
        strength_head="".join(f'<th scope="col">strength {s:g}</th>' for s in strengths),
        mask=tables.mask(scores["mask"]),
        mask_rows="".join(masks),
        mask_full=str(CHANGE_FULL),
        sort_options=_sort_options(scores["primary"]),
        players="".join(rows),
        windows=tables.windows(scores),
        provenance=tables.provenance(scores),
        scores=json.dumps(scores, ensure_ascii=False).replace("<", "\\u003c"),
    )
    with write_whole(folder / "report.html") as file:
        file.write(page.encode())
    return folder / "report.html"


def _subtitle(scores: Mapping[str, Any]) -> str:
    sources = {clip["source"] for clip in scores["clips"]}
    return escape(
        f"{len(scores['clips'])} held-out windows of {len(sources)} recordings, {len(scores['seeds'])} seeds each; "
        f"base {scores['base']['name']} {scores['base']['version']}; {scores['adapter']['path']}"
    )


def _curves(scores: Mapping[str, Any]) -> str:
    """Two curves over strength: the primary metric, and PSNR (or SSIM where that is the primary)."""
    figures = []
    for metric in list(dict.fromkeys((scores["primary"], "psnr", "ssim")))[:2]:
        points = [(entry["s"], entry["metrics"][metric]) for entry in scores["strength"]]
        levels = [(name, scores["cells"][name][metric]) for name in (INPUT, BASE_REFERENCE)]
        label = f"{tables.title(metric)}{tables.unit(metric)}"
        chart = strength_curve(label, points, levels)
        figures.append(f"<figure>{chart}<figcaption>{escape(label)}, band: 95 % interval</figcaption></figure>")
    return "".join(figures)


def _player_row(media: Media, exhibit: Exhibit, scores: Mapping[str, Any]) -> str:
    """A window: its players side by side, and under each what it scores. Carries what it is sorted by."""
    window, measured = exhibit.window, scores["windows"]
    keys = {"swapped reference": SWAPPED, "VAE ceiling": CEILING}
    players = []
    for column, row in PLAYERS:
        name = keys.get(column, column.replace(" + ", "+"))
        source = media.clip(f"{window.number:03d}-{name}", exhibit.clips[name], exhibit.fps)
        figures = "&nbsp;" if row is None else tables.brief(measured[row], window.number, scores["primary"])
        players.append(
            f'<figure><video src="{source}" muted loop playsinline controls preload="auto" '
            f'aria-label="{escape(column)}"></video><figcaption><b>{column}</b><br>{figures}</figcaption></figure>'
        )
    order = " ".join(f'data-{metric}="{measured[OURS][metric][window.number]}"' for metric in DIRECTIONS)
    return (
        f'<section class="window" data-fps="{exhibit.fps:g}" data-frames="{len(exhibit.clips[OURS])}" {order}>'
        f"<h3>{escape(window.key)} <small>{escape(window.source)} · {escape(exhibit.caption)}</small></h3>"
        f'<div class="players">{"".join(players)}</div></section>'
    )


def _picture(media: Media, name: str, frame: Clip, text: str) -> str:
    return f'<img src="{media.picture(name, frame)}" alt="{escape(text)}">'


def _strip(media: Media, exhibit: Exhibit, strengths: list[float]) -> str:
    """A table row: the middle frame at every strength."""
    number, cells = exhibit.window.number, []
    for s in strengths:
        clip = exhibit.clips[at_strength(s).name]
        picture = _picture(media, f"{number:03d}-strength-{s:g}", enlarge(clip[len(clip) // 2]), f"strength {s:g}")
        cells.append(f"<td>{picture}</td>")
    return f'<tr><th scope="row">{escape(exhibit.window.key)}</th>{"".join(cells)}</tr>'


def _mask_row(media: Media, exhibit: Exhibit) -> str:
    """A table row: middle frames without, with half and with all of the reference, and where the half changed them."""
    number, clips = exhibit.window.number, exhibit.clips
    names = (at_strength(0).name, Cell(MASKED, True, "own").name, OURS)
    pictures = [
        _picture(media, f"{number:03d}-mask-{i}", enlarge(clips[name][len(clips[name]) // 2]), name)
        for i, name in enumerate(names)
    ]
    changed = change_map(clips[MASKED], clips[names[0]])
    side = "left" if exhibit.window.mask_left else "right"
    pictures.append(_picture(media, f"{number:03d}-mask-change", changed, f"change, {side} half kept"))
    cells = "".join(f"<td>{picture}</td>" for picture in pictures)
    return f'<tr><th scope="row">{escape(exhibit.window.key)}<br><small>{side} half kept</small></th>{cells}</tr>'


def _sort_options(primary: str) -> str:
    """The metrics a viewer can sort by, the primary one chosen; data-worst tells which end is the bad one."""
    options = ['<option value="">as evaluated</option>']
    for metric, (_, more_is_better) in DIRECTIONS.items():
        if more_is_better is not None:
            chosen = " selected" if metric == primary else ""
            worst = "low" if more_is_better else "high"
            text = f"worst {tables.title(metric)} first"
            options.append(f'<option value="{metric}" data-worst="{worst}"{chosen}>{escape(text)}</option>')
    return "".join(options)

"""Model card of an adapter, and for published LTX bases its ComfyUI workflow, written into the adapter's folder."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iclora_train.adapters import comfyui_json
from iclora_train.adapters.card_examples import (
    LONGEST,
    diffusers_section,
    given_parts,
    ltx_pipelines,
    reference_size,
    string_literal,
)
from iclora_train.adapters.comfyui_nodes import OLDEST_COMFYUI
from iclora_train.adapters.comfyui_settings import WorkflowSettings
from iclora_train.adapters.comfyui_workflow import build_workflow
from iclora_train.adapters.conditions import conditions_of, in_words
from iclora_train.adapters.file import Adapter, read
from iclora_train.adapters.loaders import comfyui_limit
from iclora_train.adapters.metadata import (
    FAMILY,
    KIND,
    LOW_RANK,
    PLAIN,
    ROUNDING,
    VERSION,
    shown,
)
from iclora_train.adapters.reference_makers import makers_of
from iclora_train.adapters.slots import LIMIT
from iclora_train.adapters.sound_context import sound_loading, sound_rows
from iclora_train.adapters.strength_limits import varied_limits
from iclora_train.config import ConfigError
from iclora_train.config.places import frame_in_words
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.scores import read_scores
from iclora_train.data.prompts import TEMPLATE_KEY, example_prompt
from iclora_train.ltx2.weights.versions import VERSIONS, Version

_TRAINING_ROWS = {  # metadata key -> row of the card
    "base_model": "base model",
    "steps": "steps",
    "rank": "rank",
    "learning_rate": "learning rate",
    "batch_size": "clips per batch",
    "batches_per_step": "batches per step",
    "clips": "training windows",
    "sources": "sources of the windows",
    "config_hash": "settings (hash)",
    LOW_RANK: "left out by conversion to a plain LoRA (relative)",
    ROUNDING: "change of B A by rounding to bf16 (relative)",
    "combined": "combined from (adapter:strength)",
}


def write_card(path: Path, scores: Path | None = None) -> list[Path]:
    """Write `<adapter>.md`, and the workflow if ComfyUI can run the base. Returns the files written.

    scores: scores.json of `eval`, whose results go into the card. ConfigError if the adapter is not valid.
    """
    adapter = read(path)
    results = None if scores is None else read_scores(scores)
    workflow: WorkflowSettings | None = None
    no_workflow = None
    try:
        workflow = WorkflowSettings.from_metadata(path, adapter.metadata, slots=adapter.slots is not None)
    except ConfigError as error:
        no_workflow = str(error).removeprefix(f"{path}: ")
    workflow_files = [] if workflow is None else write_workflow(path, workflow)
    card = path.with_suffix(".md")
    with write_atomic(card) as file:
        notes = [] if workflow is None else workflow.given_notes()
        file.write(card_text(path.name, adapter, results, no_workflow, notes).encode())
    return [card, *workflow_files]


def write_workflow(path: Path, settings: WorkflowSettings) -> list[Path]:
    """Write `<adapter>.workflow.json` for ComfyUI's page and `<adapter>.api.json` for its server."""
    nodes = build_workflow(settings)
    graph = comfyui_json.graph_json(nodes, settings.notes())
    files = {".workflow.json": graph, ".api.json": comfyui_json.api_json(nodes)}
    for suffix, content in files.items():
        comfyui_json.write_json(path.with_suffix(suffix), content)
    return [path.with_suffix(suffix) for suffix in files]


def card_text(
    name: str,
    adapter: Adapter,
    scores: Mapping[str, Any] | None = None,
    no_workflow: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The card in the format of Hugging Face: YAML, then Markdown. no_workflow: why ComfyUI cannot run the adapter.

    notes: what the ComfyUI workflow says beside its nodes on given parts of the clip.
    """
    metadata = adapter.metadata
    training = [(row, _text(metadata[key])) for key, row in _TRAINING_ROWS.items() if key in metadata]
    sections = [
        front_matter(metadata),
        f"# {_text(metadata.get('task', Path(name).stem))}: {_kind(adapter)}{_base(metadata)}",
        *_use(adapter),
        *([] if scores is None else _results(scores)),
        "## Training",
        _table(training),
        "## How to load it",
        *_loading(name, adapter, no_workflow),
        *((given_parts(metadata, notes) + sound_loading(metadata)) if published_version(metadata) else []),
    ]
    return "\n\n".join(sections) + "\n"


def published_version(metadata: Mapping[str, str]) -> Version | None:
    """The published LTX version that an adapter was trained on; None for another base."""
    return VERSIONS.get(metadata.get(VERSION, "")) if metadata.get(FAMILY) == "ltx" else None


def front_matter(metadata: Mapping[str, str]) -> str:
    """The YAML block. Values are JSON strings, which are valid YAML."""
    plain = metadata.get(KIND) == PLAIN
    of_base = ["ltx-2", "ltx-video"] if metadata.get(FAMILY) == "ltx" else []
    tags = ["lora", *([] if plain else ["ic-lora"]), "video", *of_base]
    lines = [f"tags: {json.dumps(tags)}", f"pipeline_tag: {'text' if plain else 'video'}-to-video"]
    version = published_version(metadata)
    if version is not None:
        lines += [
            f"base_model: {version.repository}",
            "base_model_relation: adapter",
            "library_name: diffusers",
        ]
    if metadata.get("trigger"):
        lines.append(f"instance_prompt: {string_literal(metadata['trigger'])}")
    return "\n".join(["---", *lines, "---"])


def _text(value: str | None) -> str:
    """A value of the metadata as Markdown text: one line without formatting, HTML or the end of a table's cell."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", shown(value, LONGEST))


def _code(value: str) -> str:
    """A value as Markdown code inside a table: the fence is longer than any run of backticks in the value."""
    line = shown(value, LONGEST).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{line}{space}{fence}"


def _kind(adapter: Adapter) -> str:
    return "an IC-LoRA" if adapter.in_context else "a LoRA"


def _base(metadata: Mapping[str, str]) -> str:
    return f" for {_text(metadata[FAMILY])} {_text(metadata.get(VERSION))}" if FAMILY in metadata else ""


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _use(adapter: Adapter) -> list[str]:
    """The section with the settings for using the adapter: trigger, reference, size, frame rate."""
    metadata = adapter.metadata
    trigger = metadata.get("trigger")
    rows = [
        ("trigger", f"start the prompt with {_code(trigger)}" if trigger else "none"),
        *([("form of the prompts", _code(metadata[TEMPLATE_KEY]))] if TEMPLATE_KEY in metadata else []),
        *_references(adapter),
        *sound_rows(metadata),
    ]
    if adapter.slots is not None:
        rows.append(("order of the references", "learned: the file has a vector (slot) for each of them"))
    rows += [("given part of the clip", in_words(condition)) for condition in conditions_of(metadata)]
    if "size" in metadata:
        rows.append(("size in training", f"{_text(metadata['size'])} (width x height x frames)"))
    if "fps" in metadata:
        rows.append(("frames per second", _text(metadata["fps"])))
    rows.append(("adapted linears", f"{len(adapter.weights)}, {len(adapter.audio)} of them outside the video stream"))
    return ["## Use", _table(rows)]


def _references(adapter: Adapter) -> list[tuple[str, str]]:
    """The rows on the references, each with its size, frames and rate; several have their number and name."""
    layouts, rows = adapter.references, []
    makers = makers_of(adapter.metadata) or []
    for number, layout in enumerate(layouts, 1):
        name = "reference" if len(layouts) == 1 else f"reference {number}, {layout.name}"
        size, factor = "same size as the output clip", layout.downscale
        if factor != 1:
            size = f"{factor} times smaller than the output clip in width and height (factor {factor})"
        share = "" if layout.p == 1 else f"; in {layout.p:.0%} of the training clips"
        rows.append((name, size + share))
        if words := layout.use.in_words:
            rows.append((f"{name} in training", words))
        if layout.frame is not None:
            count = "one, at" if layout.frame else "one or several, from"
            rows.append((f"frames of the {name}", f"{count} {frame_in_words(layout.frame)} of the output clip"))
        if layout.temporal_scale != 1:
            rows.append((f"{name} frame rate", f"{layout.temporal_scale} times lower than the output clip's"))
        if number <= len(makers):
            rows.append((f"{name} in training was made by", _code(makers[number - 1].in_words)))
    if any(not maker.is_clip for maker in makers):
        rows.append(("reference of a new clip", _code("python -m iclora_train.signal clip=CLIP adapter=FILE out=FILE")))
    return rows or [("reference", "none")]


def _results(scores: Mapping[str, Any]) -> list[str]:
    """The section with the results of an evaluation: a row per condition, then a row per attention strength."""
    primary = scores["primary"]

    def with_interval(estimate: Mapping[str, Any]) -> str:
        interval = "" if estimate["low"] is None else f" [{estimate['low']:.3f}, {estimate['high']:.3f}]"
        return f"{estimate['mean']:.3f}{interval}"

    head = [f"| condition | {_text(primary)} |", "|---|---|"]
    conditions = [*scores["cells"].items()]
    strength = "adapter" if scores.get("family") == "style" else "attention"
    conditions += [(f"{strength} strength {level['s']:g}", level["metrics"]) for level in scores["strength"]]
    rows = [
        f"| {_text(name)} | {with_interval(metrics[primary])} |" for name, metrics in conditions if primary in metrics
    ]
    caption = (
        f"Mean and 95 % interval from {len(scores['clips'])} held-out {_text(scores['task'])} windows with "
        f"{len(scores['seeds'])} seeds; adapter at strength 1."
    )
    return ["## Results", caption, "\n".join([*head, *rows])]


def _loading(name: str, adapter: Adapter, no_workflow: str | None) -> list[str]:
    """Instructions for the three programs, or the reason why they cannot run the base."""
    metadata = adapter.metadata
    version = published_version(metadata)
    if FAMILY not in metadata:
        return ["The file does not declare its base model; `python -m iclora_train.adapters convert --base` adds it."]
    if version is None:
        task, file = shlex.quote(shown(metadata.get("task"), LONGEST)), shlex.quote(name)
        return [
            f"The base model{_base(metadata).removeprefix(' for')} is part of iclora_train; other programs cannot load "
            "it. Evaluate the adapter with:",
            f"```bash\npython -m eval conf={task} adapter={file}\n```",
        ]
    if not adapter.in_context:
        return _loading_plain(Path(name).stem, no_workflow)
    stem, prompt = Path(name).stem, shown(example_prompt(metadata, "..."), LONGEST)
    limit, names = comfyui_limit(adapter), [layout.name for layout in adapter.references]
    nodes = "without custom nodes" if limit is None else f"with custom nodes ({limit})"
    comfyui = (
        f"**ComfyUI** {OLDEST_COMFYUI} or later, {nodes}: put the file into `models/loras` and open "
        f"`{stem}.workflow.json` (for the server: `{stem}.api.json`). Select your base model and "
        f"reference {'clip' if len(names) == 1 else 'files'} in the workflow."
        if no_workflow is None
        else f"**ComfyUI**: no workflow was written for this file: {no_workflow}."
    )
    order = f"The adapter takes {len(names)} references, in the order of the table above: {', '.join(names)}."
    if adapter.slots is not None:
        order += (
            f" {LIMIT}. `python -m iclora_train.adapters convert --no-slots` writes a file without the slots, with "
            "which iclora_train shows what these programs make of the adapter."
        )
    return [
        *([order] if len(names) > 1 else []),
        *(f"{line}." for line in varied_limits(adapter.references)),
        comfyui,
        *ltx_pipelines(name, prompt, adapter),
        *reference_size(adapter),
        *diffusers_section(name, prompt, adapter, version),
    ]


def _loading_plain(stem: str, no_workflow: str | None) -> list[str]:
    """Instructions for the three programs, for an adapter that takes no reference."""
    example = f" `{stem}.workflow.json` is an example without custom nodes." if no_workflow is None else ""
    return [
        "The adapter takes no reference: every workflow and pipeline for the base model can load it. **ComfyUI**: "
        f"`LoraLoaderModelOnly`.{example} **ltx-pipelines**: `--lora`. **diffusers**: `pipe.load_lora_weights`."
    ]

"""Steps of a workflow as the two JSON forms of ComfyUI: `api` for its server, `graph` for its page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iclora_train.adapters.comfyui_nodes import NODES, Input, Value
from iclora_train.adapters.comfyui_workflow import Link, Step
from iclora_train.core.atomic_files import write_atomic

_COLUMN, _ROW = 340, 260  # pixels between nodes on the page
Steps = Mapping[str, Step]


def given(step: Step, wanted: Input) -> Value | Link | None:
    """What an input of a step is given: what it names, else the node's default."""
    return step.inputs.get(wanted.name, wanted.default)


def slot(steps: Steps, wire: Link) -> int:
    """The number of the output that a wire names."""
    return [name for name, _ in NODES[steps[wire.step].node].outputs].index(wire.output)


def api(steps: Steps) -> dict[str, Any]:
    """Number -> class_type and inputs; a wire is [number of the node, number of its output]."""
    numbers = {title: str(i) for i, title in enumerate(steps, 1)}

    def value(found: Value | Link) -> object:
        return [numbers[found.step], slot(steps, found)] if isinstance(found, Link) else found

    def inputs(step: Step) -> dict[str, object]:
        all_of = ((wanted.name, given(step, wanted)) for wanted in NODES[step.node].inputs)
        return {name: value(found) for name, found in all_of if found is not None}

    return {
        numbers[title]: {"class_type": step.node, "inputs": inputs(step), "_meta": {"title": title}}
        for title, step in steps.items()
    }


def graph(steps: Steps) -> dict[str, Any]:
    """Nodes with places, sockets and widget values, and links [number, from, output, to, input, type]."""
    numbers = {title: i for i, title in enumerate(steps, 1)}
    links: list[list[Any]] = []
    nodes: list[dict[str, Any]] = []
    for title, (column, row) in _places(steps).items():
        step, node = steps[title], NODES[steps[title].node]
        nodes.append(
            {
                "id": numbers[title],
                "type": step.node,
                "title": title,
                "pos": [column * _COLUMN, row * _ROW],
                "size": [_COLUMN - 40, 60 + 26 * max(len(node.inputs), len(node.outputs))],
                "flags": {},
                "order": len(nodes),
                "mode": 0,
                "inputs": _sockets(steps, title, numbers, links),
                "outputs": [{"name": name, "type": of, "links": []} for name, of in node.outputs],
                "properties": {"cnr_id": node.pack, "Node name for S&R": step.node},
                "widgets_values": _widgets(step),
            }
        )
    for number, source, output, *_ in links:
        nodes[source - 1]["outputs"][output]["links"].append(number)
    ends = {"last_node_id": len(nodes), "last_link_id": len(links)}
    return {**ends, "nodes": nodes, "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4}


def _sockets(steps: Steps, title: str, numbers: Mapping[str, int], links: list[list[Any]]) -> list[dict[str, Any]]:
    """The inputs of a node that can be wired and the widgets that are; their links are added to `links`."""
    sockets: list[dict[str, Any]] = []
    for wanted in NODES[steps[title].node].inputs:
        found = given(steps[title], wanted)
        socket: dict[str, Any] = {"name": wanted.name, "type": wanted.type, "link": None}
        if isinstance(found, Link):
            socket["link"] = len(links) + 1
            ends = [numbers[found.step], slot(steps, found), numbers[title], len(sockets)]
            links.append([len(links) + 1, *ends, wanted.type])
        if wanted.widget:
            socket["widget"] = {"name": wanted.name}
        if not wanted.widget or isinstance(found, Link):
            sockets.append(socket)
    return sockets


def _widgets(step: Step) -> list[Value | None]:
    """The values of a node's widgets in order; one that is wired holds its default."""
    values: list[Value | None] = []
    for wanted in NODES[step.node].inputs:
        if wanted.widget:
            found = given(step, wanted)
            values.append(wanted.default if isinstance(found, Link) else found)
            values += [wanted.beside] if wanted.beside else []
    return values


def _places(steps: Steps) -> dict[str, tuple[int, int]]:
    """Column and row of each step: a column right of all it needs."""
    columns: dict[str, int] = {}
    rows: dict[int, int] = {}
    places = {}
    for title, step in steps.items():
        columns[title] = 1 + max((columns[w.step] for w in step.inputs.values() if isinstance(w, Link)), default=-1)
        rows[columns[title]] = rows.get(columns[title], -1) + 1
        places[title] = (columns[title], rows[columns[title]])
    return places


def write(path: Path, form: Mapping[str, Any]) -> None:
    """Write a form as JSON, whole or not at all."""
    with write_atomic(path) as file:
        file.write((json.dumps(form, indent=1) + "\n").encode())

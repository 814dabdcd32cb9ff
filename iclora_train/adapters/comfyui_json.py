"""Write a workflow in ComfyUI's two JSON formats: the API format for its server, and the graph format for its page.

The API format names every input. The graph format lists the values of a node's widgets in the node's own order, and
versions of ComfyUI add widgets. The list therefore ends at the last value that is not a default: later widgets keep
their defaults. Newer pages can also restore `widgets_values_named` (a setting that is off by default).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iclora_train.adapters.comfyui_base import Link, WorkflowNode
from iclora_train.adapters.comfyui_nodes import NODE_CLASSES, NodeInput, Value
from iclora_train.core.atomic_files import write_atomic

NOTE = "MarkdownNote"  # a node that only the page knows
_COLUMN, _ROW = 340, 260  # pixels between nodes on the page
Nodes = Mapping[str, WorkflowNode]  # by title


def input_value(node: WorkflowNode, spec: NodeInput) -> Value | Link | None:
    """The value or link of a node's input; without one, the default of the node class."""
    return node.inputs.get(spec.name, spec.default)


def output_index(nodes: Nodes, link: Link) -> int:
    """The index of a link's output among the outputs of its node."""
    return [name for name, _ in NODE_CLASSES[nodes[link.node].class_type].outputs].index(link.output)


def api_json(nodes: Nodes) -> dict[str, Any]:
    """The API format: number -> class_type and inputs. A link is [number of the node, index of its output]."""
    numbers = {title: str(i) for i, title in enumerate(nodes, 1)}

    def encoded(value: Value | Link) -> object:
        return [numbers[value.node], output_index(nodes, value)] if isinstance(value, Link) else value

    def inputs(node: WorkflowNode) -> dict[str, object]:
        values = ((spec.name, input_value(node, spec)) for spec in NODE_CLASSES[node.class_type].inputs)
        return {name: encoded(value) for name, value in values if value is not None}

    return {
        numbers[title]: {"class_type": node.class_type, "inputs": inputs(node), "_meta": {"title": title}}
        for title, node in nodes.items()
    }


def graph_json(nodes: Nodes, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The graph format: nodes with positions, sockets and widget values, and links.

    A link is [number, source node, output index, target node, input index, type]. notes: lines of text beside the
    nodes, which the page shows and the server never gets.
    """
    numbers = {title: i for i, title in enumerate(nodes, 1)}
    links: list[list[Any]] = []
    entries: list[dict[str, Any]] = []
    for title, (column, row) in _positions(nodes).items():
        node, spec = nodes[title], NODE_CLASSES[nodes[title].class_type]
        entries.append(
            {
                "id": numbers[title],
                "type": node.class_type,
                "title": title,
                "pos": [column * _COLUMN, row * _ROW],
                "size": [_COLUMN - 40, 60 + 26 * max(len(spec.inputs), len(spec.outputs))],
                "flags": {},
                "order": len(entries),
                "mode": 0,
                "inputs": _sockets(nodes, title, numbers, links),
                "outputs": [{"name": name, "type": kind, "links": []} for name, kind in spec.outputs],
                "properties": {"cnr_id": spec.package, "Node name for S&R": node.class_type},
                **_widgets(node),
            }
        )
    for number, source, output, *_ in links:
        entries[source - 1]["outputs"][output]["links"].append(number)
    entries += _note(len(entries) + 1, notes)
    last = {"last_node_id": len(entries), "last_link_id": len(links)}
    return {**last, "nodes": entries, "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4}


def _note(number: int, lines: Sequence[str]) -> list[dict[str, Any]]:
    """A node of the page with a text, above the others; none without text."""
    if not lines:
        return []
    height = 60 + 40 * len(lines)
    return [
        {
            **{"id": number, "type": NOTE, "title": "what to give", "pos": [0, -height - 60], "size": [680, height]},
            **{"flags": {}, "order": number - 1, "mode": 0, "inputs": [], "outputs": [], "properties": {}},
            "widgets_values": ["\n\n".join(lines)],
        }
    ]


def _sockets(nodes: Nodes, title: str, numbers: Mapping[str, int], links: list[list[Any]]) -> list[dict[str, Any]]:
    """The sockets of a node: inputs without a widget, and linked widgets. Appends the links to `links`."""
    sockets: list[dict[str, Any]] = []
    for spec in NODE_CLASSES[nodes[title].class_type].inputs:
        value = input_value(nodes[title], spec)
        socket: dict[str, Any] = {"name": spec.name, "type": spec.type, "link": None}
        if isinstance(value, Link):
            socket["link"] = len(links) + 1
            output = output_index(nodes, value)
            kind = NODE_CLASSES[nodes[value.node].class_type].outputs[output][1]
            links.append([len(links) + 1, numbers[value.node], output, numbers[title], len(sockets), kind])
        if spec.widget:
            socket["widget"] = {"name": spec.name}
        if not spec.widget or isinstance(value, Link):
            sockets.append(socket)
    return sockets


def _widgets(node: WorkflowNode) -> dict[str, Any]:
    """The values of a node's widgets: as a list in order up to the last value that is not the default, and by name.

    A linked widget has its default value in the list and no value by name.
    """
    values: list[Value | None] = []
    named: dict[str, Value] = {}
    needed = 0
    for spec in NODE_CLASSES[node.class_type].inputs:
        if not spec.widget:
            continue
        value = input_value(node, spec)
        values.append(spec.default if isinstance(value, Link) else value)
        if value is not None and not isinstance(value, Link):
            named[spec.name] = value
        if values[-1] != spec.default:
            needed = len(values)
        if spec.after_generate:
            values.append(spec.after_generate)
            named["control_after_generate"] = spec.after_generate
            needed = len(values)
    return {"widgets_values": values[:needed], "widgets_values_named": named}


def _positions(nodes: Nodes) -> dict[str, tuple[int, int]]:
    """Column and row of each node: its column is to the right of all nodes that it depends on."""
    columns: dict[str, int] = {}
    rows: dict[int, int] = {}
    positions = {}
    for title, node in nodes.items():
        sources = (columns[value.node] for value in node.inputs.values() if isinstance(value, Link))
        columns[title] = 1 + max(sources, default=-1)
        rows[columns[title]] = rows.get(columns[title], -1) + 1
        positions[title] = (columns[title], rows[columns[title]])
    return positions


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a workflow as JSON, atomically."""
    with write_atomic(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())

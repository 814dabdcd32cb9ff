"""Deinterlace the frames that are marked as interlaced. Number and times of the frames stay."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import av
import av.filter

from iclora_train.media.frame_decoder import DecodedFrame

# one frame for each frame, the field that is shown first; frames that are not marked pass unchanged
_FILTER = "bwdif", "mode=send_frame:parity=auto:deint=interlaced"


def deinterlaced(frames: Iterable[DecodedFrame]) -> Iterator[DecodedFrame]:
    """The frames, deinterlaced by FFmpeg's bwdif from the first one on that is marked as interlaced."""
    graph: av.filter.Graph | None = None
    size = None
    waiting: deque[DecodedFrame] = deque()  # pushed into the filter, which needs the next frame too
    for decoded in frames:
        if graph is not None and size != _properties(decoded.frame):
            yield from _flush(graph, waiting)
            graph = None
        if graph is None and not decoded.frame.interlaced_frame:
            yield decoded
            continue
        if graph is None:
            graph, size = _graph(decoded.frame), _properties(decoded.frame)
        waiting.append(decoded)
        graph.vpush(decoded.frame)
        yield from _pull(graph, waiting)
    if graph is not None:
        yield from _flush(graph, waiting)


def _properties(frame: av.VideoFrame) -> tuple[object, ...]:
    return frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range


def _graph(frame: av.VideoFrame) -> av.filter.Graph:
    """A filter graph for frames like this one."""
    graph = av.filter.Graph()
    base = frame.time_base
    arguments = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={base}"
    arguments += f":colorspace={frame.colorspace}:range={frame.color_range}"
    nodes = graph.add("buffer", arguments), graph.add(*_FILTER), graph.add("buffersink")
    graph.link_nodes(*nodes).configure()
    return graph


def _flush(graph: av.filter.Graph, waiting: deque[DecodedFrame]) -> Iterator[DecodedFrame]:
    graph.vpush(None)
    yield from _pull(graph, waiting)


def _pull(graph: av.filter.Graph, waiting: deque[DecodedFrame]) -> Iterator[DecodedFrame]:
    """The frames that are ready, with the times of their sources."""
    while waiting:
        try:
            frame = graph.vpull()
        except (BlockingIOError, EOFError):  # needs the next frame; ended
            return
        source = waiting.popleft()
        frame.pts, frame.time_base, frame.duration = source.frame.pts, source.frame.time_base, source.frame.duration
        yield source._replace(frame=frame)

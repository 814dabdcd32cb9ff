"""The references of an adapter, in order: how much smaller and slower each is than the video, and where it begins.

The first reference has keys of its own in the metadata (`metadata.reference_layouts`), which every program reads. The
further ones (`task.more_references`) are a JSON list under MORE, which only this project reads, like the JSON object
under USE, which says how strongly and how cleanly training gave the first one. Another program may have written any
text there, so every entry is checked before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from iclora_train.config.places import frame_bounds, frame_in_words, frame_range, is_drawn
from iclora_train.config.reference_use import KEYS as USE_KEYS
from iclora_train.config.reference_use import ReferenceUse
from iclora_train.config.references import NAME, MoreReference
from iclora_train.core.safetensors_header import shortened

MORE = "more_references"  # key of the metadata
USE = "reference_use"  # key of the metadata: the settings `ReferenceUse` of the first reference; absent if none is set
_MOST, _LAST_FRAME = 999, 9999  # largest factor, largest number of a frame, as in `metadata`
LATENT_FRAME = 8  # frames per latent frame of every published LTX-2 VAE
_MOST_REFERENCES = 99  # after the first


@dataclass(frozen=True)
class ReferenceLayout:
    """How one reference is used.

    downscale: it is this many times smaller than the video in width and height. temporal_scale: it has this many times
    fewer frames per second. frame: of the video, at which it begins, negative from the end; None: it runs along the
    whole video; (first, last): a picture, in training at any frame between these, in use where the user says. p: share
    of the training clips that had it. use: its strengths, mask and noise in training. Two layouts that differ in p or
    use alone are equal.
    """

    name: str
    downscale: int = 1
    temporal_scale: int = 1
    frame: int | tuple[int, int] | None = None
    p: float = field(default=1.0, compare=False)
    use: ReferenceUse = field(default=ReferenceUse(), compare=False)

    @property
    def placement(self) -> tuple[int, int, int | tuple[int, int] | None]:
        """What changes the positions of its tokens."""
        return self.downscale, self.temporal_scale, self.frame

    @property
    def is_drawn(self) -> bool:
        """Whether training drew its frame for each clip, so that the user says where it stands."""
        return is_drawn(self.frame)

    def example_frame(self, frames: int) -> int | None:
        """A frame for it in a video of `frames` frames: its own, or one in the middle of its bounds. Every program can
        place a picture at 1, 9, 17, ..., so one of these if possible. None: it runs along the video."""
        if not self.is_drawn:
            assert not isinstance(self.frame, tuple)
            return self.frame
        first, last = frame_range(self.name, self.frame, frames)
        middle = (first + last) // 2
        begins = [frame for frame in range(first, last + 1) if frame % LATENT_FRAME == 1] or [middle]
        return min(begins, key=lambda frame: abs(frame - middle))

    @property
    def in_words(self) -> str:
        """E.g. `factor 2, at frame -1`."""
        parts = [f"factor {self.downscale}"]
        if self.temporal_scale != 1:
            parts.append(f"{self.temporal_scale} times fewer frames per second")
        if self.frame is not None:
            parts.append(f"at {frame_in_words(self.frame)}")
        return ", ".join(parts)


def references_metadata(references: Sequence[MoreReference]) -> dict[str, str]:
    """The entry of the metadata; none for an adapter with one reference. p is left out where it is 1."""
    entries = [
        {**reference.layout(), **({} if reference.p == 1 else {"p": reference.p}), **reference.use.as_dict()}
        for reference in references
    ]
    return {MORE: json.dumps(entries)} if entries else {}


def use_metadata(use: ReferenceUse) -> dict[str, str]:
    """The entry of the metadata on the use of the first reference; none if no key is set."""
    return {USE: json.dumps(settings)} if (settings := use.as_dict()) else {}


def first_use(metadata: Mapping[str, str]) -> ReferenceUse:
    """How training used the first reference; without settings where the metadata has none, or malformed ones."""
    entry = read_json(metadata.get(USE, "{}"))
    if not isinstance(entry, dict) or entry.keys() - set(USE_KEYS) or any(True for _ in _use(entry).problems()):
        return ReferenceUse()
    return _use(entry)


def use_findings(metadata: Mapping[str, str]) -> Iterator[str]:
    """A problem of the entry on the use of the first reference."""
    if USE in metadata and not first_use(metadata).as_dict():
        yield (
            f"metadata {USE}={shortened(metadata[USE], 40)} does not hold the settings of a reference in training: "
            "export the adapter again, or remove this key"
        )


def more_layouts(metadata: Mapping[str, str]) -> list[ReferenceLayout]:
    """The layouts of the references after the first. None where any of them is malformed."""
    entries = _entries(metadata)
    if entries is None or any(True for entry in entries for _ in _problems(entry)):
        return []
    keys = ("name", "downscale", "temporal_scale", "frame", "p")
    layouts = [
        ReferenceLayout(**{key: entry[key] for key in keys if key in entry}, use=_use(entry)) for entry in entries
    ]
    return [
        replace(layout, frame=frame_bounds(layout.frame)) if isinstance(layout.frame, list) else layout
        for layout in layouts
    ]


def _use(entry: Mapping[str, Any]) -> ReferenceUse:
    return ReferenceUse(**{key: entry[key] for key in USE_KEYS if key in entry})


def more_findings(metadata: Mapping[str, str]) -> Iterator[str]:
    """Problems of the list of further references, with the number of the entry."""
    entries = _entries(metadata)
    if entries is None:
        yield (
            f"metadata {MORE}={shortened(metadata[MORE], 40)} is not the list of an adapter's further references: "
            "export the adapter again, or remove this key"
        )
        return
    for number, entry in enumerate(entries):
        for problem in _problems(entry):
            yield f"metadata {MORE}[{number}] {problem}: export the adapter again, or correct this key"
    names = [entry["name"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        yield f"metadata {MORE} has two references named {shortened(twice, 40)}: export the adapter again"


def _entries(metadata: Mapping[str, str]) -> list[Any] | None:
    """The list under MORE, empty without the key; None for another text."""
    entries = read_json(metadata.get(MORE, "[]"))
    known = isinstance(entries, list) and len(entries) <= _MOST_REFERENCES and (entries or MORE not in metadata)
    return entries if known else None


def read_json(text: str) -> Any:
    """The value of a JSON text; None for another text, also for one that is nested too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _problems(entry: Any) -> Iterator[str]:
    """What is wrong with an entry."""
    if not isinstance(entry, dict):
        yield f"is {_shown(entry)}, not a reference with a name"
        return
    name, frame, p = entry.get("name"), entry.get("frame"), entry.get("p", 1.0)
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        yield f"has the name {_shown(name)}, not a letter and up to 39 letters, digits or _"
    for key in ("downscale", "temporal_scale"):
        value = entry.get(key, 1)
        if type(value) is not int or not 1 <= value <= _MOST:
            yield f"has {key}={_shown(value)}, not a whole number from 1 to {_MOST}"
    numbers = frame if isinstance(frame, list) else [frame]
    if frame is not None and not (
        all(type(number) is int and abs(number) <= _LAST_FRAME for number in numbers)
        and len(numbers) == (2 if isinstance(frame, list) else 1)
    ):
        yield f"has frame={_shown(frame)}, not the number of a frame or the first and the last"
    elif frame is not None and entry.get("temporal_scale", 1) != 1:
        yield f"begins at frame {frame} and has another frame rate than the video, which no reference has"
    if type(p) not in (int, float) or not 0 < p <= 1:
        yield f"has p={_shown(p)}, not a share above 0 and up to 1"
    for key, _ in _use(entry).problems():
        yield f"has {key}={_shown(entry[key])}, which training cannot set"


def _shown(value: Any) -> str:
    return shortened(json.dumps(value), 40)

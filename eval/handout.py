"""`python -m eval.handout conf=<task> videos=FOLDER`: write the inputs for evaluating another program.

FOLDER/inputs receives the references, target and mask of every held-out window as lossless videos, stills as PNG.
FOLDER/manifest.json lists them with sizes, captions, seeds and hashes, and says where each of several references
belongs. The program then writes its outputs to FOLDER/<key>.<seed>.mp4.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from eval.clips.windows import HeldOut, Window
from eval.metrics import Clip
from eval.report.media import as_png
from eval.scoring.ground_truth import region_to_make
from iclora_train.config import Config, Task, require
from iclora_train.config.hydra_app import run_with_config
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.progress import progress_bar
from iclora_train.core.types import Geometry
from iclora_train.data.controls import reference_records
from iclora_train.ltx2.base_model import open_base
from iclora_train.media.shard_clip import encode_clip


def write_handout(config: Config) -> Path:
    """Write the inputs and the manifest; returns the path of the manifest. Existing files are overwritten.

    Raises ConfigError as `eval` does: too few windows, leakage, shards of other settings.
    """
    require(
        config.videos is not None,
        "videos=FOLDER must be set: the folder for the inputs and later for the clips of the program",
    )
    folder = Path(str(config.videos))
    base = open_base(config.model)
    held_out = HeldOut.open(config, base)
    entries = []
    with progress_bar("inputs", len(held_out.windows), "clip") as bar:
        for window in held_out.windows:
            entries.append(_entry(folder, held_out, window, config, base.geometry))
            bar.advance()
    manifest = {
        "task": config.task.name,
        "split": config.eval.split,
        "shards": held_out.fingerprint,
        **_places(config.task),
        "windows": entries,
    }
    with write_atomic(folder / "manifest.json") as file:
        file.write((json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return folder / "manifest.json"


def _places(task: Task) -> dict[str, Any]:
    """The entry `references`: name, factors and frame of each of several references, and its strengths where they are
    not 1; none for a single reference of strength 1."""
    if all(use.usual == (1, 1) for use in task.reference_uses) and not task.more_references:
        return {}
    parts = zip(task.reference_names, task.for_references(), strict=True)
    layouts = {
        f"reference{number}": {
            "name": name,
            "downscale": part.reference_downscale,
            "temporal_scale": part.reference_temporal_scale,
            "frame": part.reference_frame,
            **{
                key: value
                for key, value in zip(("strength", "attention_strength"), part.reference_use.usual, strict=True)
                if value != 1
            },
        }
        for number, (name, part) in enumerate(parts)
    }
    return {"references": layouts}


def _entry(folder: Path, held_out: HeldOut, window: Window, config: Config, geometry: Geometry) -> dict[str, Any]:
    """Write the clips of a window; returns its manifest entry. The mask is white in the region to fill."""
    pair = held_out.pair(window)
    clips = {f"reference{i}": clip for i, clip in enumerate(pair.references)} | {"target": pair.target}
    region = region_to_make(config.task, pair, geometry)  # (F,H,W)
    if region is not None:
        clips["mask"] = np.repeat(region[..., None].astype(np.uint8) * 255, 3, axis=-1)
    places = [part.get("place") for part in reference_records(pair.record)]
    return {
        "key": window.key,
        **({"places": places} if any(place is not None for place in places) else {}),
        "caption": pair.caption,
        "fps": pair.fps,
        "files": {name: _write(folder, f"{window.key}.{name}", clip, pair.fps) for name, clip in clips.items()},
        "outputs": [f"{window.key}.{seed}.mp4" for seed in config.eval.seeds],
    }


def _write(folder: Path, name: str, clip: Clip, fps: float) -> dict[str, Any]:
    """Write a clip to inputs/, as a picture if it has one frame; returns its manifest entry."""
    is_still = len(clip) == 1
    data = as_png(clip[0]) if is_still else encode_clip(clip, fps)
    file_name = f"{name}.png" if is_still else f"{name}.mp4"
    with write_atomic(folder / "inputs" / file_name) as file:
        file.write(data)
    frames, height, width = clip.shape[:3]
    sha256 = hashlib.sha256(data).hexdigest()
    return {"file": f"inputs/{file_name}", "frames": frames, "height": height, "width": width, "sha256": sha256}


def main() -> None:
    """`python -m eval.handout`."""
    run_with_config("eval", lambda config: print(write_handout(config)), "the same command starts again")


if __name__ == "__main__":
    main()

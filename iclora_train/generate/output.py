"""Write the mp4, lossless frames on request, and a JSON record from which the video can be generated again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from iclora_train import __version__
from iclora_train.adapters.official import official_facts
from iclora_train.config import require
from iclora_train.config.paths import user_path
from iclora_train.core.atomic_files import sha256, write_atomic
from iclora_train.core.fingerprint import digest
from iclora_train.core.types import Sound, VideoShape
from iclora_train.generate.adapters import recognised
from iclora_train.generate.inputs import Inputs
from iclora_train.generate.settings import TRAINING_SECTIONS, GenerateSettings
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.shard_clip import encode_clip
from iclora_train.media.sound import encode_wav
from iclora_train.media.sound_track import KeptSound

OUTPUT_SETTINGS = ("out", "frames_out", "overwrite", "cache")  # they do not change the pixels
FRAME = "frame-{:05d}.png"


def record_path(out: str) -> Path:
    """The JSON record of a video: dog.json for dog.mp4."""
    return Path(out).with_suffix(".json")


def wav_path(out: str) -> Path:
    """The sound of a video: dog.wav for dog.mp4."""
    return Path(out).with_suffix(".wav")


def refuse_existing(settings: GenerateSettings) -> None:
    """ConfigError when an output file exists, unless overwrite=true."""
    frames = Path(settings.frames_out) if settings.frames_out else None
    written = [Path(settings.out), record_path(settings.out)]
    written += [] if settings.audio == "none" else [wav_path(settings.out)]
    existing = [path for path in written if path.exists()]
    if frames is not None:
        existing += sorted(frames.glob(FRAME.replace("{:05d}", "*")))[:1]
        require(frames.is_dir() or not frames.exists(), f"frames_out={frames} is a file: name a folder")
    require(
        settings.overwrite or not existing,
        f"{existing and existing[0]} exists: name another file with out=... (frames_out=...), or set overwrite=true",
    )


def generation_record(
    settings: GenerateSettings,
    base: BaseModel,
    inputs: Inputs,
    shape: VideoShape,
    prompts: Sequence[str],
    sigmas: Sequence[Sequence[float]],
    device: str,
) -> dict[str, Any]:
    """The record of a video as JSON: settings, whole prompts, size, noise levels, base and input files.

    prompts: of each window. `prompts` of the record has them if they differ; `prompt` is that of the first window.
    """
    fields = {key: value for key, value in asdict(settings).items() if key not in TRAINING_SECTIONS}
    sounds = {path for path in (settings.audio_source, settings.audio_reference) if path is not None}
    return {
        "settings": fields,
        "prompt": prompts[0],
        **({"prompts": list(prompts)} if len(set(prompts)) > 1 else {}),
        "shape": asdict(shape),
        "sigmas": [list(levels) for levels in sigmas],
        "base": {"family": base.family, "version": base.version, "fingerprint": base.fingerprint},
        "adapters": {path: sha256(user_path(path)) for path in settings.adapter},
        "official": {path: official_facts(recognised(path)) for path in settings.adapter},
        "inputs": {str(media.path): media.sha256() for media in inputs.media}
        | {path: sha256(user_path(path)) for path in sorted(sounds)},
        "device": device,
        "version": __version__,
    }


def finished_windows(settings: GenerateSettings, record: dict[str, Any]) -> Path:
    """The folder in `cache` for the finished windows of a video: one for each record, wherever the video is written."""
    fields = {key: value for key, value in record["settings"].items() if key not in OUTPUT_SETTINGS}
    return user_path(settings.cache) / "windows" / digest(record | {"settings": fields})[:16]


def write_outputs(
    settings: GenerateSettings,
    frames: np.ndarray,
    fps: float,
    record: dict[str, Any],
    sound: tuple[Sound | KeptSound, Sound] | None = None,
) -> list[Path]:
    """Write all outputs of uint8 RGB frames (F,H,W,3), each file atomically. Returns their paths.

    sound: of the mp4, and of the wav beside it.
    """
    out = Path(settings.out)
    with write_atomic(out) as file:
        file.write(encode_clip(frames, fps, lossless=False, sound=sound and sound[0]))
    with write_atomic(record_path(settings.out)) as file:
        file.write(json.dumps(record, indent=1, sort_keys=True).encode())
    paths = [out, record_path(settings.out)]
    if sound is not None:
        with write_atomic(wav_path(settings.out)) as file:
            file.write(encode_wav(sound[1]))
        paths.append(wav_path(settings.out))
    if settings.frames_out is None:
        return paths
    folder = Path(settings.frames_out)
    for previous in folder.glob(FRAME.replace("{:05d}", "*")):
        previous.unlink()
    for i, frame in enumerate(frames):
        with write_atomic(folder / FRAME.format(i)) as file:
            file.write(cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes())
    return [*paths, folder]

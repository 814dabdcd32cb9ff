"""Write plates one after the other: as an mp4 or mkv, or as a folder of PNG or EXR files. Nothing is kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange

from iclora_train.config import ConfigError
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.types import Sound
from iclora_train.media.codec_round_trip import EXACT
from iclora_train.media.exr import require_exr, write_exr
from iclora_train.media.frame_times import FrameTimes
from iclora_train.media.plate import Plate, PlateFormat
from iclora_train.media.sound_track import KeptSound, add_sound, timescale

FRAMES_FORMATS = ("png", "png16", "exr")
PLAYER, LOSSLESS = {"crf": "16", "preset": "medium"}, {"qp": "0", "preset": "ultrafast"}
H264 = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le")
PLAYER_FORMATS = ("yuv420p", "yuv420p10le", "yuv422p10le", "yuv444p10le")
GBR = {".mp4": ("libx264rgb", "rgb24"), ".mkv": ("ffv1", "bgr0")}  # encoder and pixel format of 8-bit RGB
FRAME = "frame-{:05d}"


class PlateWriter(Protocol):
    """Takes plates in order."""

    def add(self, plate: Plate) -> None:
        """Write the next frame."""


class FolderWriter:
    """A picture for each plate: png (8 bits), png16, or exr (linear light in half floats)."""

    def __init__(self, folder: Path, kind: str, names: Sequence[str] | None, fps: Fraction | None) -> None:
        """names: of the files, without suffix; None: frame-00000, ..."""
        self._folder, self._kind, self._names, self._fps, self._count = folder, kind, names, fps, 0
        if kind == "exr":
            require_exr(folder)

    def add(self, plate: Plate) -> None:
        """Write the next picture; it appears when it is complete."""
        name = FRAME.format(self._count) if self._names is None else self._names[self._count]
        self._count += 1
        write_picture(self._folder / f"{name}.{self._kind[:3]}", plate.rgb(), self._kind, self._fps)


def write_picture(path: Path, rgb: np.ndarray, kind: str, fps: Fraction | None) -> None:
    """Write display levels RGB fp32 (H,W,3) as a picture of FRAMES_FORMATS. PNG cuts levels at black and white."""
    if kind == "exr":
        write_exr(path, rgb, fps)
        return
    white, dtype = (65535, np.uint16) if kind == "png16" else (255, np.uint8)
    levels = np.rint(np.clip(rgb, 0, 1) * white).astype(dtype)
    done, data = cv2.imencode(".png", levels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    with write_atomic(path) as file:
        file.write(data.tobytes())


class VideoWriter:
    """An mp4 (H.264) or mkv (FFV1). Lossless in the format of the plates, or mp4 for players in `player` format.

    Use it as a context: the file appears as `path` when the context ends without an error.
    """

    def __init__(
        self,
        path: Path,
        times: FrameTimes,
        sound: Sound | KeptSound | None = None,
        timecode: str | None = None,
        player: str | None = None,
    ) -> None:
        """player: a pixel format of PLAYER_FORMATS; None: lossless."""
        self._path, self._times, self._sound, self._timecode, self._player = path, times, sound, timecode, player
        self._temporary = path.with_name(f"{path.name}.tmp{path.suffix}")
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._packets: list[tuple[Fraction, av.Packet]] = []
        self._count = 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._container is not None and self._stream is not None:
                if kind is None:
                    self._container.mux(self._stream.encode())
                    self._container.mux([packet for _, packet in self._packets])
                self._container.close()
                if kind is None:
                    self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def add(self, plate: Plate) -> None:
        """Encode the next frame. ConfigError if the file cannot hold the plate's format."""
        if self._player is not None:
            rgb = plate.rgb()
            plate = Plate.of_rgb(rgb, self._player)
        if self._container is None:
            self._begin(plate)
        assert self._container is not None
        assert self._stream is not None
        tick = self._times.ticks[self._count]
        while self._packets and self._packets[0][0] <= tick * self._times.tick:
            self._container.mux(self._packets.pop(0)[1])
        frame = plate.frame()
        if plate.format.name == "gbrp":
            frame = frame.reformat(format=GBR[self._path.suffix][1], interpolation=EXACT, threads=1)
        frame.pts, frame.time_base = tick, self._times.tick
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def _begin(self, plate: Plate) -> None:
        options = {"fflags": "+bitexact"}
        if self._path.suffix == ".mp4":
            options |= {"movflags": "+faststart"}
            options |= {} if self._sound is None else {"movie_timescale": str(timescale(self._sound))}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._temporary), "w", options=options)
        encoder, pixel_format = encoder_of(self._path, plate.format)
        if encoder == "ffv1":
            settings = {"level": "3", "slicecrc": "1"}
        else:
            settings = {**(PLAYER if self._player else LOSSLESS), "bf": "0", "g": "48"}
        stream = self._container.add_stream(encoder, rate=self._times.rate, options=settings)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = plate.size
        stream.pix_fmt = pixel_format
        stream.time_base = stream.codec_context.time_base = self._times.tick
        _tag(stream.codec_context, plate.format)
        if self._timecode is not None:
            stream.metadata["timecode"] = self._timecode
        self._packets = [] if self._sound is None else add_sound(self._container, self._sound)
        self._stream = stream


def encoder_of(path: Path, layout: PlateFormat) -> tuple[str, str]:
    """FFmpeg's encoder and pixel format for plates of a format. ConfigError if the file cannot hold it."""
    if layout.name == "gbrp":
        return GBR[path.suffix]
    if path.suffix == ".mkv":
        return "ffv1", layout.name
    if layout.name not in H264:
        raise ConfigError(
            f"out={path}: an mp4 holds no lossless {layout.name}, the format of the source: name an .mkv, or a folder "
            "for frames"
        )
    return "libx264", layout.name


def _tag(encoder: av.VideoCodecContext, layout: PlateFormat) -> None:
    """Make the encoder write which colours the samples have."""
    encoder.colorspace = layout.matrix
    encoder.color_range = int(ColorRange.JPEG if layout.full else ColorRange.MPEG)
    encoder.color_primaries, encoder.color_trc = layout.primaries, layout.transfer

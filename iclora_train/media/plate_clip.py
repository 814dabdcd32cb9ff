"""Read a clip frame by frame at its own size and bit depth: a video, a folder of pictures, or one picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from iclora_train.core.regular_files import read_regular
from iclora_train.media.clip import probe
from iclora_train.media.container import decode, open_video
from iclora_train.media.exr import display_levels, read_channels
from iclora_train.media.frame_decoder import DecodedFrame
from iclora_train.media.frame_folder import frame_files
from iclora_train.media.frame_times import FrameTimes
from iclora_train.media.orientation import UPRIGHT, display_matrix
from iclora_train.media.picture import IMAGES, is_picture, read_picture, require_picture
from iclora_train.media.plate import Plate
from iclora_train.media.rgb import hdr_kind
from iclora_train.media.wide_colour import needs_conversion

DEEP = (".png", ".tif", ".tiff")  # pictures with 8 or 16 bits
EXR = ".exr"
AS_GENERATED = "-c:v ffv1 -level 3"  # arguments of ffmpeg for a lossless copy


@dataclass(frozen=True)
class PlateClip:
    """A clip of plates. times: of a video; None for pictures. timecode: of its first frame, as the file has it."""

    path: Path
    pictures: tuple[Path, ...]
    height: int
    width: int
    times: FrameTimes | None
    timecode: str | None = None

    @classmethod
    def open(cls, path: Path) -> PlateClip:
        """Measure a clip; a video is decoded once. ValueError names the file and the remedy."""
        if path.is_dir() or is_picture(path):
            pictures = tuple(frame_files(path, (*IMAGES, EXR)) if path.is_dir() else [path])
            if not pictures:
                raise ValueError(f"{path} has no pictures in it: give another folder")
            height, width = read_levels(pictures[0]).shape[:2]
            return cls(path, pictures, height, width, None)
        _require_plain(path, next(decode(path)))
        info = probe(path)
        return cls(path, (), info.height, info.width, info.times, _timecode(path))

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.pictures) if self.times is None else len(self.times.ticks)

    @property
    def is_linear(self) -> bool:
        """Whether the pictures are EXR files."""
        return any(picture.suffix.lower() == EXR for picture in self.pictures)

    def plates(self) -> Iterator[Plate]:
        """All frames in order, at the bit depth of the file. ValueError names a frame that differs from the first."""
        if not self.pictures:
            for decoded in decode(self.path):
                try:
                    yield Plate.of_frame(decoded.frame)
                except (ValueError, av.FFmpegError) as error:
                    message = f"{self.path}: {error}; convert it: ffmpeg -i IN {AS_GENERATED} -pix_fmt yuv422p10le"
                    raise ValueError(f"{message} OUT.mkv") from error
        for levels in self._pictures():
            if levels.dtype == np.float32:
                raise ValueError(f"{self.path}: EXR files are not read as a source: give PNG files or a video")
            yield Plate.of_rgb(levels, "gbrp16le" if levels.dtype == np.uint16 else "gbrp")

    def colours(self) -> Iterator[np.ndarray]:
        """All frames in order, RGB fp32 (H,W,3), 0 is black and 1 white. ValueError as in `plates`."""
        if not self.pictures:
            for plate in self.plates():
                yield plate.rgb()
        for levels in self._pictures():
            yield levels if levels.dtype == np.float32 else levels.astype(np.float32) / np.iinfo(levels.dtype).max

    def _pictures(self) -> Iterator[np.ndarray]:
        for picture in self.pictures:
            levels = read_levels(picture)
            if levels.shape[:2] != (self.height, self.width):
                raise ValueError(
                    f"{picture} is {levels.shape[1]}x{levels.shape[0]}, {self.pictures[0].name} is "
                    f"{self.width}x{self.height}: give frames of one size"
                )
            yield levels


def read_levels(path: Path) -> np.ndarray:
    """A picture as RGB (H,W,3): uint8 or uint16 as it is stored; fp32 display levels of an EXR in linear light.

    ValueError names the file and the remedy; for transparent pictures too.
    """
    if path.suffix.lower() == EXR:
        channels = read_channels(path, "write it again")
        missing = [name for name in "RGB" if name not in channels]
        if missing:
            raise ValueError(f"{path} has no channel {missing[0]}: give frames with R, G and B")
        return display_levels(np.stack([channels[name].astype(np.float32) for name in "RGB"], axis=-1))
    if path.suffix.lower() not in DEEP:
        return read_picture(path)
    require_picture(path)  # before OpenCV allocates the size that the header states
    try:
        levels = cv2.imdecode(np.frombuffer(read_regular(path), np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); save it again as png") from error
    if levels is None or levels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path} cannot be read as a picture of 8 or 16 bits; save it again as png")
    if levels.ndim == 2:
        return np.repeat(levels[..., None], 3, axis=-1)
    if levels.shape[2] == 4 and levels[..., 3].min() < (255 if levels.dtype == np.uint8 else 65535):
        raise ValueError(f"{path} has transparent parts: put them over a background first")
    return np.ascontiguousarray(levels[..., 2::-1])


def _require_plain(path: Path, decoded: DecodedFrame) -> None:
    """ValueError for a video that players change before they show it: its stored samples are not the picture."""
    frame = decoded.frame
    remedy = f"make a plain copy: ffmpeg -i IN %s{AS_GENERATED} OUT.mkv"
    if needs_conversion(frame):
        kind = hdr_kind(frame) or "wide primaries"
        raise ValueError(
            f"{path}: its colours ({kind}) are not BT.709, in which videos are generated; grade a BT.709 copy"
        )
    if display_matrix(frame) != UPRIGHT:
        raise ValueError(f"{path}: its header turns or mirrors the picture; {remedy % ''}")
    if frame.interlaced_frame:
        raise ValueError(f"{path} is interlaced; {remedy % '-vf bwdif=send_frame '}")
    if abs(decoded.pixel_aspect - 1) >= 0.01:
        raise ValueError(f"{path}: its pixels are not square; {remedy % '-vf scale=iw*sar:ih,setsar=1 '}")


def _timecode(path: Path) -> str | None:
    """The time code of the first frame, from the video's stream, the file, or a stream of time codes."""
    with open_video(path) as container:
        tags = [stream.metadata for stream in (*container.streams.video, *container.streams)] + [container.metadata]
        return next((tag["timecode"] for tag in tags if tag.get("timecode")), None)


def rate_of(times: FrameTimes | None, fps: float | None) -> Fraction | None:
    """Frames per second of a video, or of pictures that are shown at `fps`."""
    return times.rate if times is not None else None if fps is None else Fraction(fps).limit_denominator(100_000)

"""Convert a decoded frame to RGB as a colour-managed player shows it on an SDR screen.

Matrix and range come from the frame's tags. Frames without a matrix are BT.709 if they are HD, else BT.601, as in mpv.
HDR (PQ, HLG) and wide primaries are converted to BT.709 (`wide_colour.py`).
"""

from __future__ import annotations

from functools import lru_cache
from threading import get_ident

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from iclora_train.media.frame_decoder import DecodedFrame
from iclora_train.media.orientation import display_matrix, shown_size, square_pixels, turn
from iclora_train.media.wide_colour import HDR, WIDE, needs_conversion, to_bt709

_NO_MATRIX = (0, 2, 3)  # AVColorSpace: RGB (a wrong tag of YUV frames), unspecified, reserved


def upright_rgb(decoded: DecodedFrame) -> np.ndarray:
    """The frame as uint8 RGB (H,W,3): upright, square pixels, transparent parts over black.

    ValueError, or av.FFmpegError for a pixel format that libswscale cannot convert.
    """
    picture = square_pixels(_rgb(decoded.frame), decoded.pixel_aspect)
    return turn(picture, display_matrix(decoded.frame))


def upright_size(decoded: DecodedFrame) -> tuple[int, int]:
    """(height, width) of `upright_rgb`."""
    frame = decoded.frame
    return shown_size(frame.height, frame.width, decoded.pixel_aspect, display_matrix(frame))


def hdr_kind(frame: av.VideoFrame) -> str | None:
    """PQ or HLG for an HDR frame, else None."""
    return HDR.get(frame.color_trc)  # type: ignore[call-overload]  # PyAV returns the number


def changes(decoded: DecodedFrame) -> set[str]:
    """What reading changes in a frame beside its pixel format and a turn, in words for the user."""
    frame, words = decoded.frame, set()
    if kind := hdr_kind(frame):
        words.add(f"HDR ({kind}) converted to SDR")
    elif primaries := WIDE.get(frame.color_primaries):  # type: ignore[call-overload]
        words.add(f"{primaries} converted to BT.709")
    if has_alpha(frame):
        words.add("transparent parts over black")
    if frame.interlaced_frame:
        words.add("deinterlaced")
    height, width = shown_size(frame.height, frame.width, decoded.pixel_aspect, (1, 0, 0, 1))
    if width != frame.width:
        words.add(f"{frame.width}x{frame.height} of pixels {decoded.pixel_aspect} resampled to {width}x{height}")
    return words


def has_alpha(frame: av.VideoFrame) -> bool:
    """Whether the frame may have transparent parts."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """The frame as uint8 RGB (H,W,3) in BT.709, as it is stored."""
    _refuse_dolby_vision(frame)
    is_wide, is_transparent = needs_conversion(frame), has_alpha(frame)
    kind = ("rgba64le" if is_transparent else "rgb48le") if is_wide else "rgba" if is_transparent else "rgb24"
    converter = _converter(get_ident(), frame.format.name, frame.width, frame.height, kind)
    pixels: np.ndarray = converter.reformat(frame, format=kind, threads=1, **_source_matrix(frame)).to_ndarray()
    if is_wide:
        is_limited = not frame.format.is_rgb and frame.color_range != ColorRange.JPEG
        white = 255 << 8 if is_limited else 65535  # of libswscale's 16-bit RGB
        colour = to_bt709(pixels[..., :3], white, frame.color_trc, frame.color_primaries)
        pixels = np.dstack([colour, pixels[..., 3] >> 8]).astype(np.uint8) if is_transparent else colour
    if is_transparent:
        pixels = over_black(pixels)
    return _expand(pixels) if _is_limited_grey(frame) else pixels


@lru_cache(maxsize=16)
def _converter(*_properties: object) -> VideoReformatter:
    """A converter for frames of one format and size in one thread: it crashes if two threads use it at a time.

    It is kept because to set it up costs time.
    """
    return VideoReformatter()


def _source_matrix(frame: av.VideoFrame) -> dict[str, int]:
    """Arguments of `reformat` that name the matrix of a YUV frame without one."""
    if frame.format.is_rgb or frame.colorspace not in _NO_MATRIX:
        return {}
    matrix = default_matrix(frame)
    return {"src_colorspace": matrix, "dst_colorspace": matrix}


def default_matrix(frame: av.VideoFrame) -> Colorspace:
    """The matrix of a YUV frame that does not name its matrix."""
    if frame.color_primaries == ColorPrimaries.BT2020 or frame.color_trc in HDR:
        return Colorspace.BT2020
    return Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601


def _refuse_dolby_vision(frame: av.VideoFrame) -> None:
    """ValueError for Dolby Vision without a picture that other players can show (profile 5)."""
    has_tags = frame.color_trc != ColorTrc.UNSPECIFIED
    side_data = frame.side_data.get(Type.DOVI_RPU_BUFFER)  # type: ignore[call-overload]  # PyAV's stub knows text keys only
    if not has_tags and side_data is not None:
        raise ValueError("Dolby Vision without an HDR10, HLG or SDR layer cannot be read")


def _is_limited_grey(frame: av.VideoFrame) -> bool:
    """Whether a grey frame has levels of 16 to 235; libswscale reads all grey frames as 0 to 255."""
    colours = [component for component in frame.format.components if not component.is_alpha]
    is_grey = len(colours) == 1 and not frame.format.has_palette and colours[0].bits >= 8
    return is_grey and frame.color_range == ColorRange.MPEG


def _expand(pixels: np.ndarray) -> np.ndarray:
    """Levels 16 to 235 stretched to 0 to 255."""
    table = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)
    return table[pixels]


def over_black(pixels: np.ndarray) -> np.ndarray:
    """uint8 RGBA (H,W,4) with straight alpha over black: RGB (H,W,3), rounded. Opaque pixels stay as they are."""
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(colour)
    return ((colour.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)

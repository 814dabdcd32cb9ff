"""A frame at its own size and bit depth, of which a part can be changed while all other samples stay as they are.

The samples are those of the decoder: planes of Y, U, V or of G, B, R. Colours are computed in fp32 by the formulas of
ITU-R BT.601, BT.709 and BT.2020, because libswscale rounds to 8 bit on many of its paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from iclora_train.media.codec_round_trip import EXACT
from iclora_train.media.rgb import default_matrix

PLANAR = re.compile(r"(yuva?j?(420|422|444)p|gbra?p)(\d+le)?")
# formats whose samples libswscale only moves to other places
REARRANGED = {
    **dict.fromkeys(("rgb24", "bgr24", "rgb0", "bgr0", "0rgb", "0bgr"), "gbrp"),
    **{"rgb48le": "gbrp16le", "rgb48be": "gbrp16le", "nv12": "yuv420p", "p010le": "yuv420p10le"},
    **{"uyvy422": "yuv422p", "yuyv422": "yuv422p"},
}
RGB = 0  # the number of the matrix that RGB has
SUBSAMPLING = {"420": (2, 2), "422": (1, 2), "444": (1, 1)}  # rows and columns of a chroma sample
RED_BLUE = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


@dataclass(frozen=True)
class PlateFormat:
    """FFmpeg's pixel format, and the tags that say which colours the samples have.

    matrix, primaries, transfer: numbers of ITU-T H.273. full: levels from 0 to 2^bits - 1, not limited range.
    """

    name: str
    bits: int
    matrix: int = int(Colorspace.ITU709)
    full: bool = False
    primaries: int = int(ColorPrimaries.BT709)
    transfer: int = int(ColorTrc.BT709)

    @property
    def is_rgb(self) -> bool:
        """Planes of G, B, R instead of Y, U, V."""
        return self.name.startswith("gbr")

    @property
    def cell(self) -> tuple[int, int]:
        """Rows and columns of pixels that share one chroma sample."""
        match = PLANAR.fullmatch(self.name)
        assert match is not None
        return (1, 1) if match[2] is None else SUBSAMPLING[match[2]]

    @property
    def scales(self) -> tuple[float, float, float]:
        """Levels of black, from black to white, and from the least to the largest colour difference."""
        if self.is_rgb or self.full:
            return 0.0, float(2**self.bits - 1), float(2**self.bits - 1)
        unit = 2.0 ** (self.bits - 8)
        return 16 * unit, 219 * unit, 224 * unit


def plate_format(pixel_format: str) -> PlateFormat:
    """The format of a plate that is written from RGB: BT.709 of limited range; of GBR, sRGB of full range."""
    is_rgb = pixel_format.startswith("gbr")
    digits = re.search(r"p(\d+)le", pixel_format)
    bits = int(digits[1]) if digits else 8
    if is_rgb:
        return PlateFormat(pixel_format, bits, RGB, True, 1, int(ColorTrc.IEC61966_2_1))
    return PlateFormat(pixel_format, bits)


@dataclass(frozen=True)
class Plate:
    """Planes (H,W) of one frame, uint8 or uint16, each of its own size; a fourth plane is transparency."""

    planes: tuple[np.ndarray, ...]
    format: PlateFormat

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.planes[0].shape
        return height, width

    @classmethod
    def of_frame(cls, frame: av.VideoFrame) -> Plate:
        """The samples of a decoded frame. ValueError for a pixel format or a matrix that is not read."""
        name = frame.format.name
        if name in REARRANGED:
            frame = frame.reformat(format=REARRANGED[name], interpolation=EXACT, threads=1)
        elif PLANAR.fullmatch(name) is None:
            raise ValueError(f"frames in {name} cannot be composited")
        layout = _format_of(frame, name)
        if not layout.is_rgb and layout.matrix not in RED_BLUE:
            raise ValueError(f"the colour matrix number {layout.matrix} is not known")
        dtype = np.dtype("<u2" if layout.bits > 8 else "u1")
        planes = []
        for plane in frame.planes:
            rows = np.frombuffer(bytes(plane), dtype).reshape(plane.height, plane.line_size // dtype.itemsize)
            planes.append(rows[:, : plane.width].copy())
        return cls(tuple(planes), layout)

    @classmethod
    def of_rgb(cls, rgb: np.ndarray, pixel_format: str) -> Plate:
        """A plate of RGB (H,W,3): fp32, 0 is black and 1 white, or uint8 or uint16 levels."""
        layout = plate_format(pixel_format)
        dtype = np.uint16 if layout.bits > 8 else np.uint8
        if layout.is_rgb and rgb.dtype == dtype:
            return cls(tuple(np.ascontiguousarray(rgb[..., i]) for i in (1, 2, 0)), layout)
        colour = rgb if rgb.dtype == np.float32 else rgb.astype(np.float32) / np.iinfo(rgb.dtype).max
        black = np.zeros(rgb.shape[:2], dtype)
        rows, columns = layout.cell
        chroma = np.full((-(-rgb.shape[0] // rows), -(-rgb.shape[1] // columns)), 2 ** (layout.bits - 1), dtype)
        start = black + dtype(round(layout.scales[0]))
        empty = cls((black,) * 3 if layout.is_rgb else (start, chroma, chroma), layout)
        return empty.changed(0, 0, colour, np.ones(rgb.shape[:2], np.float32))

    def rgb(self) -> np.ndarray:
        """RGB fp32 (H,W,3) as on a display: 0 is black, 1 is white, and levels outside of both are kept."""
        black, white, difference = self.format.scales
        first = (self.planes[0].astype(np.float32) - black) / white
        if self.format.is_rgb:
            green, blue, red = (plane.astype(np.float32) / white for plane in self.planes[:3])
            return np.stack([red, green, blue], axis=-1)
        kr, kb = RED_BLUE[self.format.matrix]
        zero = 2.0 ** (self.format.bits - 1)
        u, v = (
            _enlarged((plane.astype(np.float32) - zero) / difference, self.format.cell, self.size)
            for plane in self.planes[1:3]
        )
        red, blue = first + 2 * (1 - kr) * v, first + 2 * (1 - kb) * u
        return np.stack([red, (first - kr * red - kb * blue) / (1 - kr - kb), blue], axis=-1).astype(np.float32)

    def changed(self, top: int, left: int, change: np.ndarray, opacity: np.ndarray) -> Plate:
        """The plate with RGB `change` fp32 (h,w,3) added from row `top` and column `left` on.

        A sample of which no pixel changes stays bit-equal; a chroma sample changes only if all of its pixels do.
        opacity: (h,w), 1 where nothing of the plate is left: chroma there is the mean of the new colour, without a
        rest of the old one that interpolation would leave.
        """
        planes = [plane.copy() for plane in self.planes]
        limit = 2**self.format.bits - 1
        area = slice(top, top + change.shape[0]), slice(left, left + change.shape[1])
        _, white, difference = self.format.scales
        if self.format.is_rgb:
            for plane, channel in zip(planes, (1, 2, 0), strict=False):
                _add(plane[area], change[..., channel] * white, limit)
            return replace(self, planes=tuple(planes))
        kr, kb = RED_BLUE[self.format.matrix]
        luma = change @ np.array([kr, 1 - kr - kb, kb], np.float32)
        _add(planes[0][area], luma * white, limit)
        colours = ((change[..., 2] - luma) / (2 - 2 * kb), (change[..., 0] - luma) / (2 - 2 * kr))
        whole = tuple(_on_cells(part, top, left, self.format.cell) for part in (*colours, opacity, _touched(change)))
        for plane, values in zip(planes[1:3], whole[:2], strict=True):
            _add_chroma(plane, values * difference, whole[2], whole[3], self.format, (top, left), self.size)
        return replace(self, planes=tuple(planes))

    def placed(self, top: int, left: int, size: tuple[int, int]) -> Plate:
        """The plate in a picture of `size`, its first pixel at row `top` and column `left`: what lies outside is cut
        off, what is added is black and opaque. top, left and size are multiples of the format's cell."""
        if (top, left) == (0, 0) and size == self.size:
            return self
        rows, columns = self.format.cell
        empty = [round(self.format.scales[0]), *(2 ** (self.format.bits - 1),) * 2, 2**self.format.bits - 1]
        levels = [0, 0, 0, empty[3]] if self.format.is_rgb else empty
        planes = []
        for number, plane in enumerate(self.planes):
            r, c = (rows, columns) if number in (1, 2) else (1, 1)
            target = np.full((-(-size[0] // r), -(-size[1] // c)), levels[number], plane.dtype)
            y, x = top // r, left // c
            inner = plane[max(-y, 0) : target.shape[0] - y, max(-x, 0) : target.shape[1] - x]
            target[max(y, 0) : max(y, 0) + inner.shape[0], max(x, 0) : max(x, 0) + inner.shape[1]] = inner
            planes.append(target)
        return replace(self, planes=tuple(planes))

    def frame(self) -> av.VideoFrame:
        """The plate as a frame with its tags."""
        height, width = self.size
        frame = av.VideoFrame(width, height, self.format.name)
        for plane, values in zip(frame.planes, self.planes, strict=True):
            rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
            rows[:, : plane.width] = values
            plane.update(rows.tobytes())
        frame.colorspace = self.format.matrix
        frame.color_range = int(ColorRange.JPEG if self.format.full else ColorRange.MPEG)
        return frame


def _format_of(frame: av.VideoFrame, name: str) -> PlateFormat:
    """The format of a planar frame. name: of the pixel format that the decoder returned."""
    is_rgb = frame.format.is_rgb
    matrix = frame.colorspace
    if is_rgb or int(matrix) in (0, 2, 3):
        matrix = RGB if is_rgb else default_matrix(frame)
    full = is_rgb or frame.color_range == ColorRange.JPEG or name.startswith("yuvj")
    bits = frame.format.components[0].bits
    return PlateFormat(
        frame.format.name.replace("yuvj", "yuv"),
        *(bits, int(matrix), full, int(frame.color_primaries), int(frame.color_trc)),
    )


def _enlarged(chroma: np.ndarray, cell: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Chroma at every pixel, linear between its samples: on every second column, between two rows (MPEG-2, H.264)."""
    if cell[1] == 2:
        after = np.concatenate([chroma[:, 1:], chroma[:, -1:]], axis=1)
        chroma = np.stack([chroma, (chroma + after) / 2], axis=-1).reshape(len(chroma), -1)
    if cell[0] == 2:
        above, below = np.concatenate([chroma[:1], chroma[:-1]]), np.concatenate([chroma[1:], chroma[-1:]])
        chroma = np.stack([0.75 * chroma + 0.25 * above, 0.75 * chroma + 0.25 * below], 1).reshape(-1, chroma.shape[1])
    return chroma[: size[0], : size[1]]


def _add(levels: np.ndarray, change: np.ndarray, limit: int) -> None:
    """Add a change to a view of a plane, rounded."""
    levels[...] = np.where(change == 0, levels, np.clip(np.rint(levels + change), 0, limit))


def _touched(change: np.ndarray) -> np.ndarray:
    return (change != 0).any(axis=-1).astype(np.float32)


def _on_cells(values: np.ndarray, top: int, left: int, cell: tuple[int, int]) -> np.ndarray:
    """Values (h,w) extended by zeros to whole chroma cells of the picture: (h,w) of multiples of the cell."""
    rows, columns = cell
    height, width = values.shape
    before = top % rows, left % columns
    after = -(top + height) % rows, -(left + width) % columns
    return np.pad(values, ((before[0], after[0]), (before[1], after[1])))


def _means(values: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    """Means of cells (h,w) -> (h / rows, w / columns)."""
    height, width = values.shape
    result: np.ndarray = values.reshape(height // cell[0], cell[0], width // cell[1], cell[1]).mean(axis=(1, 3))
    return result


def _add_chroma(
    plane: np.ndarray,
    change: np.ndarray,
    opacity: np.ndarray,
    touched: np.ndarray,
    layout: PlateFormat,
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Add the change of all pixels (h,w) of whole cells to a chroma plane. corner: (top, left) of the changed part."""
    rows, columns = layout.cell
    y, x = corner[0] // rows, corner[1] // columns
    height, width = touched.shape[0] // rows, touched.shape[1] // columns
    inside = np.zeros(touched.shape, np.float32)  # pixels that the picture has: sizes can be odd
    inside[: size[0] - y * rows, : size[1] - x * columns] = 1
    share = np.maximum(_means(inside, layout.cell), 1e-6)
    whole = _means(touched, layout.cell) >= share - 1e-6
    target = plane[y : y + height, x : x + width]
    around = plane[max(y - 2, 0) : y + height + 2, max(x - 2, 0) : x + width + 2].astype(np.float32)
    above, before = min(y, 2) * rows, min(x, 2) * columns
    shown = _enlarged(around, layout.cell, (around.shape[0] * rows, around.shape[1] * columns))
    shown = shown[above : above + touched.shape[0], before : before + touched.shape[1]]
    smooth = _means(shown * inside, layout.cell) / share - target
    total = _means(change * inside, layout.cell) / share + _means(opacity * inside, layout.cell) / share * smooth
    target[...] = np.where(whole, np.clip(np.rint(target + total), 0, 2**layout.bits - 1), target)

"""Turn and mirror pictures as the display matrix of their file says, and make their pixels square."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type

MAX_ASPECT = 4  # of a pixel, in either direction; real formats lie between 1/2 and 2
ROUNDED_ASPECT = 0.01  # pixels this close to a square stay as they are: encoders round sizes to whole pixels

Matrix = tuple[int, int, int, int]  # a, b, c, d: pixel (x, y) is shown at (a x + c y, b x + d y); each -1, 0 or 1
UPRIGHT: Matrix = (1, 0, 0, 1)


def display_matrix(frame: av.VideoFrame) -> Matrix:
    """Turn and mirroring of a frame. ValueError for an angle that is not a multiple of 90 degrees.

    A player applies the 3x3 matrix of the file's header; its scale and offset do not change the pixels.
    """
    data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]  # PyAV's stub knows text keys only
    if data is None:
        return UPRIGHT
    values = np.frombuffer(bytes(data), np.int32)
    a, b, c, d = (int(values[i]) for i in (0, 1, 3, 4))
    if a * d == b * c:  # a matrix that shows nothing
        return UPRIGHT
    if min(abs(a), abs(d)) > 100 * max(abs(b), abs(c)):
        return _sign(a), 0, 0, _sign(d)
    if min(abs(b), abs(c)) > 100 * max(abs(a), abs(d)):
        return 0, _sign(b), _sign(c), 0
    raise ValueError(f"its header turns the picture by {-frame.rotation} degrees, which is not a multiple of 90")


def _sign(value: int) -> int:
    return 1 if value > 0 else -1


def turn(picture: np.ndarray, matrix: Matrix) -> np.ndarray:
    """The picture (H,W,...) turned and mirrored by `display_matrix`."""
    a, b, c, d = matrix
    rows, columns = (d, a) if a else (b, c)  # directions of the two axes of the result
    turned = picture if a else picture.swapaxes(0, 1)
    return np.ascontiguousarray(turned[::rows, ::columns])


def shown_size(height: int, width: int, aspect: Fraction, matrix: Matrix) -> tuple[int, int]:
    """(height, width) of a picture of square pixels, turned by `matrix`."""
    shown = square_width(width, aspect)
    return (height, shown) if matrix[0] else (shown, height)


def square_width(width: int, aspect: Fraction) -> int:
    """Width in square pixels. As in players, the height stays; aspect: width of a stored pixel over its height."""
    return width if abs(aspect - 1) < ROUNDED_ASPECT else max(round(width * aspect), 1)


def square_pixels(picture: np.ndarray, aspect: Fraction) -> np.ndarray:
    """The picture (H,W,3) resampled to square pixels."""
    height, width = picture.shape[:2]
    size = (square_width(width, aspect), height)
    if size[0] == width:
        return picture
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if size[0] < width else cv2.INTER_CUBIC)


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width of a pixel over its height; 1 if the file does not say. ValueError for an impossible one."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if aspect and not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        raise ValueError(f"its header says that pixels are {aspect} times as wide as high")
    return aspect or Fraction(1)

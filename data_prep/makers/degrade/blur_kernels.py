"""Point spread functions: square fp32 kernels of odd size that sum to 1."""

from __future__ import annotations

import numpy as np


def disk(radius: float) -> np.ndarray:
    """A disk. Pixels on the rim are weighted by how far they lie inside."""
    x, y = _grid(radius + 0.5)
    return _normalised(np.clip(radius + 0.5 - np.hypot(x, y), 0, 1))


def aperture(radius: float, blades: int, turn: float, ring: float) -> np.ndarray:
    """The image of a point through an aperture: a disk (blades=0), or a regular polygon of the disk's area.

    turn: rotation of the polygon in radians. ring, in [0, 1), moves light from the centre to the rim (over-corrected
    spherical aberration) with weights 1 - ring + 2 ring (r / radius)^2, which preserve the sum over a disk.
    """
    if not blades:
        apothem, reach = radius, radius
    else:
        apothem = radius * np.sqrt(np.pi / (blades * np.tan(np.pi / blades)))
        reach = apothem / np.cos(np.pi / blades)
    x, y = _grid(reach + 0.5)
    distance = np.hypot(x, y)
    across = distance
    if blades:
        sector = 2 * np.pi / blades
        across = distance * np.cos((np.arctan2(y, x) - turn) % sector - sector / 2)  # along the normal of the side
    weight = 1 - ring + 2 * ring * (distance / max(radius, 0.5)) ** 2
    return _normalised(np.clip(apothem + 0.5 - across, 0, 1) * weight)


def gaussian(sigma: float) -> np.ndarray:
    """A Gaussian, cut at three sigma."""
    x, y = _grid(3 * sigma)
    return _normalised(np.exp(-(x**2 + y**2) / (2 * sigma**2)))


def line(length: float, angle: float) -> np.ndarray:
    """A line one pixel wide through the centre, `angle` radians from the x axis, anti-aliased."""
    x, y = _grid(length / 2 + 0.5)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return _normalised(np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1))


def trace(points: np.ndarray) -> np.ndarray:
    """The trace of a moving point: `points` (S,2), x and y at equal time steps, each split over its four pixels."""
    half = int(np.ceil(np.abs(points).max())) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    corner = np.floor(points).astype(int)
    x, y = (points - corner).T
    for dy, dx, share in ((0, 0, (1 - x) * (1 - y)), (0, 1, x * (1 - y)), (1, 0, (1 - x) * y), (1, 1, x * y)):
        np.add.at(kernel, (corner[:, 1] + half + dy, corner[:, 0] + half + dx), share)
    return _normalised(kernel)


def _grid(reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (x, y) of a square kernel that extends `reach` pixels from its centre."""
    half = max(int(np.ceil(reach)), 0)
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    return x, y


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)

"""Endless synthetic video clips, made on the GPU from a bank of still photos.

A clip is a photo under a moving camera. Some clips have cut-outs of other photos passing in front, or a wavy warp; some
are flat drawings, or are shown as line art (their outlines). Positions are in output pixels from the clip's centre.
Each frame has P sample points, FOLD x FOLD per pixel, which are averaged against aliasing. A share of the clips samples
the photo at half its size (LEVELS).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.nano.filters import defocus, outlines

PANS = {"pan left": (-1, 0), "pan right": (1, 0), "pan up": (0, -1), "pan down": (0, 1)}
CAMERA = ("still", *PANS, "zoom in", "zoom out", "turn left", "turn right", "handheld", "drift")
CONTENT = ("photo", "objects", "waves", "shapes", "outlines")
SHARE = (0.35, 0.10, 0.04, 0.04)  # share of the clips with each CONTENT except the first, which gets the rest
LEVELS = (0.6, 0.4)  # share of the clips that use the photo at full and at half size
GREY, SOFT = 0.05, 0.06  # share of the clips that are grey, and that are out of focus
FOLD = 2  # sample points per pixel and axis


class Clips(NamedTuple):
    """B clips, and for each the index of its photo, CAMERA and CONTENT, and whether it is grey or out of focus."""

    video: Tensor  # (B, 3, F, H, W) in [-1, 1]
    photo: Tensor  # (B)
    camera: Tensor  # (B)
    content: Tensor  # (B)
    grey: Tensor  # (B) bool
    soft: Tensor  # (B) bool


class Path(NamedTuple):
    """A motion: frame coordinates @ matrix.T + shift are the coordinates in the photo or body."""

    matrix: Tensor  # (n, F, 2, 2)
    shift: Tensor  # (n, F, 2)


class MotionClips:
    """Call with a batch size to get Clips. bank: uint8 square photos (N, 3, S, S), S even. Deterministic by seed."""

    def __init__(self, bank: Tensor, frames: int = 9, size: int = 64, seed: int = 0):
        self.frames, self.size, self.device = frames, size, bank.device
        self.levels = [bank]
        for _ in LEVELS[1:]:
            parts = self.levels[-1].split(64)
            self.levels.append(torch.cat([F.avg_pool2d(part.float(), 2).round().byte() for part in parts]))
        self.random = torch.Generator(self.device).manual_seed(seed)
        axis = (torch.arange(size * FOLD, device=self.device) + 0.5) / FOLD - size / 2
        self.pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 2)  # (P, 2) x, y
        self.time = torch.arange(frames, device=self.device)[:, None]  # (F, 1)

    def __call__(self, batch: int) -> Clips:
        photo, camera = self.choose(len(self.levels[0]), batch), self.choose(len(CAMERA), batch)
        counts = [round(share * batch) for share in SHARE]
        content = torch.repeat_interleave(torch.tensor([batch - sum(counts), *counts])).to(self.device)
        ends = [batch - sum(counts[i:]) for i in range(len(counts) + 1)]  # clips of the same content are adjacent
        video = self.backgrounds(photo, camera, content)  # (B, 3, F, P) in [0, 1]
        for share in (1.0, 0.6, 0.3):  # share of the clips with objects that get a first, second and third object
            self.paste(video[ends[0] : ends[0] + round(share * counts[0])])
        video[ends[2] : ends[3]] = self.drawings(counts[2])
        grid = video.view(batch, 3, self.frames, self.size * FOLD, self.size * FOLD)
        grey, soft = self.uniform(batch) < GREY, self.uniform(batch) < SOFT
        video = self.grade(F.avg_pool3d(grid, (1, FOLD, FOLD)), grey, soft)  # (B, 3, F, H, W)
        video[ends[3] :] = outlines(video[ends[3] :])  # outlines of the graded clip
        order = torch.randperm(batch, generator=self.random, device=self.device)
        return Clips(*(value[order] for value in (video * 2 - 1, photo, camera, content, grey, soft)))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=self.random, device=self.device) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, device=self.device)

    def choose(self, choices: int, n: int) -> Tensor:
        return torch.randint(choices, (n,), generator=self.random, device=self.device)

    def ramp(self, n: int) -> Tensor:
        """(n, F) progress from -0.5 to 0.5, each with its own constant acceleration."""
        t = self.time[:, 0] / (self.frames - 1)
        return t + self.uniform(n, 1, low=-0.9, high=0.9) * (t * t - t) - 0.5

    def path(self, camera: Tensor, scale: Tensor) -> Path:
        """Paths of the CAMERA classes `camera` (n), with `scale` (n) source pixels per output pixel."""
        n, zero = len(camera), camera.new_zeros(1, 2, dtype=torch.float32)
        one_hot = F.one_hot(camera, len(CAMERA)).float()  # (n, K)
        is_class = dict(zip(CAMERA, one_hot.T[..., None], strict=True))  # name -> 0 or 1 (n, 1)
        pan = sum((is_class[name] * zero.new_tensor(direction) for name, direction in PANS.items()), zero)
        pan = pan + is_class["drift"] * F.normalize(self.normal(n, 2), dim=-1)  # (n, 2)
        speed = (0.2 - 1.4 * self.uniform(n, 1, low=1e-3).log()).clamp(max=6)  # pixels per frame, mostly slow
        shift = (pan * speed * (self.frames - 1))[:, None] * self.ramp(n)[..., None]  # (n, F, 2)
        shake = (1 - is_class["still"]) * 0.15 + 0.85 * is_class["handheld"]
        for period in (5.0, 11.0):
            phase = self.time * math.tau / period * self.uniform(n, 1, 2, low=0.7) + self.uniform(
                n, 1, 2, high=math.tau
            )
            shift = shift + shake[..., None] * self.uniform(n, 1, 2) * phase.sin()
        zoom = (is_class["zoom out"] - is_class["zoom in"]) * self.uniform(n, 1, low=0.1, high=0.6)
        turn = (is_class["turn right"] - is_class["turn left"]) * self.uniform(n, 1, low=0.08, high=0.5)
        zoom = zoom + is_class["drift"] * 0.15 * self.normal(n, 1)
        turn = turn + is_class["drift"] * 0.1 * self.normal(n, 1)
        angle = 0.07 * self.normal(n, 1) + turn * self.ramp(n)  # (n, F) radians
        factor = (scale[:, None] * (zoom * self.ramp(n)).exp())[..., None, None]
        shear = torch.eye(2, device=self.device) + 0.04 * self.normal(n, 1, 2, 2)
        rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
        return Path(factor * (rotation @ shear), shift * scale[:, None, None])

    def follow(self, path: Path, pixels: Tensor) -> Tensor:
        """Map sample points (P, 2) or (n, F, P, 2) along the path: points (n, F, P, 2) in the photo or body."""
        return pixels @ path.matrix.mT + path.shift[:, :, None]

    def sample_photo(self, level: int, photo: Tensor, points: Tensor) -> Tensor:
        """Colours (n, 3, F, P) in [0, 1] of photos (n) of a level at `points` (n, F, P, 2).

        Points are in pixels from a random centre, which keeps the view inside the photo if possible. Half of the photos
        are mirrored.
        """
        bank, n = self.levels[level], len(photo)
        half = bank.shape[-1] / 2
        margin = (half - points.abs().amax((1, 2))).clamp(min=0)  # (n, 2)
        points = points / half + (margin / half * self.uniform(n, 2, low=-1.0))[:, None, None]
        mirror = torch.stack([self.uniform(n).round() * 2 - 1, torch.ones_like(margin[:, 0])], -1)  # (n, 2)
        points = points * mirror[:, None, None]
        return F.grid_sample(bank[photo].float(), points, padding_mode="reflection", align_corners=False) / 255

    def backgrounds(self, photo: Tensor, camera: Tensor, content: Tensor) -> Tensor:
        """The photo of every clip under its camera motion (B, 3, F, P), rippled for the content "waves"."""
        video = torch.empty(len(photo), 3, self.frames, len(self.pixels), device=self.device)
        order = torch.randperm(len(photo), generator=self.random, device=self.device)
        ends = [round(len(photo) * sum(LEVELS[: i + 1])) for i in range(len(LEVELS) - 1)]
        for level, rows in enumerate(order.tensor_split(ends)):
            scale = self.uniform(len(rows), low=math.log(1.05), high=math.log(2.0)).exp()
            pixels = self.ripple(content[rows] == CONTENT.index("waves"))
            video[rows] = self.sample_photo(level, photo[rows], self.follow(self.path(camera[rows], scale), pixels))
        return video

    def ripple(self, waves: Tensor) -> Tensor:
        """Sample points (n, F, P, 2), displaced by a travelling sine where `waves` (n) is true."""
        n = len(waves)
        frequency = math.tau / self.uniform(n, 1, 1, 2, low=12, high=60)  # radians per pixel
        phase = self.uniform(n, 1, 1, 2, high=math.tau) + self.time[..., None] * self.uniform(n, 1, 1, 2, low=-1.0)
        offset = torch.sin(self.pixels.flip(-1) * frequency + phase)  # (n, F, P, 2)
        return self.pixels + offset * waves[:, None, None, None] * self.uniform(n, 1, 1, 2, low=0.4, high=2.5)

    def wander(self, n: int, spread: float) -> Tensor:
        """Sample points (n, F, P, 2) in the coordinates of n drifting bodies, `spread` clip sizes apart."""
        path = self.path(torch.full((n,), CAMERA.index("drift"), device=self.device), torch.ones(n, device=self.device))
        return self.follow(path, self.pixels) + self.uniform(n, 1, 1, 2, low=-spread, high=spread) * self.size

    def paste(self, video: Tensor) -> None:
        """Paste a moving cut-out of another photo onto every clip of video (n, 3, F, P), in place."""
        n = len(video)
        points = self.wander(n, 0.4)
        colour = self.sample_photo(
            1, self.choose(len(self.levels[1]), n), points * self.uniform(n, 1, 1, 1, low=1.0, high=2.0)
        )
        video.lerp_(colour, self.body(points)[:, None])

    def body(self, points: Tensor) -> Tensor:
        """Opacity (n, F, P) of random bodies around the origin of `points` (n, F, P, 2): wavy, elliptic or polygons."""
        n = len(points)
        x, y = (points * torch.exp(0.3 * self.normal(n, 1, 1, 2))).unbind(-1)
        angle, distance = torch.atan2(y, x), torch.hypot(x, y)
        radius = torch.ones_like(angle)
        for k in range(2, 6):
            wave = self.uniform(n, 1, 1, high=0.5 / k) * (self.uniform(n, 1, 1) < 0.6)
            radius = radius + wave * torch.cos(k * angle + self.uniform(n, 1, 1, high=math.tau))
        corner = math.tau / (3 + self.choose(4, n)).view(n, 1, 1)
        polygon = torch.cos(corner / 2) / torch.cos(torch.remainder(angle, corner) - corner / 2)
        radius = torch.where(self.uniform(n, 1, 1) < 0.35, polygon, radius) * self.uniform(n, 1, 1, low=6, high=22)
        return torch.sigmoid((radius - distance) / self.uniform(n, 1, 1, low=0.15, high=0.6))

    def drawings(self, n: int) -> Tensor:
        """Drawings (n, 3, F, P): flat bodies, long lines, a row of text-like strokes (1-3 px) on a flat background."""
        colour = self.uniform(n, 20, 3, 1, 1).round() * 0.8 + self.uniform(n, 20, 3, 1, 1, high=0.2)
        video = colour[:, 0].expand(-1, -1, self.frames, len(self.pixels))
        page = self.wander(n, 0.3)  # the strokes of the text move together
        for i in range(1, 20):
            text = 4 <= i < 12
            points = page + page.new_tensor([7.0 * (i - 8), 0.0]) if text else self.wander(n, 0.5)
            alpha = self.body(points) if i < 4 else self.stroke(points, 4.0 if text else 30.0)
            video = torch.lerp(video, colour[:, i], alpha[:, None])
        return video

    def stroke(self, points: Tensor, reach: float) -> Tensor:
        """Opacity (n, F, P) of a line of 1-3 px with random ends up to `reach` px from its middle."""
        end = self.uniform(len(points), 1, 1, 2, low=-reach, high=reach)
        along = ((points * end).sum(-1) / end.square().sum(-1).clamp(min=1)).clamp(-1, 1)
        distance = (points - along[..., None] * end).norm(dim=-1)
        return ((self.uniform(len(points), 1, 1, low=0.5, high=1.5) - distance) * FOLD + 0.5).clamp(0, 1)

    def grade(self, video: Tensor, grey: Tensor, soft: Tensor) -> Tensor:
        """Modest changes of sharpness, colour and contrast; `soft` clips are defocused, `grey` ones colourless."""
        n, fuzzy = len(video), torch.nonzero(soft)[:, 0]
        mean = F.avg_pool3d(video, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
        video = video + self.uniform(n, 1, 1, 1, 1, high=0.8) * (video - mean)
        video[fuzzy] = defocus(video[fuzzy], self.uniform(len(fuzzy), low=1.0, high=3.5))
        luma = (video * video.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)).sum(1, keepdim=True)
        chroma = self.uniform(n, 1, 1, 1, 1, low=0.7, high=1.3)
        coloured = torch.lerp(luma, video, chroma) * self.uniform(n, 3, 1, 1, 1, low=0.95, high=1.05)
        video = torch.where(grey.view(n, 1, 1, 1, 1), luma, coloured)
        video = (video * self.uniform(n, 1, 1, 1, 1, low=0.8, high=1.2)).clamp(0, 1)
        return video ** self.uniform(n, 1, 1, 1, 1, low=0.8, high=1.25)

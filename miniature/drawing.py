"""The textures of the small world, drawn once from signed distances: sprites of characters, backdrops of places.

All are [4, h, w], red, green, blue premultiplied by coverage, and coverage.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

SPRITE = 128
FRAME = 256
_OVERSAMPLING = 2

PAINT = {
    "red": (0.88, 0.12, 0.12),
    "orange": (1.0, 0.5, 0.05),
    "yellow": (1.0, 0.9, 0.15),
    "green": (0.1, 0.7, 0.2),
    "blue": (0.15, 0.3, 0.95),
    "purple": (0.5, 0.15, 0.7),
    "pink": (1.0, 0.5, 0.75),
    "white": (0.97, 0.97, 0.97),
}
_INK = (0.08, 0.07, 0.1)


class _Canvas:
    """Paints shapes, given as signed distances (negative inside), one over the other."""

    def __init__(self, height: int, width: int, left: float, top: float, unit: float):
        self.shape = (height * _OVERSAMPLING, width * _OVERSAMPLING)
        y = (torch.arange(self.shape[0]) + 0.5) / (unit * _OVERSAMPLING) + top
        x = (torch.arange(self.shape[1]) + 0.5) / (unit * _OVERSAMPLING) + left
        self.y, self.x = torch.meshgrid(y, x, indexing="ij")
        self.pixels = torch.zeros(4, *self.shape)

    def fill(self, distance: torch.Tensor, colour: tuple[float, float, float]) -> None:
        inside = (distance <= 0).float()
        paint = torch.tensor([*colour, 1.0])[:, None, None] * inside
        self.pixels = self.pixels * (1 - inside) + paint

    def outlined(self, distance: torch.Tensor, colour: tuple[float, float, float], line: float) -> None:
        self.fill(distance, _INK)
        self.fill(distance + line, colour)

    def texture(self) -> torch.Tensor:
        return F.avg_pool2d(self.pixels[None], _OVERSAMPLING)[0]

    def disc(self, cx: float, cy: float, radius: float) -> torch.Tensor:
        return torch.hypot(self.x - cx, self.y - cy) - radius

    def oval(self, cx: float, cy: float, rx: float, ry: float) -> torch.Tensor:
        return (torch.hypot((self.x - cx) / rx, (self.y - cy) / ry) - 1) * min(rx, ry)

    def box(self, left: float, top: float, right: float, bottom: float) -> torch.Tensor:
        return torch.maximum(
            (self.x - (left + right) / 2).abs() - (right - left) / 2,
            (self.y - (top + bottom) / 2).abs() - (bottom - top) / 2,
        )

    def polygon(self, points: list[tuple[float, float]]) -> torch.Tensor:
        """Signed distance to a simple polygon (even-odd rule)."""
        nearest = torch.full(self.shape, math.inf)
        inside = torch.zeros(self.shape, dtype=torch.bool)
        for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
            ex, ey = bx - ax, by - ay
            along = (((self.x - ax) * ex + (self.y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
            nearest = torch.minimum(nearest, torch.hypot(self.x - ax - along * ex, self.y - ay - along * ey))
            if ay != by:
                crosses = (ay > self.y) != (by > self.y)
                inside ^= crosses & (self.x < ex * (self.y - ay) / ey + ax)
        return torch.where(inside, -nearest, nearest)


def _body(canvas: _Canvas, body: str) -> torch.Tensor:
    """Bodies fill the lower 70 % of the sprite: feet at y = 1, head at about y = -0.4."""
    if body == "ball":
        return canvas.disc(0, 0.3, 0.7)
    if body == "box":
        return canvas.box(-0.62, -0.3, 0.62, 1.0)
    if body == "cone":
        return canvas.polygon([(-0.25, -0.38), (0.25, -0.38), (0.78, 1.0), (-0.78, 1.0)])
    points = []
    for corner in range(10):
        radius = 0.8 if corner % 2 == 0 else 0.42
        angle = math.pi * corner / 5 - math.pi / 2
        points.append((radius * math.sin(angle + math.pi / 2), 0.35 - radius * math.cos(angle + math.pi / 2)))
    return canvas.polygon(points)


def _headgear(canvas: _Canvas, headgear: str) -> None:
    line = 0.05
    if headgear == "top hat":
        canvas.fill(canvas.box(-0.36, -1.0, 0.36, -0.3), _INK)
        canvas.fill(canvas.box(-0.6, -0.42, 0.6, -0.28), _INK)
        canvas.fill(canvas.box(-0.36, -0.58, 0.36, -0.44), (0.75, 0.1, 0.15))
    elif headgear == "crown":
        spikes = [(-0.5, -0.28), (-0.58, -0.9), (-0.26, -0.6), (0, -0.98), (0.26, -0.6), (0.58, -0.9), (0.5, -0.28)]
        canvas.outlined(canvas.polygon(spikes), (1.0, 0.8, 0.1), line)
    elif headgear == "beanie":
        dome = torch.maximum(canvas.disc(0, -0.3, 0.52), canvas.y + 0.3)
        canvas.outlined(dome, (0.1, 0.7, 0.75), line)
        canvas.outlined(canvas.box(-0.58, -0.4, 0.58, -0.24), (0.95, 0.95, 0.95), line)
        canvas.outlined(canvas.disc(0, -0.84, 0.15), (0.95, 0.95, 0.95), line)
    else:
        canvas.outlined(canvas.polygon([(-0.4, -0.28), (0, -1.0), (0.4, -0.28)]), (0.9, 0.2, 0.65), line)
        canvas.fill(canvas.box(-0.24, -0.56, 0.24, -0.46), (0.95, 0.95, 0.3))


@lru_cache(maxsize=256)
def sprite(colour: str, body: str, headgear: str) -> torch.Tensor:
    """A character facing right, 128 x 128, in -1..1 with feet at y = 1."""
    canvas = _Canvas(SPRITE, SPRITE, -1, -1, SPRITE / 2)
    canvas.outlined(_body(canvas, body), PAINT[colour], 0.07)
    _headgear(canvas, headgear)
    for eye in (-0.08, 0.32):
        canvas.fill(canvas.oval(eye, 0.2, 0.14, 0.19), (1, 1, 1))
        canvas.fill(canvas.oval(eye + 0.05, 0.22, 0.075, 0.11), _INK)
    return canvas.texture()


def _tree(canvas: _Canvas, x: float, ground: float, height: float) -> None:
    canvas.fill(canvas.box(x - 0.02, ground - height * 0.5, x + 0.02, ground), (0.35, 0.2, 0.1))
    canvas.fill(canvas.disc(x, ground - height * 0.68, height * 0.36), (0.08, 0.36, 0.14))


def _tower(canvas: _Canvas, left: float, right: float, top: float, colour: tuple[float, float, float]) -> None:
    canvas.fill(canvas.box(left, top, right, 0.82), colour)
    columns = max(int((right - left) / 0.08), 1)
    for row in range(int((0.78 - top) / 0.1)):
        for column in range(columns):
            x = left + (column + 0.5) * (right - left) / columns
            canvas.fill(
                canvas.box(x - 0.018, top + 0.04 + row * 0.1, x + 0.018, top + 0.09 + row * 0.1), (0.95, 0.85, 0.5)
            )


def _cactus(canvas: _Canvas, x: float, ground: float, height: float) -> None:
    green = (0.2, 0.45, 0.2)
    canvas.fill(canvas.box(x - 0.025, ground - height, x + 0.025, ground), green)
    canvas.fill(canvas.box(x - 0.09, ground - height * 0.6, x, ground - height * 0.5), green)
    canvas.fill(canvas.box(x - 0.1, ground - height * 0.85, x - 0.06, ground - height * 0.5), green)
    canvas.fill(canvas.box(x, ground - height * 0.45, x + 0.09, ground - height * 0.35), green)
    canvas.fill(canvas.box(x + 0.06, ground - height * 0.7, x + 0.1, ground - height * 0.35), green)


def _layers(place: str, far: _Canvas, near: _Canvas) -> None:
    """Far scenery is opaque (sky and what stands before it), near scenery is the ground and what grows on it."""
    everywhere = torch.full(far.shape, -1.0)
    # Every motif is drawn at x and again one period (2 frame widths) on, so that the seam is invisible.
    periods = (0.0, 2.0)
    if place == "beach":
        far.fill(everywhere, (0.55, 0.82, 0.98))
        far.fill(far.box(-1, 0.5, 4, 0.8), (0.1, 0.5, 0.75))
        for p in periods:
            far.fill(far.disc(0.78 + p, 0.18, 0.11), (1.0, 0.95, 0.55))
            near.fill(near.box(0.12 + p, 0.3, 0.15 + p, 0.74), (0.45, 0.3, 0.15))
            for dx in (-0.09, 0.09):
                near.fill(near.oval(0.135 + dx + p, 0.29, 0.11, 0.035), (0.15, 0.55, 0.2))
            near.fill(near.disc(1.4 + p, 0.74, 0.07), (0.9, 0.3, 0.3))
        near.fill(near.box(-1, 0.74, 4, 2), (0.95, 0.85, 0.55))
    elif place == "forest":
        far.fill(everywhere, (0.7, 0.88, 0.75))
        far.fill(far.box(-1, 0.5, 4, 1), (0.2, 0.5, 0.28))
        for p in periods:
            for x, height in ((0.1, 0.5), (0.45, 0.62), (0.8, 0.48), (1.2, 0.6), (1.62, 0.52), (1.9, 0.6)):
                far.fill(far.disc(x + p, 0.52, height * 0.26), (0.2, 0.5, 0.28))
            for x, height in ((0.06, 0.66), (0.95, 0.72), (1.5, 0.62)):
                _tree(near, x + p, 0.78, height)
        near.fill(near.box(-1, 0.76, 4, 2), (0.3, 0.55, 0.18))
    elif place == "city":
        far.fill(everywhere, (0.78, 0.8, 0.86))
        for p in periods:
            for left, right, top, shade in (
                (0.02, 0.3, 0.3, 0.42),
                (0.36, 0.6, 0.14, 0.34),
                (0.7, 0.98, 0.36, 0.48),
                (1.05, 1.3, 0.2, 0.38),
                (1.4, 1.7, 0.4, 0.44),
                (1.75, 1.97, 0.24, 0.36),
            ):
                _tower(far, left + p, right + p, top, (shade, shade, shade + 0.08))
            near.fill(near.box(1.2 + p, 0.42, 1.22 + p, 0.78), (0.2, 0.2, 0.22))
            near.fill(near.disc(1.21 + p, 0.42, 0.04), (1.0, 0.9, 0.5))
            for x in (0.1, 0.6, 1.1, 1.6):
                near.fill(near.box(x + p, 0.93, x + 0.2 + p, 0.96), (0.9, 0.9, 0.85))
        behind = near.pixels
        near.pixels = torch.zeros_like(behind)
        near.fill(near.box(-1, 0.78, 4, 2), (0.3, 0.3, 0.33))
        near.pixels = near.pixels * (1 - behind[3:]) + behind
    elif place == "desert":
        far.fill(everywhere, (0.98, 0.72, 0.42))
        for p in periods:
            far.fill(far.disc(0.3 + p, 0.24, 0.1), (1.0, 0.95, 0.8))
            for x in (0.6, 1.5):
                far.fill(far.oval(x + p, 0.82, 0.5, 0.24), (0.85, 0.5, 0.25))
            for x, height in ((0.9, 0.4), (1.55, 0.32)):
                _cactus(near, x + p, 0.78, height)
        near.fill(near.box(-1, 0.76, 4, 2), (0.88, 0.6, 0.3))
    elif place == "mountains":
        far.fill(everywhere, (0.62, 0.74, 0.92))
        for p in (-2.0, 0.0, 2.0):
            for x, top, half in ((0.3, 0.12, 0.45), (1.0, 0.25, 0.42), (1.6, 0.08, 0.5)):
                far.fill(far.polygon([(x + p - half, 0.82), (x + p, top), (x + p + half, 0.82)]), (0.42, 0.45, 0.55))
                cap = 0.3
                far.fill(
                    far.polygon(
                        [
                            (x + p - half * cap, top + (0.82 - top) * cap),
                            (x + p, top),
                            (x + p + half * cap, top + (0.82 - top) * cap),
                        ]
                    ),
                    (0.96, 0.97, 1.0),
                )
        for p in periods:
            near.fill(near.polygon([(0.86 + p, 0.78), (0.94 + p, 0.4), (1.02 + p, 0.78)]), (0.12, 0.35, 0.3))
            near.fill(near.polygon([(1.4 + p, 0.78), (1.5 + p, 0.46), (1.6 + p, 0.78)]), (0.12, 0.35, 0.3))
        near.fill(near.box(-1, 0.76, 4, 2), (0.92, 0.94, 0.98))
    else:
        far.fill(everywhere, (0.05, 0.05, 0.18))
        for p in periods:
            far.fill(far.disc(0.74 + p, 0.2, 0.12), (0.95, 0.95, 0.82))
            far.fill(far.disc(0.69 + p, 0.17, 0.1), (0.05, 0.05, 0.18))
            for x, y in (
                (0.1, 0.12),
                (0.3, 0.3),
                (0.5, 0.1),
                (0.95, 0.4),
                (1.2, 0.14),
                (1.4, 0.34),
                (1.7, 0.1),
                (1.9, 0.28),
            ):
                far.fill(far.disc(x + p, y, 0.016), (1, 1, 0.9))
            for x in (0.1, 1.3):
                near.fill(
                    near.polygon(
                        [
                            (x + p - 0.02, 0.78),
                            (x + p - 0.02, 0.6),
                            (x + p + 0.1, 0.5),
                            (x + p + 0.22, 0.6),
                            (x + p + 0.22, 0.78),
                        ]
                    ),
                    (0.2, 0.16, 0.3),
                )
                near.fill(near.box(x + p + 0.07, 0.62, x + p + 0.13, 0.7), (1.0, 0.85, 0.4))
        near.fill(near.box(-1, 0.76, 4, 2), (0.13, 0.2, 0.25))


@lru_cache(maxsize=16)
def backdrop(place: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Far and near scenery of a place, each [4, 256, 640]: one frame high, 2.5 wide, of which 2 are the period."""
    width = FRAME * 5 // 2
    far, near = _Canvas(FRAME, width, 0, 0, FRAME), _Canvas(FRAME, width, 0, 0, FRAME)
    _layers(place, far, near)
    return far.texture(), near.texture()

"""How things look: a silhouette for each class, and patterns and colours to fill it with."""

import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from dsolo_jax.datasets.miniature.noise import noise

# Distances are looked up on a grid over the square that reaches _REACH radii from the centre.
_CELLS = 160
_REACH = 1.2

_COLOURS = {
    "red": (228, 22, 36),
    "yellow": (252, 226, 18),
    "cyan": (20, 226, 232),
    "lime": (132, 250, 30),
    "white": (250, 250, 250),
    "pink": (255, 108, 188),
    "blue": (28, 44, 235),
    "black": (14, 14, 18),
    "purple": (126, 24, 176),
}


def _circle(radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], -1)


def _polar(radius: Callable[[np.ndarray], np.ndarray], points: int) -> np.ndarray:
    """The closed curve radius(angle); angle 0 is up."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return (radius(angles) * np.stack([np.sin(angles), -np.cos(angles)])).T


def _polygon(corners: str) -> np.ndarray:
    """Corners x y x y ... in tenths of the radius."""
    return np.array(re.findall(r"-?\d+", corners), float).reshape(-1, 2) / 10


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    across = 16 * np.sin(t) ** 3
    up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([across, -up - 2], -1) / 16.5


def _moon() -> np.ndarray:
    """The outer circle, and back along an inner one that is moved to the right."""
    outer, inner = np.linspace(0.26, 1.74, 40) * np.pi, np.linspace(1.62, 0.38, 32) * np.pi
    away = np.stack([np.cos(outer), np.sin(outer)], -1)
    back = np.stack([0.5 + 0.78 * np.cos(inner), 0.78 * np.sin(inner)], -1)
    return np.concatenate([away, back])


# Closed curves in units of the radius, x to the right and y down. Even-odd: a curve inside
# another one is a hole.
_OUTLINES: dict[str, list[np.ndarray]] = {
    "ball": [_circle(0.92)],
    "star": [_polar(lambda a: np.where(np.round(a / np.pi * 5) % 2, 0.45, 1.0), 10)],
    "ring": [_circle(0.98), _circle(0.42)],
    "cross": [_polygon("-3-10 3-10 3-3 10-3 10 3 3 3 3 10-3 10-3 3-10 3-10-3-3-3")],
    "moon": [_moon()],
    "heart": [_heart()],
    "arrow": [_polygon("10 0 1-9 1-4-10-4-10 4 1 4 1 9")],
    "house": [_polygon("0-10 4-6 4-9 7-9 7-3 9-1 9 9 3 9 3 3-3 3-3 9-9 9-9-1")],
    "flower": [_polar(lambda a: 0.58 + 0.42 * np.abs(np.cos(3 * a)), 96)],
}


@lru_cache
def _distances(thing: str) -> np.ndarray:
    """Signed distance to the outline in radii, negative inside: [_CELLS, _CELLS]."""
    at = np.linspace(-_REACH, _REACH, _CELLS)
    x, y = at[None, :, None], at[:, None, None]
    inside, nearest = np.zeros((_CELLS, _CELLS), bool), np.full((_CELLS, _CELLS), np.inf)
    for outline in _OUTLINES[thing]:
        (x0, y0), (x1, y1) = outline.T, np.roll(outline, -1, axis=0).T
        dx, dy = x1 - x0, y1 - y0
        # A ray to the right crosses the segment.
        level = np.where(dy == 0, 1, dy)
        crosses = ((y0 > y) != (y1 > y)) & (x < x0 + dx * (y - y0) / level)
        inside ^= crosses.sum(-1) % 2 == 1
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx**2 + dy**2), 0, 1)
        away = np.hypot(x - x0 - along * dx, y - y0 - along * dy)
        nearest = np.minimum(nearest, away.min(-1))
    return np.where(inside, -nearest, nearest).astype(np.float32)


def distance(thing: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of that thing, negative inside.

    Args:
        x, y: points in radii, x to the thing's right and y to its foot.
    """
    table = _distances(thing)
    scale = (_CELLS - 1) / (2 * _REACH)
    u = np.clip((x + _REACH) * scale, 0, _CELLS - 1.001)
    v = np.clip((y + _REACH) * scale, 0, _CELLS - 1.001)
    i, j = v.astype(np.intp), u.astype(np.intp)
    v, u = v - i, u - j
    at = i * _CELLS + j
    table = table.ravel()
    above = table[at] * (1 - u) + table[at + 1] * u
    below = table[at + _CELLS] * (1 - u) + table[at + _CELLS + 1] * u
    return above * (1 - v) + below * v


def _square_wave(phase: np.ndarray) -> np.ndarray:
    """1 where sin(2π phase) > 0, else 0, with soft edges."""
    return np.clip(0.5 + 2.5 * np.sin(2 * np.pi * phase), 0, 1)


def _triangle_wave(phase: np.ndarray) -> np.ndarray:
    return np.abs(2 * (phase % 1) - 1)


# Share of the second tone at points x, y, in pixels from the thing's centre.
_PATTERNS: dict[str, Callable[..., np.ndarray]] = {
    "striped": lambda rng, x, y: _square_wave((x + y) / 15),
    "dotted": lambda rng, x, y: np.clip(4.2 - np.hypot((x + 6) % 12 - 6, (y + 6) % 12 - 6), 0, 1),
    "checkered": lambda rng, x, y: np.abs(_square_wave(x / 14) - _square_wave(y / 14)),
    "plain": lambda rng, x, y: np.zeros_like(x),
    "speckled": lambda rng, x, y: np.clip(6 * noise(rng, "blob", *x.shape) - 3.6, 0, 1),
    "latticed": lambda rng, x, y: np.clip(
        2.2 - np.minimum(np.abs((x + 5) % 10 - 5), np.abs((y + 5) % 10 - 5)), 0, 1
    ),
    "zigzag": lambda rng, x, y: _square_wave((y + 8 * _triangle_wave(x / 14)) / 11),
    "halved": lambda rng, x, y: np.clip(0.5 + x, 0, 1),
    "swirled": lambda rng, x, y: _square_wave(np.hypot(x, y) / 13 + np.arctan2(y, x) / (2 * np.pi)),
}


# The outline of all things: one signal of shape, whatever a thing's look and what lies behind it.
OUTLINE = np.array((12, 12, 18), np.float32) / 255


def fill(
    rng: np.random.Generator, colour: str, pattern: str, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Colours of a filled plane, float32 [h, w, 3] in 0..1, at pixels x, y [h, w].

    Dark colours are patterned with light, light ones with dark.
    """
    first = np.array(_COLOURS[colour], np.float32) / 255
    ink = np.float32(0.0 if first @ (0.3, 0.6, 0.1) > 0.42 else 1.0)
    second = first + 0.72 * (ink - first)
    share = _PATTERNS[pattern](rng, x, y)[..., None]
    return first + share * (second - first)

"""Pictures of the miniature world with exact labels: a pure function of seed, split and index."""

import dataclasses
from typing import NamedTuple

import numpy as np

from dsolo_jax.datasets.miniature.noise import noise
from dsolo_jax.datasets.miniature.shapes import OUTLINE, distance, fill
from dsolo_jax.datasets.miniature.textures import paint
from dsolo_jax.datasets.miniature.words import (
    CLASSES,
    COLOURS,
    NUM_STUFF,
    PATTERNS,
    STUFF,
    THINGS,
    Look,
)
from dsolo_jax.utils.checks import choose

SPLITS = ("train", "tune", "validation")

# Share of the things outside train whose colour or pattern train never shows on them.
_UNSEEN = 1 / 3

_RADIUS = (19.0, 30.0)  # pixels, at any canvas
_OUTLINE = 2.6  # pixels
_TILT = 0.35  # radians either way
_PLACES = 32  # tried for each thing; one that finds none is left out
_OVERLAP = 0.35  # of the smaller radius, at most
_VISIBLE = 180  # pixels: stuff that shows fewer is not listed as an item

_Place = tuple[float, float, float]  # y and x of the centre, radius


@dataclasses.dataclass(frozen=True)
class Item:
    """What a scene holds: a class, and the look of a thing.

    seen: whether the split train may show this class in this colour and this pattern.
    """

    index: int
    colour: str | None = None
    pattern: str | None = None
    seen: bool = True


class Scene(NamedTuple):
    """A picture uint8 [H, W, 3], the class of each pixel uint8 [H, W], and what it shows."""

    image: np.ndarray
    labels: np.ndarray
    items: tuple[Item, ...]


def draw(
    seed: int,
    index: int,
    size: int | tuple[int, int] = 112,
    *,
    split: str = "train",
    things: tuple[int, int] = (1, 4),
    stuff: tuple[int, int] = (2, 3),
) -> Scene:
    """Draws one scene; the same arguments always give the same one.

    Args:
        seed: of the world; any number from 0.
        index: of the scene in its split; any number from 0.
        size: side of the canvas, or (height, width), in pixels. Things and textures keep their
            scale.
        split: "train", or "tune" or "validation", where a third of the things have a colour or a
            pattern that train never shows on them.
        things, stuff: least and largest number of things and regions. A thing that finds no place
            where it would hide little of the others is left out.

    Raises:
        ValueError: an unknown split.
    """
    number = SPLITS.index(choose("split of miniature", split, SPLITS))
    rng = np.random.default_rng((seed, number, index))
    height, width = (size, size) if isinstance(size, int) else size
    count = int(rng.integers(*stuff, endpoint=True))
    classes = rng.choice(NUM_STUFF, count, replace=False)
    regions = _regions(rng, count, height, width)
    image = paint(rng, [STUFF[i] for i in classes], regions)
    labels = classes.astype(np.uint8)[regions]
    items = [Item(int(i)) for i in classes]
    count = int(rng.integers(*things, endpoint=True))
    places: list[_Place] = []
    for i in rng.choice(len(THINGS), count, replace=False):
        place = _place(rng, places, height, width)
        if place is None:
            continue
        places.append(place)
        items.append(_item(rng, int(i), split))
        _put(rng, image, labels, items[-1], place)
    shown = np.bincount(labels.ravel(), minlength=len(CLASSES)) >= _VISIBLE
    seen = tuple(item for item in items if shown[item.index] or item.index >= NUM_STUFF)
    return Scene(_photograph(rng, image), labels, seen)


def _regions(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Number of the region of each pixel: the largest is cut along a wavy line, again and again."""
    regions = np.zeros((height, width), np.intp)
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    for new in range(1, count):
        largest = regions == np.bincount(regions.ravel()).argmax()
        angle = rng.uniform(0, 2 * np.pi)
        across = np.cos(angle) * x + np.sin(angle) * y + 40 * noise(rng, "cloud", height, width)
        cut = np.sort(across[largest][::7])
        regions[largest & (across > cut[int(rng.uniform(0.4, 0.6) * len(cut))])] = new
    return regions


def _place(rng: np.random.Generator, taken: list[_Place], height: int, width: int) -> _Place | None:
    """Centre (y, x) and radius of a thing among others; None if it would hide too much of them."""
    radius = min(rng.uniform(*_RADIUS), 0.52 * min(height, width))
    margin = 0.9 * radius
    ys, xs = (
        rng.uniform(min(margin, side / 2), max(side - margin, side / 2), _PLACES)
        for side in (height, width)
    )
    if not taken:
        return ys[0], xs[0], radius
    y, x, other = np.array(taken).T[..., None]
    gap = ((np.hypot(ys - y, xs - x) - radius - other) / np.minimum(radius, other)).min(0)
    best = int(np.argmax(np.minimum(gap, 0)))  # the first one that is free, or else the freest
    return (ys[best], xs[best], radius) if gap[best] > -_OVERLAP else None


def _item(rng: np.random.Generator, number: int, split: str) -> Item:
    unseen = split != "train" and rng.random() < _UNSEEN
    by_colour = rng.random() < 0.5
    colour = _word(rng, COLOURS, number, unseen and by_colour)
    pattern = _word(rng, PATTERNS, number, unseen and not by_colour)
    return Item(NUM_STUFF + number, colour, pattern, not unseen)


def _word(rng: np.random.Generator, look: Look, number: int, unseen: bool) -> str:
    """One that train never shows on the thing, or one that it may show; each as likely."""
    never = look.unseen[THINGS[number]]
    return str(rng.choice(never if unseen else [w for w in look.words if w not in never]))


def _put(
    rng: np.random.Generator, image: np.ndarray, labels: np.ndarray, item: Item, place: _Place
) -> None:
    """Paints a thing over image and labels; a pixel is its if the centre lies in the outline."""
    y, x, radius = place
    reach = 1.15 * radius + 1
    top, left = max(int(y - reach), 0), max(int(x - reach), 0)
    bottom, right = int(y + reach) + 1, int(x + reach) + 1
    part = np.s_[top:bottom, left:right]
    h, w = labels[part].shape
    down = np.arange(top, top + h, dtype=np.float32)[:, None] - y
    across = np.arange(left, left + w, dtype=np.float32)[None] - x
    tilt = rng.uniform(-_TILT, _TILT)
    right_ = np.cos(tilt) * across + np.sin(tilt) * down
    foot = np.cos(tilt) * down - np.sin(tilt) * across
    away = distance(CLASSES[item.index], right_ / radius, foot / radius) * radius
    assert item.colour is not None and item.pattern is not None, "things have a look"
    colours = fill(rng, item.colour, item.pattern, right_, foot)
    line = np.clip(0.5 + _OUTLINE + away, 0, 1)[..., None]
    colours += line * (OUTLINE - colours)
    image[part] += np.clip(0.5 - away, 0, 1)[..., None] * (colours - image[part])
    labels[part][away < 0] = item.index


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Light that falls unevenly, a gain, a cast of colour, and the sensor's noise."""
    height, width, _ = image.shape
    light = 0.82 + 0.3 * noise(rng, "cloud", height, width)
    cast = rng.uniform(0.85, 1.1) * rng.uniform(0.93, 1.07, 3)
    image = image * (255 * cast).astype(np.float32) * light[..., None]
    image += rng.uniform(1, 6) * rng.standard_normal(image.shape, np.float32)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)

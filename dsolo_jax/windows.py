"""Sliding windows: each goes the whole route by itself, and their scores are averaged.

The windows are mmsegmentation's (slide_inference): squares of `crop` pixels of the resized picture,
every `stride` pixels, the last of a row or column moved back to end at the border; a side shorter
than `crop` is taken whole. Each has its own patches for CLIP, its own square for the attention
source and its own presence, the cosine of its class token.

mmsegmentation averages at the pixels. Here it is at R x R points over the whole picture,

    R = ceil(r · short_side / crop),    point i at (i + 1/2) H / R and (j + 1/2) W / R,

each window bilinear there, and the usual upsampling follows. As many points are on the short side
as patches of windows beside each other; the difference is that of one more bilinear resampling.

The tiles of a large picture (ours) are windows of the picture itself, `tile` pixels wide and high,
every tile / 2 pixels, each brought to the networks' sizes by itself. There are r H / tile times
r W / tile points, and a tile counts for less towards its border, so that no border shows:

    weight of a tile, along each axis:  min(y - top, bottom - y)

Letters: r the side of the solver's grid, H W the size of what is cut, R or R S points, C classes.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsolo_jax.model import Config
from dsolo_jax.pictures import Picture, resized, view
from dsolo_jax.utils import memory


class Sum(NamedTuple):
    """Scores of the windows so far at the points, and what the windows weigh there together."""

    scores: Float[Array, "C R S"]
    weights: Float[Array, "R S"]


class Place(NamedTuple):
    """Where a window lies: H, W of what was cut, its top, left, height and width; the points over
    the whole; and whether it counts for less towards its border."""

    box: Int[np.ndarray, "6"]
    points: tuple[int, int]
    fades: bool


def cut(config: Config, picture: Picture) -> Iterator[tuple[Picture, Place]]:
    """Cuts a picture of `prepare` into its tiles or windows, one when it is asked for.

    Yields:
        Each as a picture of its own, and where it lies.

    Raises:
        ValueError: a picture that was made ready for a model without windows.
    """
    tile = picture.tile
    whole = picture.resized if tile is None else picture.pixels
    if whole is None:
        raise ValueError(
            "the picture was made ready for a model without windows; give pipeline.prepare the "
            f"config whose crop is {config.crop}"
        )
    height, width = whole.shape[:2]
    if tile is None:
        assert config.crop is not None and config.stride is not None
        crop, stride, points = config.crop, config.stride, (_points(config),) * 2
    else:
        crop, stride = tile, max(tile // 2, 1)
        points = tuple(-(-config.grid * side // tile) for side in (height, width))
    for top, bottom in spans(height, crop, stride):
        for left, right in spans(width, crop, stride):
            box = np.array([height, width, top, left, bottom - top, right - left], np.int32)
            window = np.ascontiguousarray(whole[top:bottom, left:right])
            ready = view(config, window, window) if tile is None else resized(config, window)
            yield ready, Place(box, points, fades=tile is not None)


def spans(side: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """Lists where windows begin and end on one side.

    >>> spans(336, 224, 112), spans(300, 224, 112), spans(200, 224, 112)
    ([(0, 224), (112, 336)], [(0, 224), (76, 300)], [(0, 200)])
    """
    number = max(side - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, side) for i in range(number)]
    return [(max(end - crop, 0), end) for end in ends]


def _points(config: Config) -> int:
    """R of the model's own windows."""
    assert config.crop is not None
    return -(-config.grid * config.short_side // config.crop)


def add(so_far: Sum | None, scores: Float[Array, "C r r"], place: Place) -> Sum:
    """Adds a window's scores to a picture's, on the device of its first window.

    Where the points would take more than half of the memory that is free, there are fewer of them.
    """
    if so_far is None:
        points = _fitting(place.points, len(scores))
        shapes = (len(scores), *points), points
        so_far = Sum(*(jnp.zeros(s, jnp.float32, device=scores.device) for s in shapes))
    # Even where they are there already: so that all come alike, to one program.
    so_far, scores = jax.device_put((so_far, scores), so_far.scores.device)
    return _add(so_far, scores, place.box, fades=place.fades)


def mean(found: Sum) -> Float[Array, "C R S"]:
    """Divides by what the windows weigh."""
    return found.scores / found.weights


# Of [C, R, S] at once: the sum, what is added to it, and the mean.
_SUMS = 3


def _fitting(points: tuple[int, int], num_classes: int) -> tuple[int, int]:
    free, needed = memory.available(), _SUMS * 4 * num_classes * math.prod(points)
    if free is None or 2 * needed <= free:
        return points
    scale = math.sqrt(free / (2 * needed))
    rows, columns = (max(1, math.floor(side * scale)) for side in points)
    return rows, columns


@partial(jax.jit, static_argnames="fades")
def _add(so_far: Sum, scores: Float[Array, "C r r"], box: Int[Array, "6"], fades: bool) -> Sum:
    (R, S), r = so_far.weights.shape, scores.shape[-1]
    H, W, top, left, height, width = box
    rows, down = _weights(H, top, height, R=R, r=r, fades=fades)
    columns, across = _weights(W, left, width, R=S, r=r, fades=fades)
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    placed = product("ip,cpq,jq->cij", rows, scores.astype(jnp.float32), columns)
    return Sum(so_far.scores + placed, so_far.weights + down[:, None] * across)


def _weights(
    side: Int[Array, ""],
    first: Int[Array, ""],
    length: Int[Array, ""],
    *,
    R: int,
    r: int,
    fades: bool,
) -> tuple[Float[Array, "R r"], Float[Array, "R"]]:
    """What each point of one axis takes from the window's patches, and the window's weight there.

    max(0, 1 - |s - p|),    s = (y - first) r / length - 1/2,    clamped to 0 .. r - 1
    """
    twice = (2 * jnp.arange(R, dtype=jnp.int32) + 1) * side - 2 * R * first  # 2 R (y - first)
    whole = 2 * R * length
    weight = ((twice >= 0) & (twice < whole)).astype(jnp.float32)
    s = twice.astype(jnp.float32) * r / whole.astype(jnp.float32) - 0.5
    s = jnp.clip(s, 0, r - 1)[:, None]
    weights = jnp.maximum(0, 1 - jnp.abs(s - jnp.arange(r, dtype=jnp.float32)))
    if fades:
        weight *= jnp.minimum(twice, whole - twice).astype(jnp.float32) / whole.astype(jnp.float32)
    return weights * weight[:, None], weight

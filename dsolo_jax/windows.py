"""Sliding windows: each goes the whole route by itself, and their scores are averaged.

The windows are mmsegmentation's (slide_inference): squares of `crop` pixels of the resized picture,
every `stride` pixels, the last of a row or column moved back to end at the border; a side shorter
than `crop` is taken whole. Each has its own patches for CLIP, its own square for the attention
source and its own presence, the cosine of its class token.

mmsegmentation averages at the pixels. Here it is at R x R points over the whole picture,

    R = ceil(r · short_side / crop),    point i at (i + 1/2) H / R and (j + 1/2) W / R,

each window bilinear there, and the usual upsampling follows. As many points are on the short side
as patches of windows beside each other; the difference is that of one more bilinear resampling.

Letters: r the side of the solver's grid, H W the size of the resized picture, C classes.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsolo_jax.model import Config
from dsolo_jax.pictures import Picture, view


class Sum(NamedTuple):
    """Scores of the windows so far at the points, and how many windows hold each."""

    scores: Float[Array, "C R R"]
    windows: Float[Array, "R R"]


def cut(config: Config, picture: Picture) -> Iterator[tuple[Picture, Int[np.ndarray, "6"]]]:
    """Cuts a picture of `prepare` into windows, one when it is asked for.

    Yields:
        Each as a picture of its own, and where it lies: H, W of the resized picture, the window's
        top, left, height and width.

    Raises:
        ValueError: a picture that was made ready for a model without windows.
    """
    resized = picture.resized
    assert config.crop is not None and config.stride is not None
    if resized is None:
        raise ValueError(
            "the picture was made ready for a model without windows; give pipeline.prepare the "
            f"config whose crop is {config.crop}"
        )
    height, width = resized.shape[:2]
    for top, bottom in spans(height, config.crop, config.stride):
        for left, right in spans(width, config.crop, config.stride):
            place = [height, width, top, left, bottom - top, right - left]
            window = np.ascontiguousarray(resized[top:bottom, left:right])
            yield view(config, window, window), np.array(place, np.int32)


def spans(side: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """Lists where windows begin and end on one side.

    >>> spans(336, 224, 112), spans(300, 224, 112), spans(200, 224, 112)
    ([(0, 224), (112, 336)], [(0, 224), (76, 300)], [(0, 200)])
    """
    number = max(side - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, side) for i in range(number)]
    return [(max(end - crop, 0), end) for end in ends]


def points(config: Config) -> int:
    """Gives R."""
    assert config.crop is not None
    return -(-config.grid * config.short_side // config.crop)


def add(
    so_far: Sum | None, scores: Float[Array, "C r r"], place: Int[np.ndarray, "6"], side: int
) -> Sum:
    """Adds a window's scores to a picture's, at R = `side`; on the device of its first window."""
    if so_far is None:
        shape = len(scores), side, side
        so_far = Sum(*(jnp.zeros(s, jnp.float32, device=scores.device) for s in (shape, shape[1:])))
    # Even where they are there already: so that all come alike, to one program.
    so_far, scores = jax.device_put((so_far, scores), so_far.scores.device)
    return _add(so_far, scores, place)


def mean(found: Sum) -> Float[Array, "C R R"]:
    """Divides by the number of windows."""
    return found.scores / found.windows


@jax.jit
def _add(so_far: Sum, scores: Float[Array, "C r r"], place: Int[Array, "6"]) -> Sum:
    R, r = len(so_far.windows), scores.shape[-1]
    H, W, top, left, height, width = place
    weigh = partial(_weights, R=R, r=r)
    (rows, down), (columns, across) = weigh(H, top, height), weigh(W, left, width)
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    placed = product("ip,cpq,jq->cij", rows, scores.astype(jnp.float32), columns)
    return Sum(so_far.scores + placed, so_far.windows + down[:, None] * across)


def _weights(
    side: Int[Array, ""], first: Int[Array, ""], length: Int[Array, ""], *, R: int, r: int
) -> tuple[Float[Array, "R r"], Float[Array, "R"]]:
    """What each point of one axis takes from the window's patches, and whether it lies in it.

    max(0, 1 - |s - p|),    s = (y - first) r / length - 1/2,    clamped to 0 .. r - 1
    """
    twice = (2 * jnp.arange(R, dtype=jnp.int32) + 1) * side - 2 * R * first  # 2 R (y - first)
    inside = ((twice >= 0) & (twice < 2 * R * length)).astype(jnp.float32)
    s = twice.astype(jnp.float32) * r / (2 * R * length).astype(jnp.float32) - 0.5
    s = jnp.clip(s, 0, r - 1)[:, None]
    weights = jnp.maximum(0, 1 - jnp.abs(s - jnp.arange(r, dtype=jnp.float32)))
    return weights * inside[:, None], inside

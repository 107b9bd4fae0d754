"""Pixel-adaptive refinement (PAMR): scores of pixels become means over neighbours of like colour.

The scores come bilinearly to every pixel; then each of `STEPS` steps replaces them by

    s[c, p] <- sum_q W[p, q] s[c, q]
    W[p, q]  = softmax over q of  mean_k -|x_k(p) - x_k(q)| / (1e-8 + 0.1 std_k(p))

over 16 taps q, the 8 neighbours of p at each dilation d (d pixels up, down, left, right and
diagonally; beyond the border the pixel at the border). x_k is channel k of the picture in 0..1, and
std_k(p) the unbiased deviation of x_k over p's 3 x 3 windows of all dilations, 18 values, p itself
once a dilation. W is the same for all classes and steps.

Source: Araslanov & Roth (CVPR 2020), as NACLIP and SCLIP run it (pamr.py of both): 10 steps,
dilations 8 and 16. They take x from the resized and normalised picture, brought back to the
original size; here it is the original itself. Normalising alone would change no more than the 1e-8.

A picture is taken tile by tile. A step reaches 16 pixels, all of them 160: so far a tile holds
pixels beyond those that are wanted of it, or 16 copies of those at the picture's border. Tiles are
flat, pixel (y, x) at (y - top) pitch + (x - left); a tap is then a shift, and no shape in a tile's
program depends on the picture. A tile's scores of all classes are held, C numbers a pixel, and 16
weights.

Letters: C scores, K scores after `decide`, h w the grid of patches, H W the picture, L pixels of a
tile, T taps.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped, UInt8

STEPS = 10
DILATIONS = (8, 16)

_BORDER = max(DILATIONS)
_HALO = STEPS * _BORDER
_TAPS = [
    (d * y, d * x) for d in DILATIONS for y, x in itertools.product((-1, 0, 1), repeat=2) if y or x
]

# Pixels of a tile, L: the first that holds the whole picture with its border, or else the last,
# which holds 704 x 704 wanted ones.
_LENGTHS = (*sorted(part << bits for bits in range(12, 19) for part in (2, 3)), 1 << 20)

# Classes that are refined together; the more, the rarer the weights are read.
_CLASSES = 8


class Tile(NamedTuple):
    """A rectangle of the picture, and the pixels that are wanted of it, from and to.

    In the picture's rows and columns; -16 .. -1 and H .. H + 15 or W .. W + 15 copy its border.
    """

    top: int
    bottom: int
    left: int
    right: int
    rows: tuple[int, int]
    columns: tuple[int, int]


def cut(size: tuple[int, int], lengths: Sequence[int] = _LENGTHS) -> tuple[int, list[Tile]]:
    """Cuts a picture of `size` (H, W) into tiles of at most L pixels; gives L and the tiles."""
    H, W = size
    length = next((L for L in lengths if (H + 2 * _BORDER) * (W + 2 * _BORDER) <= L), lengths[-1])

    def held(wanted: int, side: int) -> int:
        return side + 2 * _BORDER if wanted == side else min(wanted + 2 * _HALO, side + 2 * _BORDER)

    def widest(height: int) -> int:
        pitch = length // held(height, H)
        return W if pitch >= W + 2 * _BORDER else max(pitch - 2 * _HALO, 0)

    heights = {-(-H // n) for n in range(1, -(-H // _BORDER) + 1)}
    counts = {(-(-H // y) * -(-W // widest(y)), y) for y in heights if widest(y)}
    _, height = min(counts)
    width = -(-W // -(-W // widest(height)))
    return length, [
        Tile(
            *(max(y - _HALO, -_BORDER), min(min(y + height, H) + _HALO, H + _BORDER)),
            *(max(x - _HALO, -_BORDER), min(min(x + width, W) + _HALO, W + _BORDER)),
            (y, min(y + height, H)),
            (x, min(x + width, W)),
        )
        for y in range(0, H, height)
        for x in range(0, W, width)
    ]


def tiles(
    scores: Float[Array, "C h w"],
    pixels: UInt8[np.ndarray, "H W 3"],
    decide: Callable | None = None,
    given: tuple[Any, ...] = (),
    argmax: bool = False,
) -> Iterator[tuple[Shaped[Array, "K L"], Callable[[np.ndarray, np.ndarray], None]]]:
    """Starts the tiles of a picture one by one.

    Yields:
        The scores or labels of a tile's pixels, and a function that puts them, fetched, into those
        of the whole picture [K, H, W].
    """
    (H, W, _), (length, found) = pixels.shape, cut(pixels.shape[:2])
    for tile in found:
        rows = np.arange(tile.top, tile.bottom).clip(0, H - 1)
        columns = np.arange(tile.left, tile.right).clip(0, W - 1)
        shape = len(rows), len(columns)
        colours = np.zeros((length, 3), np.uint8)
        colours[: math.prod(shape)] = pixels[rows[:, None], columns].reshape(-1, 3)
        wanted = *tile.rows, *tile.columns
        place = np.array([H, W, tile.top, tile.left, len(columns), *wanted], np.int32)

        def put(whole, part, tile=tile, shape=shape):
            (y0, y1), (x0, x1) = tile.rows, tile.columns
            held = part[:, : math.prod(shape)].reshape(-1, *shape)
            wanted = slice(y0 - tile.top, y1 - tile.top), slice(x0 - tile.left, x1 - tile.left)
            whole[:, y0:y1, x0:x1] = held[:, *wanted]

        yield _program(scores, colours, place, decide, given, argmax), put


def whole(scores: Float[Array, "C h w"], guide: Shaped[Array, "H W 3"]) -> Float[Array, "C H W"]:
    """Refines a picture as one tile of its own size; pure, with derivatives in the scores."""
    H, W, _ = guide.shape
    held = jnp.pad(guide, ((_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0)), mode="edge")
    place = np.array([H, W, -_BORDER, -_BORDER, held.shape[1], 0, H, 0, W], np.int32)
    flat = _refine(scores, held.reshape(-1, 3), place)
    return flat.reshape(-1, *held.shape[:2])[:, _BORDER : _BORDER + H, _BORDER : _BORDER + W]


def _refine(
    scores: Float[Array, "C h w"],
    colours: Shaped[Array, "L 3"],
    place: Int[Array | np.ndarray, "9"],
    decide: Callable | None = None,
    given: tuple[Any, ...] = (),
    argmax: bool = False,
) -> Shaped[Array, "K L"]:
    """Scores or labels of a tile's wanted pixels, the others zeros. `place` is H, W, top, left, the
    pitch, and the rows and columns from and to which they are wanted."""
    (C, h, w), L = scores.shape, len(colours)
    H, W, top, left, pitch, y0, y1, x0, x1 = (jnp.asarray(number, jnp.int32) for number in place)
    down, across = jnp.divmod(jnp.arange(L, dtype=jnp.int32), pitch)
    y, x = jnp.clip(top + down, 0, H - 1), jnp.clip(left + across, 0, W - 1)
    # Of a pixel on the border: where the one that it copies lies.
    source = jnp.clip((y - top) * pitch + x - left, 0, L - 1)

    def shifted(values: Float[Array, "... L"]) -> Iterator[Float[Array, "... L"]]:
        # A tile has 33 rows or more, so half of L is more than 16 of them.
        around = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(L // 2, L // 2)])
        for dy, dx in _TAPS:
            yield lax.dynamic_slice_in_dim(around, L // 2 + dy * pitch + dx, L, axis=-1)

    unit = 255 if colours.dtype == jnp.uint8 else 1
    weights = _weights(colours.T.astype(jnp.float32) / unit, shifted)
    corners = [*itertools.product(_between(y, h, H), _between(x, w, W))]

    def refine(some: Float[Array, "c h w"]) -> Float[Array, "c L"]:
        low = some.reshape(len(some), h * w)
        start = sum(low[:, row * w + column] * (a * b) for (row, a), (column, b) in corners)

        def step(_, values):
            terms = (a * b for a, b in zip(weights, shifted(values), strict=True))
            # Kept apart: fused, the sum would be taken anew wherever it is looked up.
            return lax.optimization_barrier(functools.reduce(jnp.add, terms))[:, source]

        return lax.fori_loop(0, STEPS, step, start)

    blocks = -(-C // _CLASSES)
    each = -(-C // blocks)
    padded = jnp.pad(jnp.asarray(scores, jnp.float32), ((0, blocks * each - C), (0, 0), (0, 0)))
    refined = lax.map(refine, padded.reshape(blocks, each, h, w)).reshape(-1, L)[:C]
    decided = refined if decide is None else decide(refined, *given)
    if argmax:
        decided = jnp.argmax(decided, axis=0, keepdims=True).astype(jnp.int32)
    row, column = top + down, left + across
    wanted = (y0 <= row) & (row < y1) & (x0 <= column) & (column < x1)
    return jnp.where(wanted, decided.astype(jnp.int32 if argmax else jnp.float32), 0)


_program = jax.jit(_refine, static_argnames=("decide", "argmax"))


def _weights(
    x: Float[Array, "3 L"], shifted: Callable[[Array], Iterator[Array]]
) -> Float[Array, "T L"]:
    """W of each pixel's taps."""
    around = list(shifted(x))
    values = [x] * len(DILATIONS) + around
    mean = functools.reduce(jnp.add, values) / len(values)
    squares = functools.reduce(jnp.add, ((value - mean) ** 2 for value in values))
    scale = 1e-8 + 0.1 * jnp.sqrt(squares / (len(values) - 1))
    logits = [-jnp.mean(jnp.abs(x - tap) / scale, axis=0) for tap in around]
    return jax.nn.softmax(jnp.stack(logits), axis=0)


def _between(
    pixel: Int[Array, "L"], n: int, N: Int[Array, ""]
) -> list[tuple[Int[Array, "L"], Float[Array, "L"]]]:
    """The cells on either side of (pixel + 1/2) n/N - 1/2, clamped, and what each weighs."""
    # Integers until the division, as in `weights`.
    ratio = ((2 * pixel + 1) * n - N).astype(jnp.float32) / (2 * N).astype(jnp.float32)
    at = jnp.clip(ratio, 0, n - 1)
    low = jnp.floor(at).astype(jnp.int32)
    return [(low, 1 - (at - low)), (jnp.minimum(low + 1, n - 1), at - low)]

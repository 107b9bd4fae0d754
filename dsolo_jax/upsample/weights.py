"""What each pixel takes from the patches around it: the formulas of the upsampling.

Every form but PAMR (see `pamr`) is a weighted mean whose weights are the same for all classes,

    out[c, p] = sum_q W[p, q] S[c, q],    sum_q W[p, q] = 1,

over the patches q of a small window around pixel p. A patch is a cell of the picture, and the
pixels of one cell share their window: the T x T patches around that cell, called taps. A form is
no more than its window and its weights. With

    p↓ = ((y + 1/2) h/H - 1/2, (x + 1/2) w/W - 1/2)    pixel p in low-resolution coordinates,
    G_p                                                the picture's colour at p,
    g(d, sigma) = exp(-|d|² / 2 sigma²),
    B[p, q] = max(0, 1 - |y↓ - q_y|) max(0, 1 - |x↓ - q_x|)    p↓ clamped to the grid,

the forms are those written above each function, every one divided by its sum over q.

Weights are computed for n tiles of P pixels at a time, in float32 and int32 whatever JAX's default.
Letters: h w the grid of patches, H W the size of the picture.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

# Rows and columns of the dense window that are weighed at a time. Each costs, for a moment, as many
# numbers a pixel.
_ROWS, _COLUMNS = 8, 64

product = functools.partial(jnp.einsum, precision="highest")


class Kernel(NamedTuple):
    """A form and its widths: of space in low-resolution pixels, of colour in the guide's unit."""

    form: str
    spatial_sigma: float
    range_sigma: float


class Tiles(NamedTuple):
    """n tiles, each P pixels of one cell, and what a form needs to weigh the taps around it."""

    pixels: Shaped[Array, "L 3"]  # the rows at hand: pixel (y, x) is pixels[(y - top) W + x]
    size: tuple[Int[Array, ""], Int[Array, ""]]  # H, W of the whole picture
    top: Int[Array, ""]
    grid: tuple[int, int]  # h, w
    cell: tuple[Int[Array, "n"], Int[Array, "n"]]  # row and column
    rows: Int[Array, "n P"]  # of the pixels
    columns: Int[Array, "n P"]
    centres: list[Float[Array, "n T*T"]]  # red, green, blue at the taps' centres
    taps: Int[Array, "T"]  # -R..R, relative to the cell
    kernel: Kernel


# W[p, q] = B[p, q]
def _bilinear(tiles: Tiles) -> Float[Array, "n t P"]:
    (h, w), (H, W), (row, column) = tiles.grid, tiles.size, tiles.cell
    vertical = _triangle(tiles.rows, row[:, None], tiles.taps, h, H)  # [n, P, T]
    horizontal = _triangle(tiles.columns, column[:, None], tiles.taps, w, W)
    return _flat(vertical.mT[:, :, None] * horizontal.mT[:, None])


# W[p, q] = g(p↓ - q, spatial) g(G_p - G_q, range)    over |p↓ - q| <= 3 spatial,
#           G_q at the pixel that holds the centre of patch q
def _kopf(tiles: Tiles) -> Float[Array, "n t P"]:
    (h, w), (H, W), (row, column) = tiles.grid, tiles.size, tiles.cell
    taps = tiles.taps[:, None]
    dy = _from_centre(tiles.rows, row[:, None], h, H)[:, None] - taps  # [n, T, P]
    dx = _from_centre(tiles.columns, column[:, None], w, W)[:, None] - taps
    distance = dy[:, :, None] ** 2 + dx[:, None] ** 2  # [n, T, T, P]
    inside = (
        _in_disc(distance, tiles.kernel.spatial_sigma)
        & _in_bounds(row[:, None] + tiles.taps, h)[:, :, None, None]
        & _in_bounds(column[:, None] + tiles.taps, w)[:, None, :, None]
    )
    pixels = _colours(tiles, tiles.rows, tiles.columns)
    contrast = sum(
        (p[:, None] - q[..., None]) ** 2 for p, q in zip(pixels, tiles.centres, strict=True)
    )
    exponent = -distance / (2 * tiles.kernel.spatial_sigma**2)
    spatial = _flat(jnp.where(inside, exponent, jnp.float32(-jnp.inf)))
    # A pixel may differ from every patch centre by many sigmas: softmax divides safely.
    return jax.nn.softmax(spatial - contrast / (2 * tiles.kernel.range_sigma**2), axis=1)


# W[p, q] = sum_p' g(p↓ - p'↓, spatial) g(G_p - G_p', range) B[p', q]
#           over the pixels p' of the picture with |p↓ - p'↓| <= 3 spatial
def _dense(tiles: Tiles) -> Float[Array, "n t P"]:
    (h, w), (H, W), (row, column) = tiles.grid, tiles.size, tiles.cell
    taps, T, (n, P) = tiles.taps, len(tiles.taps), tiles.rows.shape
    # The window in pixels, up to one too far: the disc decides.
    reach_y, reach_x = (
        jnp.ceil(3 * tiles.kernel.spatial_sigma * _ratio(N, cells)).astype(jnp.int32)
        for cells, N in ((h, H), (w, W))
    )
    pixels = _colours(tiles, tiles.rows, tiles.columns)
    top, left = tiles.rows.min(axis=1), first_pixel(column, w, W)
    down = tiles.rows - top[:, None]  # [n, P]
    depth, width = down.max() + 1 + 2 * reach_y, -(-W // w) + 2 * reach_x

    # p': every pixel that the window of some pixel of the tile holds, y rows and d columns at once.
    # What depends on the columns alone is made outside the loop over the rows.
    def window_columns(k: Int[Array, ""], weights: Float[Array, "n T T P"]):
        d = _COLUMNS * k + jnp.arange(_COLUMNS, dtype=jnp.int32)
        x = (left - reach_x)[:, None] + d  # [n, d]
        horizontal = _triangle(x, column[:, None], taps, w, W) * _in_bounds(x, W)[..., None]
        # A product for each row: [T, d] x [d, P].
        horizontal = jnp.broadcast_to(horizontal.mT[:, None], (n, _ROWS, T, _COLUMNS))
        dx = (x[..., None] - tiles.columns[:, None]) * _ratio(w, W)  # [n, d, P]
        squared_dx = dx[:, None] ** 2

        def window_rows(i: Int[Array, ""], weights: Float[Array, "n T T P"]):
            offset = _ROWS * i - reach_y + jnp.arange(_ROWS, dtype=jnp.int32)
            y = top[:, None] + offset  # [n, y]
            vertical = _triangle(y, row[:, None], taps, h, H) * _in_bounds(y, H)[..., None]
            dy = (offset[:, None] - down[:, None]) * _ratio(h, H)  # [n, y, P]
            distance = dy[:, :, None] ** 2 + squared_dx  # [n, y, d, P]
            neighbours = _colours(tiles, y[..., None], x[:, None])
            contrast = sum(
                (p[:, None, None] - q[..., None]) ** 2
                for p, q in zip(pixels, neighbours, strict=True)
            )
            exponent = -distance / (2 * tiles.kernel.spatial_sigma**2)
            exponent -= contrast / (2 * tiles.kernel.range_sigma**2)
            weight = jnp.where(_in_disc(distance, tiles.kernel.spatial_sigma), jnp.exp(exponent), 0)
            across = product("nyid,nydp->nyip", horizontal, weight)
            # Spelled out: as a product, of so few terms, it was slower.
            return weights + sum(
                vertical[:, r, :, None, None] * across[:, r, None] for r in range(_ROWS)
            )

        return lax.fori_loop(jnp.int32(0), -(-depth // _ROWS), window_rows, weights)

    zeros = jnp.zeros((n, T, T, P), jnp.float32)
    weights = lax.fori_loop(jnp.int32(0), -(-width // _COLUMNS), window_columns, zeros)
    # The triangles of a pixel sum to 1, so this is the sum over the window as well.
    return _flat(weights / weights.sum(axis=(1, 2), keepdims=True))


# Of each form: spatial sigma -> R, the window being 2 R + 1 taps wide, and its weights. A pixel
# lies within 1/2 of its cell's centre, a disc 3 sigma around it, a triangle 1 beyond.
WINDOWS: dict[str, tuple[Callable[[float], int], Callable[[Tiles], Float[Array, "n t P"]]]] = {
    "bilinear": (lambda sigma: 1, _bilinear),
    "kopf": (lambda sigma: math.floor(3 * sigma + 0.5), _kopf),
    "dense": (lambda sigma: math.ceil(3 * sigma + 0.5), _dense),
}


def _flat(weights: Float[Array, "n T T P"]) -> Float[Array, "n t P"]:
    return weights.reshape(len(weights), -1, weights.shape[-1])


# One axis: n cells over N pixels. Integers until the last division, so that nothing is rounded
# differently in a strip.


def first_pixel(cell, n, N):
    """Finds the first pixel whose centre lies in this cell or in a later one."""
    return (2 * N * cell + n - 1) // (2 * n)


def centre_pixel(cell, n, N):
    """Finds the pixel that holds the cell's centre: floor((cell + 1/2) N/n)."""
    return (2 * cell + 1) * N // (2 * n)


def _ratio(a, b) -> Float[Array, "..."]:
    # Two integers divided as they are would be float64 where that is JAX's default.
    return jnp.asarray(a, jnp.float32) / jnp.asarray(b, jnp.float32)


# p↓ - cell = (pixel + 1/2) n/N - 1/2 - cell
def _from_centre(pixel, cell, n, N) -> Float[Array, "..."]:
    return _ratio((2 * pixel + 1) * n - (2 * cell + 1) * N, 2 * N)


# One factor of B[pixel, cell + taps]
def _triangle(pixel, cell, taps, n, N) -> Float[Array, "... T"]:
    offset = jnp.clip(_from_centre(pixel, cell, n, N), -cell, n - 1 - cell)
    return jnp.maximum(0, 1 - jnp.abs(offset[..., None] - taps))


def _in_bounds(index, n):
    return (index >= 0) & (index < n)


def _in_disc(squared_distance, sigma):
    # The disc is closed: rounding must not cut off whole pixels lying on its rim.
    return squared_distance <= 9 * sigma**2 * (1 + 1e-6)


def _colours(tiles: Tiles, rows, columns) -> list[Float[Array, "..."]]:
    """Takes red, green, blue at pixel rows and columns, clamped to the picture.

    An array a channel: a slice of one array inside the loop over a window would cost XLA's CPU
    backend its vector instructions, three times the time.
    """
    H, W = tiles.size
    rows, columns = jnp.clip(rows, 0, H - 1), jnp.clip(columns, 0, W - 1)
    colours = tiles.pixels[(rows - tiles.top) * W + columns]
    return [colours[..., channel].astype(jnp.float32) for channel in range(3)]

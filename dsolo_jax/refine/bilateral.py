"""Joint bilateral upsampling: low-resolution scores to the picture, guided by its colours.

Every form is a weighted mean with weights that no class changes,

    out[c, p] = sum_q W[p, q] S[c, q],    sum_q W[p, q] = 1,

over the patches q of a small window around pixel p. A patch is a cell of the picture, and the
pixels of one cell share their window; so the picture is taken cell by cell, and a cell is one small
matrix product [C, taps] x [taps, pixels]. A form is no more than its weights.

Letters: h w the low-resolution grid, H W the true size of the picture, Hb Wb its padded (bucket)
size; in a block of pixel rows b rows, P pixel columns a cell, T x T taps a window.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from dsolo_jax.checks import choose

_STATIC = ("spatial_sigma", "range_sigma", "form")

# Numbers a block of rows may hold of any one kind (weights, scores): 16 MiB of float32.
_BLOCK_ELEMENTS = 1 << 22

_einsum = functools.partial(jnp.einsum, precision="highest")


@functools.partial(jax.jit, static_argnames=_STATIC)
def joint_bilateral_upsample(
    scores: Float[Array, "C h w"],
    guide: Float[Array, "Hb Wb 3"] | UInt8[Array, "Hb Wb 3"],
    size: Int[Array, "2"] | None = None,
    *,
    spatial_sigma: float = 1.0,
    range_sigma: float = 0.1,
    form: str = "kopf",
) -> Float[Array, "C Hb Wb"]:
    """Scores of every pixel: the weighted mean of the low-resolution scores around it.

    With p↓ = ((y + 1/2) h/H - 1/2, (x + 1/2) w/W - 1/2), the pixel p in low-resolution coordinates,
    G the guide and g(d, sigma) = exp(-|d|² / 2 sigma²), the forms are, each divided by its sum,

        "kopf":     W[p, q] = g(p↓ - q, spatial) g(G_p - G_q, range)  over |p↓ - q| <= 3 spatial,
                    G_q the guide at the pixel that holds the centre of patch q (Kopf et al. 2007)
        "dense":    W[p, q] = sum_p' g(p↓ - p'↓, spatial) g(G_p - G_p', range) B[p', q]  over the
                    pixels |p↓ - p'↓| <= 3 spatial of the picture: the bilinear picture, filtered
                    (M2N2, CVPR 2025)
        "bilinear": W[p, q] = B[p, q], the weights of bilinear interpolation with half-pixel centres
                    and clamped borders; both sigmas are left unused (the ablation without JBU)

    Args:
        scores: low-resolution scores of C classes.
        guide: the picture, float in 0..1 or uint8.
        size: the true (H, W) when the guide is padded at its bottom and right; inside it the result
            is that of the unpadded picture, beyond it the last row and column are repeated.
        spatial_sigma: in low-resolution pixels.
        range_sigma: in units of the guide's 0..1, over the three channels together.
        form: one of the above.

    Raises:
        ValueError: for arrays of other shapes, an unknown form, a sigma that is not positive, or a
            "kopf" window so narrow (spatial_sigma < 0.25) that it can miss every patch.
    """
    options = _options(scores, guide, spatial_sigma, range_sigma, form)
    return _map_blocks(lambda block: block, scores, guide, size, *options)


@functools.partial(jax.jit, static_argnames=(*_STATIC, "decide"))
def upsample_labels(
    scores: Float[Array, "C h w"],
    guide: UInt8[Array, "Hb Wb 3"],
    size: Int[Array, "2"] | None = None,
    *,
    spatial_sigma: float = 1.0,
    range_sigma: float = 0.1,
    form: str = "kopf",
    decide: Callable[[Float[Array, "C ..."]], Float[Array, "K ..."]] | None = None,
) -> Int[Array, "Hb Wb"]:
    """The class with the largest upsampled score in every pixel, the first one on a tie.

    The argmax over classes of `joint_bilateral_upsample` (same arguments, same errors), taken block
    by block: the [C, H, W] scores are never held.

    Args:
        decide: the upsampled scores to those that the argmax is taken of, pixel by pixel; hashable.
    """
    options = _options(scores, guide, spatial_sigma, range_sigma, form)
    finish = _winner if decide is None else lambda block: _winner(jax.vmap(decide)(block))
    return _map_blocks(finish, scores, guide, size, *options)[0]


class _Block(NamedTuple):
    """A few pixel rows of one row of cells, and all a form needs to weigh the taps around them.

    Rows and columns beyond a cell's own pixels fill it up to a static shape and are dropped later.
    """

    guide: Array  # [Hb, Wb, 3]
    grid: tuple[int, int]  # h, w
    size: tuple[Array, Array]  # H, W
    cell_row: Array  # []
    rows: Array  # [b]
    columns: Array  # [w, P]
    taps: Array  # [T] -R..R, relative to the cell
    spatial_sigma: float
    range_sigma: float


class _Form(NamedTuple):
    reach: Callable[[float], int]  # spatial sigma -> R, the window of a cell being 2R + 1 taps wide
    weights: Callable[[_Block], Float[Array, "w T T b P"]]


def _bilinear(block: _Block) -> Float[Array, "w T T b P"]:
    (h, w), (H, W) = block.grid, block.size
    vertical = _triangle(block.rows, block.cell_row, block.taps, h, H)  # [b, T]
    horizontal = _triangle(block.columns, jnp.arange(w)[:, None], block.taps, w, W)  # [w, P, T]
    return _einsum("bj,wpi->wjibp", vertical, horizontal)


def _kopf(block: _Block) -> Float[Array, "w T T b P"]:
    (h, w), (H, W), taps = block.grid, block.size, block.taps
    tap_rows, tap_columns = block.cell_row + taps, jnp.arange(w)[:, None] + taps
    dy = _from_centre(block.rows, block.cell_row, h, H) - taps[:, None]  # [T, b]
    dx = _from_centre(block.columns, jnp.arange(w)[:, None], w, W)[:, None] - taps[:, None]
    distance = dy[:, None, :, None] ** 2 + dx[:, None, :, None] ** 2  # [w, T, T, b, P]
    inside = (
        _in_disc(distance, block.spatial_sigma)
        & _in_bounds(tap_rows, h)[:, None, None, None]
        & _in_bounds(tap_columns, w)[:, None, :, None, None]
    )
    pixels = _colours(block.guide, block.size, block.rows, block.columns)
    patches = _colours(block.guide, block.size, _centre(tap_rows, h, H), _centre(tap_columns, w, W))
    contrast = sum(
        (p[:, None, None] - q[..., None, None]) ** 2 for p, q in zip(pixels, patches, strict=True)
    )
    exponent = -distance / (2 * block.spatial_sigma**2) - contrast / (2 * block.range_sigma**2)
    # A pixel may differ from every patch centre by many sigmas: softmax divides safely.
    return jax.nn.softmax(jnp.where(inside, exponent, -jnp.inf), axis=(1, 2))


def _dense(block: _Block) -> Float[Array, "w T T b P"]:
    (h, w), (H, W) = block.grid, block.size
    (b,), (_, P) = block.rows.shape, block.columns.shape
    reach_y, reach_x = _pixel_reach(block.guide.shape, block.grid, block.spatial_sigma)
    # p': every pixel that the window of some pixel of the cell holds, and columns up to a multiple
    # of 8: what would not fill a vector costs XLA's CPU backend a fifth of the whole.
    rows = block.rows[0] + jnp.arange(-reach_y, b + reach_y)  # [b + 2 reach]
    width = -(-(P + 2 * reach_x) // 8) * 8
    columns = block.columns[:, :1] - reach_x + jnp.arange(width)  # [w, width]
    horizontal = _triangle(columns, jnp.arange(w)[:, None], block.taps, w, W)
    horizontal *= _in_bounds(columns, W)[..., None]
    vertical = _triangle(rows, block.cell_row, block.taps, h, H) * _in_bounds(rows, H)[:, None]
    dy = (rows[:, None] - block.rows) * (h / H)  # [b + 2 reach, b]
    dx = (columns[0] - block.columns[0][:, None]) * (w / W)  # [P, width]
    distance = dy[..., None, None] ** 2 + dx**2
    inside = _in_disc(distance, block.spatial_sigma)
    spatial = jnp.where(inside, -distance / (2 * block.spatial_sigma**2), -jnp.inf)
    pixels = _colours(block.guide, block.size, block.rows, block.columns)
    neighbours = _colours(block.guide, block.size, rows, columns)

    def window_row(row) -> Float[Array, "w b P T"]:
        spatial, colours = row
        contrast = sum(
            (p[..., None] - q[:, None, None]) ** 2 for p, q in zip(pixels, colours, strict=True)
        )
        weights = jnp.exp(spatial - contrast / (2 * block.range_sigma**2))  # [w, b, P, width]
        return _einsum("wbpd,wdi->wbpi", weights, horizontal)

    by_row = lax.map(window_row, (spatial, [jnp.moveaxis(q, 1, 0) for q in neighbours]))
    weights = _einsum("yj,ywbpi->wjibp", vertical, by_row)
    # The triangles of a pixel sum to 1, so this is the sum over the window as well.
    return weights / weights.sum(axis=(1, 2), keepdims=True)


# A pixel lies within 1/2 of its cell's centre, a disc 3 sigma around it, a triangle 1 beyond.
FORMS = {
    "bilinear": _Form(lambda sigma: 1, _bilinear),
    "kopf": _Form(lambda sigma: math.floor(3 * sigma + 0.5), _kopf),
    "dense": _Form(lambda sigma: math.ceil(3 * sigma + 0.5), _dense),
}


def _map_blocks(
    finish: Callable[[Float[Array, "w C b P"]], Array],
    scores: Float[Array, "C h w"],
    guide: Array,
    size: Int[Array, "2"] | None,
    spatial_sigma: float,
    range_sigma: float,
    form: str,
) -> Array:
    """[K, Hb, Wb], put together from `finish` of the blocks, [w, C, b, P] -> [w, K, b, P]."""
    scores = jnp.asarray(scores, jnp.float32)
    (C, h, w), (Hb, Wb, _) = scores.shape, guide.shape
    H, W = (Hb, Wb) if size is None else size
    reach, weights = FORMS[form]
    taps = jnp.arange(-reach(spatial_sigma), reach(spatial_sigma) + 1)
    P = -(-Wb // w)
    window = 2 * max(_pixel_reach(guide.shape, (h, w), spatial_sigma)) + P if form == "dense" else 0
    chunks, b = _chunks(-(-Hb // h), w * P * max(C, taps.size**2, window * taps.size))
    columns = _first_pixel(jnp.arange(w), w, W)[:, None] + jnp.arange(P)
    column_slots = _slots(Wb, w, W, P)

    def block(i: Int[Array, ""]) -> Array:
        cell_row, chunk = i // chunks, i % chunks
        rows = _first_pixel(cell_row, h, H) + chunk * b + jnp.arange(b)
        W_pq = weights(
            _Block(guide, (h, w), (H, W), cell_row, rows, columns, taps, spatial_sigma, range_sigma)
        )
        S_q = _windows(scores, cell_row, taps)
        done = finish(_einsum("cwji,wjibp->wcbp", S_q, W_pq))
        return jnp.moveaxis(done, 0, 2).reshape(*done.shape[1:3], w * P)[..., column_slots]

    blocks = jnp.moveaxis(lax.map(block, jnp.arange(h * chunks)), 1, 0)  # [K, blocks, b, Wb]
    return blocks.reshape(-1, h * chunks * b, Wb)[:, _slots(Hb, h, H, chunks * b)]


def _winner(scores: Float[Array, "w C b P"]) -> Int[Array, "w 1 b P"]:
    return jnp.argmax(scores, axis=1, keepdims=True).astype(jnp.int32)


def _chunks(rows: int, elements_per_row: int) -> tuple[int, int]:
    """Into how many blocks a row of cells is cut, and their rows, for blocks of bounded size."""
    chunks = min(rows, -(-rows * elements_per_row // _BLOCK_ELEMENTS))
    return chunks, -(-rows // chunks)


# One axis: n cells over N pixels. Integers until the last division, so nothing depends on padding.


def _cell(pixel, n, N):
    """The cell that holds the pixel's centre: floor((pixel + 1/2) n/N)."""
    return (2 * pixel + 1) * n // (2 * N)


def _first_pixel(cell, n, N):
    """The first pixel whose `_cell` is this one or a later one."""
    return (2 * N * cell + n - 1) // (2 * n)


def _centre(cell, n, N):
    """The pixel that holds the cell's centre: floor((cell + 1/2) N/n)."""
    return (2 * cell + 1) * N // (2 * n)


def _from_centre(pixel, cell, n, N):
    """p↓ - cell = (pixel + 1/2) n/N - 1/2 - cell."""
    return ((2 * pixel + 1) * n - (2 * cell + 1) * N) / (2 * N)


def _triangle(pixel, cell, taps, n, N):
    """[..., T] bilinear weight of the patches cell + taps in pixels, clamped to the grid."""
    offset = jnp.clip(_from_centre(pixel, cell, n, N), -cell, n - 1 - cell)
    return jnp.maximum(0, 1 - jnp.abs(offset[..., None] - taps))


def _slots(pixels, n, N, slots):
    """[pixels] where each pixel of an axis lies among the `slots` of each of its n cells."""
    pixel = jnp.minimum(jnp.arange(pixels), N - 1)
    cell = _cell(pixel, n, N)
    return cell * slots + pixel - _first_pixel(cell, n, N)


def _in_bounds(index, n):
    return (index >= 0) & (index < n)


def _in_disc(squared_distance, sigma):
    # The disc is closed: rounding must not cut off whole pixels lying on its rim.
    return squared_distance <= 9 * sigma**2 * (1 + 1e-6)


def _pixel_reach(guide_shape, grid, sigma):
    """Pixels of 3 sigma along each axis, for the largest picture the padded guide can hold."""
    return tuple(
        math.floor(3 * sigma * N / n + 1e-6) for N, n in zip(guide_shape, grid, strict=False)
    )


def _colours(guide, size, rows, columns) -> list[Float[Array, "w rows columns"]]:
    """Red, green, blue in 0..1 at rows [rows] and columns [w, columns], clamped to the true size.

    An array a channel: a slice of one array inside the loop over a window would cost XLA's CPU
    backend its vector instructions, three times the time.
    """
    rows, columns = (jnp.clip(i, 0, n - 1) for i, n in zip((rows, columns), size, strict=True))
    unit = 255 if guide.dtype == jnp.uint8 else 1
    colours = jnp.moveaxis(guide[rows][:, columns], 1, 0).astype(jnp.float32) / unit
    return [colours[..., channel] for channel in range(3)]


def _windows(scores, cell_row, taps) -> Float[Array, "C w T T"]:
    """The taps of every cell of a row of cells; beyond the grid, where W is 0, the border's."""
    _, h, w = scores.shape
    rows = jnp.clip(cell_row + taps, 0, h - 1)
    columns = jnp.clip(jnp.arange(w)[:, None] + taps, 0, w - 1)
    return jnp.moveaxis(scores[:, rows][:, :, columns], 1, 2)


def _options(scores, guide, spatial_sigma, range_sigma, form):
    choose("upsampling form", form, FORMS)
    if scores.ndim != 3 or 0 in scores.shape:
        raise ValueError(f"scores must be [C, h, w], found shape {scores.shape}; vmap batches")
    if guide.ndim != 3 or guide.shape[2] != 3 or 0 in guide.shape:
        raise ValueError(
            f"guide must be [H, W, 3], found shape {guide.shape}; repeat grey, drop alpha"
        )
    if not (guide.dtype == jnp.uint8 or jnp.issubdtype(guide.dtype, jnp.floating)):
        raise ValueError(f"guide must be float in 0..1 or uint8, found {guide.dtype}")
    for name, sigma in {"spatial_sigma": spatial_sigma, "range_sigma": range_sigma}.items():
        if not sigma > 0:
            raise ValueError(f'{name} must be positive, found {sigma}; "bilinear" needs neither')
    if form == "kopf" and spatial_sigma < 0.25:
        raise ValueError(
            f"spatial_sigma must be at least 0.25 low-resolution pixels for the form 'kopf', found "
            f"{spatial_sigma}: the disc of 3 sigma can hold no patch; choose 'dense' or 'bilinear'"
        )
    return spatial_sigma, range_sigma, form

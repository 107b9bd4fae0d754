"""Joint bilateral upsampling: low-resolution scores to the picture, guided by its colours.

Every form is a weighted mean with weights that no class changes,

    out[c, p] = sum_q W[p, q] S[c, q],    sum_q W[p, q] = 1,

over the patches q of a small window around pixel p. A patch is a cell of the picture, and the
pixels of one cell share their window. So the picture is taken tile by tile, a tile being 16 pixels
of one cell, in raster order: one small matrix product [C, taps] x [taps, 16] each. A form is no
more than its weights.

No shape depends on the picture: how many tiles a cell has is a loop's traced number of trips. One
program serves every picture, and what it does beyond the picture's own pixels is what fills the
last tile of a cell.

Letters: h w the low-resolution grid, H W the true size of the picture, Hb Wb its padded size, L
pixels of a strip of it; in a block of tiles G rows of cells, n = G w tiles, P = 16 pixels a tile,
T x T taps a window.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from dsolo_jax.utils.checks import choose

# Scores of a pixel to those that the argmax is taken of.
Decide = Callable[[Float[Array, "C ..."]], Float[Array, "K ..."]]

_STATIC = ("spatial_sigma", "range_sigma", "form")

# Pixels of a tile: the narrowest product that fills XLA's vectors on CPU; the fewer, the less work
# is done in vain.
_TILE = 16

# Numbers a block of tiles may hold of any one kind (weights, scores). On CPU they should stay in
# the caches; accelerators want large products (16 MiB of float32).
_BLOCK_ELEMENTS = {"cpu": 1 << 17}
_BLOCK_ELEMENTS_OF_ACCELERATORS = 1 << 22

# Pixels of a strip: of labels, and of scores, which are a number a class.
_STRIP_OF_LABELS, _STRIP_OF_SCORES = 1 << 18, 1 << 16

# Rows and columns of the dense window that are weighed at a time: as many weights a pixel, for a
# moment, which a block's bound does not count.
_ROWS, _COLUMNS = 8, 64

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
    return _whole(_all_scores, scores, guide, size, *options)


@functools.partial(jax.jit, static_argnames=(*_STATIC, "decide"))
def upsample_labels(
    scores: Float[Array, "C h w"],
    guide: UInt8[Array, "Hb Wb 3"],
    size: Int[Array, "2"] | None = None,
    *,
    spatial_sigma: float = 1.0,
    range_sigma: float = 0.1,
    form: str = "kopf",
    decide: Decide | None = None,
) -> Int[Array, "Hb Wb"]:
    """The class with the largest upsampled score in every pixel, the first one on a tie.

    The argmax over classes of `joint_bilateral_upsample` (same arguments, same errors), taken block
    by block: the [C, H, W] scores are never held. `strips` and `strip_labels` do the same for
    pictures of any size with one program.

    Args:
        decide: the upsampled scores to those that the argmax is taken of, pixel by pixel; hashable.
    """
    options = _options(scores, guide, spatial_sigma, range_sigma, form)
    return _whole(_winner(decide), scores, guide, size, *options)[0]


# ------------------------------------------------------------------------------- strips


class Strip(NamedTuple):
    """Some rows of a picture, ready for `strip_labels` and `strip_scores`.

    Its shapes depend on the grid alone; and on L, which is doubled for a picture so large that a
    row of cells does not fit into a strip.
    """

    pixels: UInt8[np.ndarray, "L 3"]  # in raster order, whatever comes behind them is padding
    patches: UInt8[np.ndarray, "h w 3"]  # at the pixels that hold the patches' centres
    # H, W, the first pixel row held, the first wanted, groups of cells from and to
    place: Int[np.ndarray, "6"]


class _Cut(NamedTuple):
    """Where a picture may be cut: before each group of G rows of cells."""

    tops: Int[np.ndarray, "groups+1"]  # first pixel row of each group
    blocks: Int[np.ndarray, "groups"]  # of tiles, in each
    halo: int  # pixel rows beyond, that its pixels' windows hold
    group: int  # G

    def rows(self, first: int, last: int) -> slice:
        """Pixel rows that are held for groups, from the first to before the last."""
        top, bottom = self.tops[first] - self.halo, self.tops[last] + self.halo
        return slice(int(max(top, 0)), int(min(bottom, self.tops[-1])))


def _cut(size, shape, spatial_sigma, form) -> _Cut:
    (H, W), (C, h, w) = size, shape
    G = _group(C, h, w, form, spatial_sigma)
    tops = _first_pixel(np.minimum(np.arange(0, h + G, G), h), h, H)
    halo = math.ceil(3 * spatial_sigma * H / h) if form == "dense" else 0
    return _Cut(tops, _chunks((h, w), (H, W), G), halo, G)


def _fits(cut: _Cut, shape, width: int, length: int, first: int, last: int) -> bool:
    rows, blocks = cut.rows(first, last), cut.blocks[first:last].sum()
    held = (rows.stop - rows.start) * width <= length
    return held and blocks <= _blocks(length, cut.group, shape[2])


def strip_length(
    size: tuple[int, int],
    shape: tuple[int, int, int],
    *,
    spatial_sigma: float = 1.0,
    form: str = "kopf",
    of_scores: bool = False,
) -> int:
    """Pixels L of the strips of a picture of `size` (H, W); the least there is, if it is not huge.

    Args:
        shape: (C, h, w) of the scores it is to get.
        of_scores: strips for `strip_scores`, which are shorter.
    """
    cut = _cut(size, shape, spatial_sigma, form)
    length = _STRIP_OF_SCORES if of_scores else _STRIP_OF_LABELS
    while not all(_fits(cut, shape, size[1], length, g, g + 1) for g in range(len(cut.blocks))):
        length *= 2
    return length


def strips(
    pixels: UInt8[np.ndarray, "H W 3"],
    shape: tuple[int, int, int],
    *,
    length: int,
    spatial_sigma: float = 1.0,
    form: str = "kopf",
) -> Iterator[tuple[slice, Strip]]:
    """Cuts a picture into strips, on the host: the rows of each, and the strip.

    Args:
        shape: (C, h, w) of the scores it is to get.
        length: of each strip, at least its `strip_length`.
    """
    (H, W, _), (_, h, w) = pixels.shape, shape
    cut = _cut((H, W), shape, spatial_sigma, form)
    patches = pixels[_centre(np.arange(h), h, H)[:, None], _centre(np.arange(w), w, W)]
    first, groups = 0, len(cut.blocks)
    while first < groups:
        last = next(g for g in range(groups, first, -1) if _fits(cut, shape, W, length, first, g))
        held = cut.rows(first, last)
        flat = np.zeros((length, 3), np.uint8)
        flat[: (held.stop - held.start) * W] = pixels[held].reshape(-1, 3)
        top, bottom = int(cut.tops[first]), int(cut.tops[last])
        place = np.array([H, W, held.start, top, first, last], np.int32)
        yield slice(top, bottom), Strip(flat, patches, place)
        first = last


def tile_pixels(
    size: tuple[int, int],
    shape: tuple[int, int, int],
    *,
    spatial_sigma: float = 1.0,
    form: str = "kopf",
) -> int:
    """Pixels of all tiles of a picture of `size` (H, W), those that fill up a cell's last included.

    The upsampling's work, where the picture itself is H · W.
    """
    cut = _cut(size, shape, spatial_sigma, form)
    return int(cut.blocks.sum()) * cut.group * shape[2] * _TILE


def idle_strip(shape: tuple[int, int, int], length: int) -> Strip:
    """One without rows."""
    patches = np.zeros((*shape[1:], 3), np.uint8)
    return Strip(np.zeros((length, 3), np.uint8), patches, np.array([1, 1, 0, 0, 0, 0], np.int32))


@functools.partial(jax.jit, static_argnames=(*_STATIC, "decide"))
def strip_labels(
    scores: Float[Array, "C h w"],
    strip: Strip,
    *,
    spatial_sigma: float = 1.0,
    range_sigma: float = 0.1,
    form: str = "kopf",
    decide: Decide | None = None,
) -> Int[Array, "L"]:
    """`upsample_labels` of a strip's rows, in raster order; behind them anything."""
    return _of_strip(_winner(decide), scores, strip, spatial_sigma, range_sigma, form)[0]


@functools.partial(jax.jit, static_argnames=_STATIC)
def strip_scores(
    scores: Float[Array, "C h w"],
    strip: Strip,
    *,
    spatial_sigma: float = 1.0,
    range_sigma: float = 0.1,
    form: str = "kopf",
) -> Float[Array, "C L"]:
    """`joint_bilateral_upsample` of a strip's rows, in raster order; behind them anything."""
    return _of_strip(_all_scores, scores, strip, spatial_sigma, range_sigma, form)


def _of_strip(finish, scores, strip, spatial_sigma, range_sigma, form) -> Array:
    """[K, L]"""
    _check(spatial_sigma, range_sigma, form)
    H, W, held, wanted, first, last = strip.place
    w = scores.shape[-1]
    picture = _Picture(strip.pixels, strip.patches, (H, W), held, W)
    length = len(strip.pixels)
    blocks = _blocks(length, _group(*scores.shape, form, spatial_sigma), w)
    tiles = _tiles(finish, scores, picture, (first, last), blocks, spatial_sigma, range_sigma, form)
    pixel = jnp.arange(length)
    rows = jnp.minimum(wanted + pixel // W, H - 1)
    return tiles(rows, pixel % W)


def _blocks(length: int, G: int, w: int) -> int:
    """Blocks of tiles that are held for a strip: as if half of every tile were in vain."""
    return -(-2 * length // (G * w * _TILE))


def _whole(finish, scores, guide, size, spatial_sigma, range_sigma, form) -> Array:
    """[K, Hb, Wb], the picture as one strip."""
    (_, h, w), (Hb, Wb, _) = scores.shape, guide.shape
    H, W = (Hb, Wb) if size is None else size
    rows, columns = _centre(jnp.arange(h), h, H), _centre(jnp.arange(w), w, W)
    picture = _Picture(guide.reshape(-1, 3), guide[rows][:, columns], (H, W), 0, Wb)
    groups = -(-h // _group(*scores.shape, form, spatial_sigma))
    blocks = groups * -(-(-(-Hb // h) * -(-Wb // w)) // _TILE)
    tiles = _tiles(finish, scores, picture, (0, groups), blocks, spatial_sigma, range_sigma, form)
    rows, columns = (jnp.minimum(jnp.arange(n), N - 1) for n, N in ((Hb, H), (Wb, W)))
    return tiles(rows[:, None], columns)


# ------------------------------------------------------------------------------- tiles


class _Picture(NamedTuple):
    """What is held of a picture: pixel (y, x) is pixels[(y - top) stride + x]."""

    pixels: Array  # [L, 3]
    patches: Array  # [h, w, 3]
    size: tuple[Any, Any]  # H, W
    top: Any
    stride: Any


class _Block(NamedTuple):
    """n tiles, and all a form needs to weigh the taps around them."""

    picture: _Picture
    grid: tuple[int, int]  # h, w
    cells: tuple[Array, Array]  # [n], [n] row and column of each tile's cell
    left: Array  # [n] first pixel column of its cell
    widest: Array  # [] pixel columns of the widest cell
    rows: Array  # [n, P] of its pixels
    columns: Array  # [n, P]
    centres: list[Array]  # of 3 channels [n, T*T], colours at the taps
    taps: Array  # [T] -R..R, relative to the cell
    spatial_sigma: float
    range_sigma: float  # in the guide's own unit, as all colours here


class _Form(NamedTuple):
    reach: Callable[[float], int]  # spatial sigma -> R, the window of a cell being 2R + 1 taps wide
    weights: Callable[[_Block], Float[Array, "n T*T P"]]


def _bilinear(block: _Block) -> Float[Array, "n T*T P"]:
    (h, w), (H, W), (row, column) = block.grid, block.picture.size, block.cells
    vertical = _triangle(block.rows, row[:, None], block.taps, h, H)  # [n, P, T]
    horizontal = _triangle(block.columns, column[:, None], block.taps, w, W)
    return _flat(vertical.mT[:, :, None] * horizontal.mT[:, None])


def _kopf(block: _Block) -> Float[Array, "n T*T P"]:
    (h, w), (H, W), (row, column) = block.grid, block.picture.size, block.cells
    taps = block.taps[:, None]
    dy = _from_centre(block.rows, row[:, None], h, H)[:, None] - taps  # [n, T, P]
    dx = _from_centre(block.columns, column[:, None], w, W)[:, None] - taps
    distance = dy[:, :, None] ** 2 + dx[:, None] ** 2  # [n, T, T, P]
    inside = (
        _in_disc(distance, block.spatial_sigma)
        & _in_bounds(row[:, None] + block.taps, h)[:, :, None, None]
        & _in_bounds(column[:, None] + block.taps, w)[:, None, :, None]
    )
    pixels = _colours(block.picture, block.rows, block.columns)
    contrast = sum(
        (p[:, None] - q[..., None]) ** 2 for p, q in zip(pixels, block.centres, strict=True)
    )
    spatial = _flat(jnp.where(inside, -distance / (2 * block.spatial_sigma**2), -jnp.inf))
    # A pixel may differ from every patch centre by many sigmas: softmax divides safely.
    return jax.nn.softmax(spatial - contrast / (2 * block.range_sigma**2), axis=1)


def _dense(block: _Block) -> Float[Array, "n T*T P"]:
    (h, w), (H, W), (row, column) = block.grid, block.picture.size, block.cells
    taps, T, (n, P) = block.taps, len(block.taps), block.rows.shape
    # A pixel more than 3 sigma: the disc decides.
    reach_y, reach_x = (
        jnp.ceil(3 * block.spatial_sigma * N / n_).astype(jnp.int32) for N, n_ in ((H, h), (W, w))
    )
    pixels = _colours(block.picture, block.rows, block.columns)
    top = block.rows.min(axis=1)
    down = block.rows - top[:, None]  # [n, P]
    depth, width = down.max() + 1 + 2 * reach_y, block.widest + 2 * reach_x

    # p': every pixel that the window of some pixel of the tile holds, y rows and d columns at once.
    # What depends on the columns alone is made outside the loop over the rows.
    def window_columns(k, weights: Float[Array, "n T T P"]) -> Float[Array, "n T T P"]:
        x = (block.left - reach_x + _COLUMNS * k)[:, None] + jnp.arange(_COLUMNS)  # [n, d]
        horizontal = _triangle(x, column[:, None], taps, w, W) * _in_bounds(x, W)[..., None]
        # A product for each row: [T, d] x [d, P].
        horizontal = jnp.broadcast_to(horizontal.mT[:, None], (n, _ROWS, T, _COLUMNS))
        dx = (x[..., None] - block.columns[:, None]) * (w / W)  # [n, d, P]
        squared_dx = dx[:, None] ** 2

        def window_rows(i, weights: Float[Array, "n T T P"]) -> Float[Array, "n T T P"]:
            offset = _ROWS * i - reach_y + jnp.arange(_ROWS)
            y = top[:, None] + offset  # [n, y]
            vertical = _triangle(y, row[:, None], taps, h, H) * _in_bounds(y, H)[..., None]
            dy = (offset[:, None] - down[:, None]) * (h / H)  # [n, y, P]
            distance = dy[:, :, None] ** 2 + squared_dx  # [n, y, d, P]
            neighbours = _colours(block.picture, y[..., None], x[:, None])
            contrast = sum(
                (p[:, None, None] - q[..., None]) ** 2
                for p, q in zip(pixels, neighbours, strict=True)
            )
            exponent = -distance / (2 * block.spatial_sigma**2)
            exponent -= contrast / (2 * block.range_sigma**2)
            weight = jnp.where(_in_disc(distance, block.spatial_sigma), jnp.exp(exponent), 0)
            across = _einsum("nyid,nydp->nyip", horizontal, weight)
            # Spelled out: as a product, of so few terms, it was slower.
            return weights + sum(
                vertical[:, r, :, None, None] * across[:, r, None] for r in range(_ROWS)
            )

        return lax.fori_loop(0, -(-depth // _ROWS), window_rows, weights)

    zeros = jnp.zeros((n, T, T, P))
    weights = lax.fori_loop(0, -(-width // _COLUMNS), window_columns, zeros)
    # The triangles of a pixel sum to 1, so this is the sum over the window as well.
    return _flat(weights / weights.sum(axis=(1, 2), keepdims=True))


def _flat(weights: Float[Array, "n T T P"]) -> Float[Array, "n T*T P"]:
    return weights.reshape(len(weights), -1, weights.shape[-1])


# A pixel lies within 1/2 of its cell's centre, a disc 3 sigma around it, a triangle 1 beyond.
FORMS = {
    "bilinear": _Form(lambda sigma: 1, _bilinear),
    "kopf": _Form(lambda sigma: math.floor(3 * sigma + 0.5), _kopf),
    "dense": _Form(lambda sigma: math.ceil(3 * sigma + 0.5), _dense),
}


def _group(C: int, h: int, w: int, form: str, spatial_sigma: float) -> int:
    """G: a power of two of rows of cells, for blocks of bounded size."""
    T = 2 * FORMS[form].reach(spatial_sigma) + 1
    limit = _BLOCK_ELEMENTS.get(jax.default_backend(), _BLOCK_ELEMENTS_OF_ACCELERATORS)
    rows = limit // (w * _TILE * max(C, T * T))
    return 1 << min(max(rows, 1), h).bit_length() - 1


def _tiles(
    finish: Callable[[Float[Array, "n C P"]], Array],
    scores: Float[Array, "C h w"],
    picture: _Picture,
    groups: tuple[Any, Any],
    blocks: int,
    spatial_sigma: float,
    range_sigma: float,
    form: str,
) -> Callable[[Array, Array], Array]:
    """`finish` of every tile, [n, C, P] -> [n, K, P]; as a function of pixel rows and columns.

    Args:
        groups: of G rows of cells, from the first to before the last.
        blocks: at least as many as the tiles of these groups need.
    """
    scores = jnp.asarray(scores, jnp.float32)
    C, h, w = scores.shape
    (H, W), G = picture.size, _group(C, h, w, form, spatial_sigma)
    reach, weights = FORMS[form]
    taps = jnp.arange(-reach(spatial_sigma), reach(spatial_sigma) + 1)
    (top, height), (left, width) = jax.tree.map(jnp.asarray, (_extents(h, H), _extents(w, W)))
    chunks = jnp.asarray(_chunks((h, w), (H, W), G))
    # Colours at the patch centres go with the scores: a tile needs both of the same taps.
    patches = picture.patches.astype(jnp.float32)
    maps = jnp.concatenate([jnp.moveaxis(scores, 0, -1), patches], axis=-1)
    white = 255 if picture.pixels.dtype == jnp.uint8 else 1

    def group(g, carry):
        row = jnp.repeat(jnp.minimum(g * G + jnp.arange(G), h - 1), w)
        column = jnp.tile(jnp.arange(w), G)
        windows = _windows(maps, row, column, taps)  # [n, T*T, C + 3]
        S_q, centres = windows[..., :C].mT, [windows[..., C + channel] for channel in range(3)]
        across = jnp.maximum(width[column], 1)[:, None]
        last = jnp.maximum(height[row] * width[column], 1)[:, None] - 1

        def block(i, carry):
            at, done = carry
            pixel = jnp.minimum(_TILE * i + jnp.arange(_TILE), last)  # [n, P]
            rows, columns = (
                top[row][:, None] + pixel // across,
                left[column][:, None] + pixel % across,
            )
            W_pq = weights(
                _Block(
                    picture,
                    (h, w),
                    (row, column),
                    left[column],
                    width.max(),
                    rows,
                    columns,
                    centres,
                    taps,
                    spatial_sigma,
                    white * range_sigma,
                )
            )
            finished = finish(_einsum("ncq,nqp->ncp", S_q, W_pq))
            return at + 1, lax.dynamic_update_index_in_dim(done, finished.swapaxes(0, 1), at, 1)

        return lax.fori_loop(0, chunks[g], block, carry)

    n = G * w
    finished = jax.eval_shape(finish, jax.ShapeDtypeStruct((n, C, _TILE), jnp.float32))
    done = jnp.zeros((finished.shape[1], blocks, n, _TILE), finished.dtype)
    _, done = lax.fori_loop(*groups, group, (0, done))
    start = jnp.cumsum(chunks) - chunks  # of each group, in blocks

    def at(rows, columns):
        row, column = _cell(rows, h, H), _cell(columns, w, W)
        pixel = (rows - top[row]) * width[column] + columns - left[column]
        block = start[row // G] - start[groups[0]] + pixel // _TILE
        slot = ((block * G + row % G) * w + column) * _TILE + pixel % _TILE
        return done.reshape(len(done), -1)[:, slot]

    return at


def _all_scores(scores: Float[Array, "n C P"]) -> Float[Array, "n C P"]:
    return scores


def _winner(decide: Decide | None) -> Callable[[Float[Array, "n C P"]], Int[Array, "n 1 P"]]:
    def winner(scores: Float[Array, "n C P"]) -> Int[Array, "n 1 P"]:
        decided = scores if decide is None else jax.vmap(decide)(scores)
        return jnp.argmax(decided, axis=1, keepdims=True).astype(jnp.int32)

    return winner


def _extents(n, N):
    """([n], [n]) first pixel of each cell of an axis, and how many it has."""
    first = _first_pixel(np.arange(n + 1), n, N)
    return first[:-1], first[1:] - first[:-1]


def _chunks(grid, size, G):
    """[groups] tiles of the largest cell of each group of G rows of cells."""
    (h, w), (H, W) = grid, size
    (_, height), (_, width) = _extents(h, H), _extents(w, W)
    rows = np.minimum(np.arange(-(-h // G) * G), h - 1).reshape(-1, G)
    return -(-height[rows].max(axis=1) * width.max() // _TILE)


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


def _in_bounds(index, n):
    return (index >= 0) & (index < n)


def _in_disc(squared_distance, sigma):
    # The disc is closed: rounding must not cut off whole pixels lying on its rim.
    return squared_distance <= 9 * sigma**2 * (1 + 1e-6)


def _colours(picture, rows, columns) -> list[Array]:
    """Red, green, blue at pixel rows and columns, clamped to the true size.

    An array a channel: a slice of one array inside the loop over a window would cost XLA's CPU
    backend its vector instructions, three times the time.
    """
    (H, W) = picture.size
    rows, columns = jnp.clip(rows, 0, H - 1), jnp.clip(columns, 0, W - 1)
    colours = picture.pixels[(rows - picture.top) * picture.stride + columns]
    return [colours[..., channel].astype(jnp.float32) for channel in range(3)]


def _windows(maps: Float[Array, "h w K"], row, column, taps) -> Float[Array, "n T*T K"]:
    """The taps around cells [n]; beyond the grid, where W is 0, the border's."""
    h, w, K = maps.shape
    rows = jnp.clip(row[:, None] + taps, 0, h - 1)  # [n, T]
    columns = jnp.clip(column[:, None] + taps, 0, w - 1)
    return maps[rows[:, :, None], columns[:, None]].reshape(len(row), -1, K)


def _options(scores, guide, spatial_sigma, range_sigma, form):
    _check(spatial_sigma, range_sigma, form)
    if scores.ndim != 3 or 0 in scores.shape:
        raise ValueError(f"scores must be [C, h, w], found shape {scores.shape}; vmap batches")
    if guide.ndim != 3 or guide.shape[2] != 3 or 0 in guide.shape:
        raise ValueError(
            f"guide must be [H, W, 3], found shape {guide.shape}; repeat grey, drop alpha"
        )
    if not (guide.dtype == jnp.uint8 or jnp.issubdtype(guide.dtype, jnp.floating)):
        raise ValueError(f"guide must be float in 0..1 or uint8, found {guide.dtype}")
    return spatial_sigma, range_sigma, form


def _check(spatial_sigma, range_sigma, form):
    choose("upsampling form", form, FORMS)
    for name, sigma in {"spatial_sigma": spatial_sigma, "range_sigma": range_sigma}.items():
        if not sigma > 0:
            raise ValueError(f'{name} must be positive, found {sigma}; "bilinear" needs neither')
    if form == "kopf" and spatial_sigma < 0.25:
        raise ValueError(
            f"spatial_sigma must be at least 0.25 low-resolution pixels for the form 'kopf', found "
            f"{spatial_sigma}: the disc of 3 sigma can hold no patch; choose 'dense' or 'bilinear'"
        )

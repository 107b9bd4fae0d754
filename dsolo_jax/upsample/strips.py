"""Upsampling of pictures of any size, in bounded memory.

PAMR is `pamr`'s. Of the other forms: a picture is cut into strips, each some rows of cells; a strip
is taken tile by tile, a tile being 16 pixels of one cell in raster order: one small matrix product
[C, taps] x [taps, 16] each.

No shape in a strip's program depends on the picture: how many tiles there are is a number that the
program is given. So for one number of classes, grid and form a few lengths of strips, with a
program for each, serve all pictures.

Letters: C scores, K scores after `decide`, h w the grid of patches, H W the size of the picture, L
pixels of a strip; in a block of tiles G rows of cells, n = G w tiles, P = 16 pixels a tile, T x T
taps a window.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Integer, Shaped, UInt8

from dsolo_jax.upsample import pamr
from dsolo_jax.upsample.weights import WINDOWS, Kernel, Tiles, centre_pixel, first_pixel, product
from dsolo_jax.utils.checks import choose

FORMS = (*WINDOWS, "pamr")

# Scores of a pixel, and arrays that are given, to the scores that are wanted of it; hashable, for
# each has programs of its own.
Decide = Callable[..., Float[Array, "K ..."]]

# Pixels of a tile: the narrowest product that fills XLA's vectors on CPU; the fewer, the less work
# is done in vain.
TILE = 16


class _Limits(NamedTuple):
    block: int  # numbers that a block of tiles may hold of any one kind (weights, scores)
    # Pixels of a strip, L: the first that holds the whole picture, or else the last. Scores are a
    # number a class, so their strips are shorter.
    labels: tuple[int, ...]
    scores: tuple[int, ...]


# A block should stay in the caches of a CPU; accelerators want large products (16 MiB of float32).
_CPU = _Limits(1 << 17, (1 << 14, 1 << 16, 1 << 18), (1 << 14, 1 << 16))
_ACCELERATOR = _Limits(1 << 22, (1 << 16, 1 << 18, 1 << 20, 1 << 22), (1 << 16, 1 << 20))


@functools.partial(jax.jit, static_argnames=("spatial_sigma", "range_sigma", "form"))
def joint_bilateral(
    scores: Float[Array, "C h w"],
    guide: Float[Array, "H W 3"] | UInt8[Array, "H W 3"],
    *,
    spatial_sigma: float = 1.0,
    range_sigma: float = 0.1,
    form: str = "kopf",
) -> Float[Array, "C H W"]:
    """Upsamples scores to every pixel: a weighted mean of those around it, guided by the colours.

    Pure: to be jitted and vmapped; each size of picture has a program of its own. It has a
    derivative in the scores, forward and reverse (which keeps H W T² weights). The guide is not
    meant to be differentiated: for "dense", reverse raises JAX's error.

    Args:
        scores: low-resolution scores of C classes.
        guide: the picture, float in 0..1 or uint8.
        spatial_sigma: in low-resolution pixels; the window is cut at 3 of them.
        range_sigma: in units of the guide's 0..1, over the three channels together.
        form: "kopf": range weights between a pixel and the patches' centres (Kopf et al. 2007);
            "dense": the bilinear picture, filtered with range weights between pixels (M2N2, CVPR
            2025); "bilinear": no filter, both sigmas unused. The formulas are in `weights`.
            "pamr": the bilinear picture, refined step by step, both sigmas unused, see `pamr`.

    Raises:
        ValueError: for arrays of other shapes, an unknown form, a sigma that is not positive, or a
            "kopf" window so narrow (spatial_sigma < 0.25) that it can miss every patch.
    """
    kernel = Kernel(form, spatial_sigma, range_sigma)
    _check(scores, guide, kernel)
    if form == "pamr":
        return pamr.whole(scores, guide)
    H, W, _ = guide.shape
    group, _, ((*place, groups, tiles),) = cut((H, W), scores.shape, (H * W,), spatial_sigma, form)
    centres, loops = at_centres(guide, scores.shape), (int(groups), int(tiles))
    flat = upsample(scores, guide.reshape(-1, 3), centres, place, loops, kernel, group)
    return flat.reshape(-1, H, W)


def labels(
    scores: Float[Array, "C h w"],
    pixels: UInt8[np.ndarray, "H W 3"],
    *,
    spatial_sigma: float = 1.0,
    range_sigma: float = 0.1,
    form: str = "kopf",
    decide: Decide | None = None,
    given: tuple[Any, ...] = (),
) -> Callable[[], Int[np.ndarray, "H W"]]:
    """Starts upsampling and returns a function that waits for the label of every pixel, int32.

    The label is the class with the largest of the scores that `joint_bilateral` has there, the
    first one on a tie; the [C, H, W] scores are never held. Labels have no derivative.

    Args:
        scores: on the device that is to do the work.
        spatial_sigma, range_sigma, form: see `joint_bilateral`, the errors too.
        decide: hashable; applied to the upsampled scores before the argmax.
        given: arrays that `decide` is given besides, of which only the shapes decide programs.
    """
    kernel = Kernel(form, spatial_sigma, range_sigma)
    started = list(_parts(scores, pixels, kernel, decide, given, argmax=True))

    def fetch() -> Int[np.ndarray, "H W"]:
        whole = np.empty((1, *pixels.shape[:2]), np.int32)
        for part, put in started:
            put(whole, np.asarray(part))
        return whole[0]

    return fetch


def scores(
    scores: Float[Array, "C h w"],
    pixels: UInt8[np.ndarray, "H W 3"],
    *,
    spatial_sigma: float = 1.0,
    range_sigma: float = 0.1,
    form: str = "kopf",
    decide: Decide | None = None,
    given: tuple[Any, ...] = (),
) -> Float[np.ndarray, "K H W"]:
    """Upsamples as `joint_bilateral` does, then `decide`; arguments and errors as of `labels`."""
    kernel = Kernel(form, spatial_sigma, range_sigma)
    whole = np.empty((0, *pixels.shape[:2]), np.float32)
    for part, put in _parts(scores, pixels, kernel, decide, given):
        if not len(whole):
            whole = np.empty((len(part), *pixels.shape[:2]), np.float32)
        put(whole, np.asarray(part))
    return whole


def areas(
    scores: Float[Array, "C h w"],
    pixels: UInt8[np.ndarray, "H W 3"],
    *,
    num_labels: int,
    spatial_sigma: float = 1.0,
    range_sigma: float = 0.1,
    form: str = "kopf",
    decide: Decide | None = None,
) -> Int[Array, "K"]:
    """Starts counting the pixels of each label that `labels` gives; on the device, not waited for.

    Args:
        num_labels: K; the other arguments and errors as of `labels`.
    """
    kernel = Kernel(form, spatial_sigma, range_sigma)
    count = sum(
        _count(part[0], num_labels)
        for part, _ in _parts(scores, pixels, kernel, decide, (), argmax=True)
    )
    # What fills up a part is 0.
    return count.at[0].set(math.prod(pixels.shape[:2]) - count[1:].sum(dtype=jnp.int32))


@functools.partial(jax.jit, static_argnames="num_labels")
def _count(labels: Integer[Array, "L"], num_labels: int) -> Int[Array, "K"]:
    return jnp.zeros(num_labels, jnp.int32).at[labels].add(1)


def _parts(
    scores: Float[Array, "C h w"],
    pixels: UInt8[np.ndarray, "H W 3"],
    kernel: Kernel,
    decide: Decide | None,
    given: tuple[Any, ...],
    argmax: bool = False,
) -> Iterator[tuple[Shaped[Array, "K L"], Callable[[np.ndarray, np.ndarray], None]]]:
    """Starts the parts of a picture; yields them, and functions as of `pamr.tiles`."""
    check_pixels(scores, pixels, kernel)
    if kernel.form == "pamr":
        return pamr.tiles(scores, pixels, decide, given, argmax)
    lengths = limits().labels if argmax else limits().scores
    return _strips(scores, pixels, lengths, kernel, decide, given, argmax)


# ------------------------------------------------------------------------------- strips


def limits() -> _Limits:
    return _CPU if jax.default_backend() == "cpu" else _ACCELERATOR


def cut(
    size: tuple[int, int],
    shape: Sequence[int],
    lengths: Sequence[int] | None = None,
    spatial_sigma: float = 1.0,
    form: str = "kopf",
) -> tuple[int, int, Int[np.ndarray, "strips 7"]]:
    """Cuts a picture of `size` (H, W) for scores of `shape` (C, h, w), between rows of cells.

    Args:
        lengths: L to choose from, those of `labels` if None; the last is doubled where it does not
            hold one row of cells.

    Returns:
        G, L, and of each strip: H, W, the first pixel row held, the first wanted, the first group
        of G rows of cells, how many groups, tiles a cell.
    """
    (H, W), (C, h, w) = size, shape
    window = (2 * WINDOWS[form][0](spatial_sigma) + 1) ** 2
    lengths = lengths or limits().labels
    # Pixel rows beyond its own that a strip holds for its pixels' windows.
    halo = math.ceil(3 * spatial_sigma * H / h) if form == "dense" else 0

    def fit(length: int) -> int:
        """Rows of cells that a strip holds, wherever it lies."""
        return h if H * W <= length else (length // W - 2 * halo) * h // H

    length = next((L for L in lengths if H * W <= L), lengths[-1])
    while fit(length) < 1:
        length *= 2
    most = min(max(limits().block // (w * TILE * max(C, window)), 1), h)
    group = -(-h // -(-h // most))  # evenly: the last one should not be nearly empty
    while group > fit(length):
        group = -(-group // 2)
    groups = -(-h // group)
    step = groups if fit(length) == h else fit(length) // group
    first = np.arange(0, groups, step)
    wanted = first_pixel(first * group, h, H)
    held, count = np.maximum(wanted - halo, 0), np.minimum(step, groups - first)
    tiles = tiles_of_cell(size, shape)
    places = np.broadcast_arrays(H, W, held, wanted, first, count, tiles)
    return group, length, np.stack(places, axis=1).astype(np.int32)


def _strips(
    scores: Float[Array, "C h w"],
    pixels: UInt8[np.ndarray, "H W 3"],
    lengths: Sequence[int],
    kernel: Kernel,
    decide: Decide | None,
    given: tuple[Any, ...],
    argmax: bool,
) -> Iterator[tuple[Shaped[Array, "K L"], Callable[[np.ndarray, np.ndarray], None]]]:
    """Starts the strips one by one."""
    (H, W, _), flat = pixels.shape, pixels.reshape(-1, 3)
    group, length, places = cut((H, W), scores.shape, lengths, kernel.spatial_sigma, kernel.form)
    centres = at_centres(pixels, scores.shape)
    starts = [W * int(wanted) for wanted in places[:, 3]]
    for place, start, stop in zip(places, starts, [*starts[1:], H * W], strict=True):
        strip = np.zeros((length, 3), np.uint8)
        held = flat[W * place[2] :][:length]
        strip[: len(held)] = held

        def put(whole, part, start=start, stop=stop):
            whole.reshape(-1, H * W)[:, start:stop] = part[:, : stop - start]

        arrays, options = (
            (scores, strip, centres, place[:5]),
            (kernel, group, decide, given, argmax),
        )
        if jax.default_backend() == "cpu":
            yield _program(*arrays, place[5:], *options), put
        else:  # which would wait for the host after every round of a loop of unknown length
            groups, tiles = map(int, place[5:])
            yield _program_of_loops(*arrays, (groups, rounded(tiles)), *options), put


def tiles_of_cell(size: tuple[int, int], shape: Sequence[int]) -> int:
    """Counts the tiles of the largest cell of a picture of `size` for scores of `shape`."""
    (H, W), (_, h, w) = size, shape
    return -(-(-(-H // h) * -(-W // w)) // TILE)


def rounded(tiles: int) -> int:
    """The next power of two, so that few programs serve all: what is too many has no pixels."""
    return 1 << max(tiles - 1, 0).bit_length()


def at_centres(picture: Shaped[Array | np.ndarray, "H W 3"], shape) -> Shaped[Array, "h w 3"]:
    """Gives the picture's colours at the patches' centres."""
    _, h, w = shape
    rows = centre_pixel(np.arange(h, dtype=np.int32), h, picture.shape[0])
    columns = centre_pixel(np.arange(w, dtype=np.int32), w, picture.shape[1])
    return picture[rows[:, None], columns]


# --------------------------------------------------------------------------------- core


def upsample(
    scores: Float[Array, "C h w"],
    pixels: Shaped[Array, "L 3"],
    centres: Shaped[Array, "h w 3"],
    place: Sequence[np.int32] | Int[Array, "5"],
    loops: tuple[int, int] | Int[Array, "2"],
    kernel: Kernel,
    group: int,
    decide: Decide | None = None,
    given: tuple[Any, ...] = (),
    argmax: bool = False,
) -> Shaped[Array, "K L"]:
    """Upsamples a strip: scores or labels of its pixels in raster order, behind them zeros.

    `centres` are those of `at_centres`; of the others see `cut`. Where
    `loops` are numbers that Python knows there is a reverse derivative.
    """
    (C, h, w), L, G = scores.shape, len(pixels), group
    H, W, held, wanted, first = (jnp.asarray(x, jnp.int32) for x in place)
    groups, tiles = loops
    reach, weights = WINDOWS[kernel.form]
    R = reach(kernel.spatial_sigma)
    if pixels.dtype == jnp.uint8:
        kernel = kernel._replace(range_sigma=255 * kernel.range_sigma)
    taps = jnp.arange(-R, R + 1, dtype=jnp.int32)
    # Colours at the patch centres go with the scores: a tile needs both of the same taps.
    classes = jnp.moveaxis(jnp.asarray(scores, jnp.float32), 0, -1)
    maps = jnp.concatenate([classes, centres.astype(jnp.float32)], axis=-1)
    column = jnp.tile(jnp.arange(w, dtype=jnp.int32), G)
    left, right = first_pixel(column, w, W), first_pixel(column + 1, w, W)
    width = jnp.maximum(right - left, 1)[:, None]

    def finish(upsampled: Float[Array, "n C P"]) -> Shaped[Array, "n K P"]:
        decided = upsampled
        if decide is not None:
            decided = jax.vmap(lambda one: decide(one, *given))(upsampled)
        if argmax:
            found = jnp.argmax(decided, axis=1, keepdims=True)
            # To be fetched: as few bytes as hold them.
            return found.astype(jnp.uint8 if decided.shape[1] <= 256 else jnp.int32)
        return decided.astype(jnp.float32)

    def one_group(g, out):
        row = jnp.repeat(G * (first + g) + jnp.arange(G, dtype=jnp.int32), w)
        top, bottom = first_pixel(row, h, H), first_pixel(row + 1, h, H)
        # Beyond the grid the taps are the border's: their weights are 0.
        rows = jnp.clip(row[:, None] + taps, 0, h - 1)[:, :, None]
        columns = jnp.clip(column[:, None] + taps, 0, w - 1)[:, None]
        windows = maps[rows, columns].reshape(G * w, -1, C + 3)
        S_q, colours = windows[..., :C].mT, [windows[..., C + channel] for channel in range(3)]
        # Of cells without a pixel, and behind the last row of cells: none.
        count = jnp.where(row < h, (bottom - top) * (right - left), 0)[:, None]

        def one_tile(i, out):
            pixel = TILE * i + jnp.arange(TILE, dtype=jnp.int32)
            clipped = jnp.clip(pixel, 0, jnp.maximum(count - 1, 0))  # [n, P]
            rows, columns = top[:, None] + clipped // width, left[:, None] + clipped % width
            cells = (h, w), (row, column), rows, columns, colours, taps
            W_pq = weights(Tiles(pixels, (H, W), held, *cells, kernel))
            finished = finish(product("ncq,nqp->ncp", S_q, W_pq))
            # What fills up a tile goes nowhere.
            at = jnp.where(pixel < count, (rows - wanted) * W + columns, L)
            return out.at[at].set(finished.mT, mode="drop", unique_indices=True)

        return lax.fori_loop(np.int32(0), tiles, one_tile, out)

    one = jax.eval_shape(finish, jax.ShapeDtypeStruct((1, C, 1), jnp.float32))
    empty = jnp.zeros((L, one.shape[1]), one.dtype)
    return lax.fori_loop(np.int32(0), groups, one_group, empty).T


_STATIC = "kernel", "group", "decide", "argmax"
_program = jax.jit(upsample, static_argnames=_STATIC)
_program_of_loops = jax.jit(upsample, static_argnames=("loops", *_STATIC))


def check_pixels(scores, pixels, kernel: Kernel):
    """Raises a ValueError for what `labels` cannot take."""
    _check(scores, pixels, kernel)
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8, found {pixels.dtype}; multiply 0..1 by 255")


def _check(scores, guide, kernel: Kernel):
    choose("upsampling form", kernel.form, FORMS)
    for name in ("spatial_sigma", "range_sigma"):
        if not getattr(kernel, name) > 0:
            raise ValueError(f"{name} must be positive, found {getattr(kernel, name)}")
    if kernel.form == "kopf" and kernel.spatial_sigma < 0.25:
        raise ValueError(
            f"spatial_sigma must be at least 0.25 for the form 'kopf', found "
            f"{kernel.spatial_sigma}: its disc can hold no patch; choose 'dense' or 'bilinear'"
        )
    if scores.ndim != 3 or 0 in scores.shape:
        raise ValueError(f"scores must be [C, h, w], found shape {scores.shape}; vmap batches")
    if guide.ndim != 3 or guide.shape[2] != 3 or 0 in guide.shape:
        raise ValueError(f"guide must be [H, W, 3], found shape {guide.shape}; repeat grey")
    if not (guide.dtype == jnp.uint8 or jnp.issubdtype(guide.dtype, jnp.floating)):
        raise ValueError(f"guide must be float in 0..1 or uint8, found {guide.dtype}")

"""Labels of a batch of pictures by one program, for accelerators.

A picture by itself costs there more in starting its kernels and in moving its bytes than in work.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Integer, UInt8

from dsolo_jax.upsample import strips
from dsolo_jax.upsample.strips import Decide
from dsolo_jax.upsample.weights import WINDOWS, Kernel


def takes(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], form: str) -> bool:
    """Whether `batch_labels` is for these: on an accelerator, each within one strip, no PAMR."""
    longest = strips.limits().labels[-1]
    fit = all(math.prod(pixels.shape[:2]) <= longest for pixels in pictures)
    return jax.default_backend() != "cpu" and form in WINDOWS and fit


def batch_labels(
    scores: Float[Array, "B C h w"],
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    *,
    spatial_sigma: float = 1.0,
    range_sigma: float = 0.1,
    form: str = "kopf",
    decide: Decide | None = None,
) -> Callable[[], list[Int[np.ndarray, "_ _"]]]:
    """Starts upsampling pictures of any sizes, and returns a function that waits for the labels of
    each, which are those of `labels`.

    Args:
        scores: of the pictures, and behind them of none, whose labels are made in vain.
        pictures: at least one, and such that `takes` says so.
        spatial_sigma, range_sigma, form, decide: see `labels`, the errors too.
    """
    kernel, shape = Kernel(form, spatial_sigma, range_sigma), scores.shape[1:]
    for pixels in pictures:
        strips.check_pixels(jax.ShapeDtypeStruct(shape, scores.dtype), pixels, kernel)
    sizes = [pixels.shape[:2] for pixels in pictures]
    # For all as many tiles as the largest needs, and the pixels of these: all are one strip of one
    # shape, and a program is one number of tiles.
    tiles = strips.rounded(max(strips.tiles_of_cell(size, shape) for size in sizes))
    length = math.prod(shape[1:]) * tiles * strips.TILE
    cuts = [strips.cut(size, shape, (length,), spatial_sigma, form) for size in sizes]
    group, places = cuts[0][0], np.stack([place for _, _, [place] in cuts])
    held = np.zeros((len(scores), length, 3), np.uint8)
    centres = np.zeros((len(scores), *shape[1:], 3), np.uint8)
    for i, pixels in enumerate(pictures):
        held[i, : math.prod(sizes[i])] = pixels.reshape(-1, 3)
        centres[i] = strips.at_centres(pixels, shape)
    missing = len(scores) - len(pictures)
    places = np.concatenate([places, places[-1:].repeat(missing, axis=0)])
    loops = int(places[0, 5]), tiles
    started = _program(scores, held, centres, places[:, :5], loops, kernel, group, decide)

    def fetch() -> list[Int[np.ndarray, "_ _"]]:
        flat = np.asarray(started)
        each = zip(flat, sizes, strict=False)
        return [row[: math.prod(size)].reshape(size).astype(np.int32) for row, size in each]

    return fetch


@functools.partial(jax.jit, static_argnames=("loops", "kernel", "group", "decide"))
def _program(
    scores: Float[Array, "B C h w"],
    held: UInt8[Array, "B L 3"],
    centres: UInt8[Array, "B h w 3"],
    places: Int[Array, "B 5"],
    loops: tuple[int, int],
    kernel: Kernel,
    group: int,
    decide: Decide | None,
) -> Integer[Array, "B L"]:
    def one(scores, held, centres, place):
        of_strip = scores, held, centres, place, loops, kernel, group, decide
        return strips.upsample(*of_strip, argmax=True)[0]

    return jax.vmap(one)(scores, held, centres, places)

"""PIL's resampling of 8-bit pictures as a pure function of arrays, bit for bit.

Along one axis, from n to m samples, s = n / m and r = max(s, 1),

    out[j]  = clip(floor(1/2 + sum_i k[j, i] in[i] / 2^22), 0, 255)
    k[j, i] = floor(1/2 + 2^22 f((i + 1/2 - c_j) / r) / sum_i' f((i' + 1/2 - c_j) / r))
    c_j     = (j + 1/2) s

over the i within the filter's reach of c_j; one axis after the other, rounded to 8 bits in between.
All is integers but the weights, which are made on the host in float64 as PIL makes them. Which axis
comes first is PIL's choice: rows of pixels in its older versions, in newer ones by the sizes.

Source: Pillow, src/libImaging/Resample.c.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image
from PIL import __version__ as pil_version

from dsolo_jax.utils.checks import choose

_BITS = 22  # of a weight, behind the point


class _Filter(NamedTuple):
    code: Image.Resampling
    reach: float
    weigh: Callable[[Float[np.ndarray, "T m"]], Float[np.ndarray, "T m"]]


FILTERS = {
    "box": _Filter(Image.Resampling.BOX, 0.5, lambda x: 1.0 * ((x > -0.5) & (x <= 0.5))),
    "bilinear": _Filter(Image.Resampling.BILINEAR, 1.0, lambda x: np.maximum(1 - np.abs(x), 0)),
}


def resize(
    pixels: UInt8[Array | np.ndarray, "H W 3"], size: tuple[int, int], filter: str
) -> UInt8[Array | np.ndarray, "h w 3"]:
    """Brings a picture to `size` (height, width) as `PIL.Image.resize` does.

    Pure, with static sizes: jit it, vmap it, export it. What PIL of this machine does is looked up
    once for each two sizes, and traced.

    Args:
        filter: "box" or "bilinear".

    Raises:
        ValueError: an unknown filter; a version of PIL that does otherwise.
    """
    choose("filter", filter, FILTERS)
    return _by_axes(pixels, size, _axes(pixels.shape[:2], tuple(size), filter), filter)


def _by_axes(pixels: Any, size: tuple[int, int], axes: tuple[int, int], filter: str) -> Any:
    """Of an array of numpy's or of JAX's, as is what it calls."""
    for axis in axes:
        if pixels.shape[axis] != size[axis]:
            pixels = _resize_axis(pixels, axis, size[axis], filter)
    return pixels


def _resize_axis(pixels: Any, axis: int, samples: int, filter: str) -> Any:
    last = pixels.shape[axis] - 1
    first, weights = _weights(last + 1, samples, filter)
    along = tuple(-1 if i == axis else 1 for i in range(3))
    sums: Any = 1 << (_BITS - 1)
    for t, weight in enumerate(weights):
        taken = pixels.take(np.minimum(first + np.int32(t), last), axis).astype(np.int32)
        sums = sums + taken * weight.reshape(along)
    return (sums >> _BITS).clip(0, 255).astype(np.uint8)


@functools.cache
def _weights(n: int, m: int, filter: str) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "T m"]]:
    """The first sample that each output takes, and what it takes of that and of those behind it."""
    _, reach, weigh = FILTERS[filter]
    scale = n / m
    stretch = max(scale, 1.0)
    reach *= stretch
    centre = (np.arange(m) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int32), 0)
    behind = np.minimum((centre + reach + 0.5).astype(np.int32), n)
    t = np.arange(2 * math.ceil(reach) + 1)[:, None]
    w = weigh((t + first - centre + 0.5) * (1 / stretch)) * (t < behind - first)
    w = w / functools.reduce(np.add, w)  # one by one, as PIL adds them up
    return first, (w * (1 << _BITS) + 0.5).astype(np.int32)


@functools.cache
def _axes(size: tuple[int, int], to: tuple[int, int], filter: str) -> tuple[int, int]:
    """The axes in the order in which PIL takes them, found by pictures of noise.

    The smaller the result, the more pictures it takes to tell the orders apart; where these do not,
    they differ in next to none.
    """
    random = np.random.default_rng(0)
    left = [(1, 0), (0, 1)]
    for i in range(1 + min(2**12 // math.prod(to), 31)):
        noise = random.integers(0, 256, (*size, 3), np.uint8)
        noise = noise if i % 2 == 0 else noise // 128 * 255
        wanted = np.asarray(Image.fromarray(noise).resize(to[::-1], FILTERS[filter].code))
        left = [axes for axes in left if np.array_equal(_by_axes(noise, to, axes, filter), wanted)]
        if len(left) < 2:
            break
    if not left:
        raise ValueError(
            f"Pillow {pil_version} resizes {size} to {to} by {filter!r} in another way than is "
            "known here; install Pillow 10.3 to 13"
        )
    return left[0]

"""From a picture's own patch grid, h x w, to the square grid of the graph, r x r."""

from functools import reduce

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def resample_maps(
    maps: Float[Array, "C n"], grid: Int[Array | np.ndarray, "2"], side: int
) -> Float[Array, "C N"]:
    """Resamples bilinearly, half-pixel centres, maps over h · w patches to N = side · side.

    Args:
        maps: h · w values in raster order, whatever comes behind them is padding.
        grid: (h, w), may be traced.
        side: r.

    Source: CLIPer (whose class maps go to Stable Diffusion's grid so); no antialiasing.
    """
    corners, weights = _bilinear(grid, side)
    pairs = zip(corners, weights, strict=True)
    return reduce(jnp.add, (maps[:, index] * weight for index, weight in pairs))


def resample_attention(
    attention: Float[Array, "n n"], grid: Int[Array | np.ndarray, "2"], side: int
) -> Float[Array, "N N"]:
    """Resamples both sides of a patch-to-patch attention; rows are brought to sum to one again.

    A row is a density over the picture, so its samples are taken like a map's and renormalised.
    """
    rows = resample_maps(attention.T, grid, side).T  # the patches that look
    both = resample_maps(rows, grid, side)  # the patches looked at
    return both / jnp.sum(both, axis=-1, keepdims=True)


def _bilinear(grid: Int[Array | np.ndarray, "2"], side: int) -> tuple[list[Array], list[Array]]:
    """The four patches around every sample of the r x r grid, and their weights, each [r · r]."""
    h, w = grid
    (top, bottom, down), (left, right, across) = _axis(h, side), _axis(w, side)
    corners, weights = [], []
    for row, row_weight in ((top, 1 - down), (bottom, down)):
        for column, column_weight in ((left, 1 - across), (right, across)):
            corners.append((row[:, None] * w + column).ravel())
            weights.append((row_weight[:, None] * column_weight).ravel())
    return corners, weights


def _axis(size: Array, side: int) -> tuple[Array, Array, Array]:
    """s = (i + ½) size / side − ½, clamped to the samples there are: floor, ceiling, fraction."""
    s = jnp.clip((jnp.arange(side, dtype=jnp.float32) + 0.5) * size / side - 0.5, 0, size - 1)
    low = jnp.floor(s).astype(jnp.int32)
    return low, jnp.minimum(low + 1, size - 1), s - low

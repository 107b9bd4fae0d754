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
    h, w = grid
    corners = (
        maps[:, (row[:, None] * w + column).ravel()] * (down[:, None] * across).ravel()
        for row, down in _axis(h, side)
        for column, across in _axis(w, side)
    )
    return reduce(jnp.add, corners)


def resample_attention(
    attention: Float[Array, "n n"], grid: Int[Array | np.ndarray, "2"], side: int
) -> Float[Array, "N N"]:
    """Resamples both sides of a patch-to-patch attention; rows are brought to sum to one again.

    A row is a density over the picture, so its samples are taken like a map's and renormalised.
    """
    rows = resample_maps(attention.T, grid, side).T  # the patches that look
    both = resample_maps(rows, grid, side)  # the patches looked at
    return both / jnp.sum(both, axis=-1, keepdims=True)


def _axis(size: Array, side: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The samples on either side of s = (i + ½) size / side − ½, and what each of them weighs."""
    s = jnp.clip((jnp.arange(side, dtype=jnp.float32) + 0.5) * size / side - 0.5, 0, size - 1)
    low = jnp.floor(s).astype(jnp.int32)
    return (low, 1 - (s - low)), (jnp.minimum(low + 1, size - 1), s - low)

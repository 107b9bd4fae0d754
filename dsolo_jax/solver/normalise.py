"""Suppression of weak patches, the paper's "NMS" (BUILD_NOTES Q3: which rule it is, is open)."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from dsolo_jax.utils.checks import choose


def suppress(
    f: Float[Array, "C N"], *, rule: str = "range", below: float = 0.7
) -> Float[Array, "C N"]:
    """Sets weak patches to zero; those kept keep their value.

    Rules, as masks of what is kept:
        "none":    everything.
        "range":   f - min >= below · (max - min), min and max of the class over its patches: what
                   min-max normalisation brings to `below` or more. A constant class is kept.
        "maximum": f >= below · max, of the class over its patches.
        "winner":  in every patch the class with the largest value, the first one on a tie.
        "spatial": what no patch of its 3x3 neighbourhood exceeds; plateaus are kept.

    Zero is the weakest value only where f >= 0, so maps with negative entries are to be normalised
    first.

    Args:
        f: one map a class over N patches, row by row.
        rule: one of the above.
        below: the fraction, 0..1, of "range" and "maximum".

    Raises:
        ValueError: for an unknown rule, a fraction outside 0..1, an f that is not [C, N], or
            "spatial" where N is not a square.

    Source: the paper names NMS without its rule; "range" at 0.7 is ours (BUILD_NOTES Q3).
    """
    choose("suppression rule", rule, RULES)
    if not 0 <= below <= 1:
        raise ValueError(f"`below` is a fraction in 0..1, found {below}; 0 keeps every patch")
    if f.ndim != 2:
        raise ValueError(f"f must be [C, N], found shape {f.shape}; flatten the grid, vmap batches")
    return jnp.where(RULES[rule](f, below), f, 0)


def _none(f: Float[Array, "C N"], below: float) -> Bool[Array, "C N"]:
    """Ours: no suppression, the ablation's row II."""
    return jnp.ones_like(f, bool)


def _range(f: Float[Array, "C N"], below: float) -> Bool[Array, "C N"]:
    """Q3 (a), below a threshold: of the class's range, which min-max normalisation makes 0..1."""
    weakest = f.min(axis=1, keepdims=True)
    return f - weakest >= below * (f.max(axis=1, keepdims=True) - weakest)


def _maximum(f: Float[Array, "C N"], below: float) -> Bool[Array, "C N"]:
    """Q3 (a), below a fraction of the class maximum."""
    return f >= below * f.max(axis=1, keepdims=True)


def _winner(f: Float[Array, "C N"], below: float) -> Bool[Array, "C N"]:
    """Q3 (b), per patch only the winning class."""
    return jnp.arange(f.shape[0])[:, None] == f.argmax(axis=0)


def _spatial(f: Float[Array, "C N"], below: float) -> Bool[Array, "C N"]:
    """Q3 (c), the non-maximum suppression of detectors and edge finders, over 3x3 patches."""
    C, N = f.shape
    r = math.isqrt(N)
    if r * r != N:
        raise ValueError(
            f"spatial suppression needs a square grid, found N = {N} patches; "
            'interpolate the maps to r·r patches or choose the rule "range"'
        )
    grid = f.reshape(C, r, r)
    strongest = lax.reduce_window(grid, -jnp.inf, lax.max, (1, 3, 3), (1, 1, 1), "SAME")
    return (grid >= strongest).reshape(C, N)


RULES = {
    "none": _none,
    "range": _range,
    "maximum": _maximum,
    "winner": _winner,
    "spatial": _spatial,
}

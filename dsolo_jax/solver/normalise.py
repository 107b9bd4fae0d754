"""Cosines to class maps: weak patches suppressed first, then each map over its patches."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax.solver.fixed_point import check
from dsolo_jax.utils.checks import choose

RULES = ("none", "range")


def suppress(
    f: Float[Array, "C N"], *, rule: str = "range", below: float = 0.7
) -> Float[Array, "C N"]:
    """Takes what speaks for a class from its weak patches; the others keep their value.

        f <- min(f, 0)  where  f - min f < below · (max f - min f)

    min and max are the class's over its patches. It comes before any normalisation. Of positive
    cosines this sets the weak ones to zero; below zero they are left, or they would outdo the
    strong ones of a map that is negative throughout. A constant map has no weak patches.

    Args:
        f: one map a class over N patches.
        rule: "range", as above, or "none", which suppresses nothing.
        below: the fraction of a class's range, 0..1.

    Raises:
        ValueError: an unknown rule, a fraction outside 0..1, an f that is not [C, N].

    Source: the notes on the paper name NMS, before normalisation, without its rule; this one is
    ours (docs/method.md).
    """
    choose("suppression rule", rule, RULES)
    if not 0 <= below <= 1:
        raise ValueError(f"`below` is a fraction in 0..1, found {below}; 0 keeps every patch")
    check(f, maps=False)
    if rule == "none":
        return f
    least, most = (reduce(f, axis=-1, keepdims=True) for reduce in (jnp.min, jnp.max))
    return jnp.where(f - least >= below * (most - least), f, jnp.minimum(f, 0))


def _minmax(f: Array, temperature: Array) -> Array:
    """`(f - min) / (max - min)` of each class over its patches; a constant map becomes ones."""
    low, high = (reduce(f, axis=-1, keepdims=True) for reduce in (jnp.min, jnp.max))
    flat = high <= low
    return jnp.where(flat, 1.0, (f - low) / jnp.where(flat, 1.0, high - low))


# The notes on the paper say "normalised" and no more (docs/method.md).
NORMALISERS = {
    # N · softmax over patches: a density, 1 where it is uniform's.
    "softmax": lambda f, temperature: f.shape[-1] * jax.nn.softmax(f / temperature, axis=-1),
    "minmax": _minmax,
    # CLIP's own logits, where they are above zero.
    "logits": lambda f, temperature: jnp.maximum(100 * f, 0),
}


def normalise(
    f: Float[Array, "C N"], *, rule: str = "softmax", temperature: Array | Any = 1.0
) -> Float[Array, "C N"]:
    """Makes non-negative maps over patches of cosines, by one of `NORMALISERS`.

    Args:
        f: cosines of each class with each patch.
        rule: "softmax" (mean 1), "minmax" (largest entry 1) or "logits" (100 · f).
        temperature: of the softmax, in units of f.

    Raises:
        ValueError: unknown rule.
    """
    return NORMALISERS[choose("normalisation", rule, NORMALISERS)](f, temperature)

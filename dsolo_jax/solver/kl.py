"""The discrepancy without a graph: pointwise Kullback-Leibler terms."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax.utils.checks import choose

_FLOOR = 1e-12  # of N·q: a suppressed patch is very, not infinitely, far from uniform


def _log_ratio(log_nq: Array) -> Array:
    """`log(q / s)`: robust; large where the class is. For upright maps (ours)."""
    return log_nq


def _divergence(log_nq: Array) -> Array:
    """`s · log(s / q)`, the terms of D(S‖Q): paper; large where the map is small."""
    return -log_nq / log_nq.shape[-1]


SIGNS = {"log_ratio": _log_ratio, "divergence": _divergence}


def kl_discrepancy(f: Float[Array, "C N"], *, sign: str = "log_ratio") -> Float[Array, "C N"]:
    """Pointwise discrepancy of each class map to the uniform distribution over patches.

        q = f / Σ f,   s = 1 / N,   score = log(q / s)  or  s · log(s / q)

    Args:
        f: [C, N] non-negative class maps with a positive sum; each row is divided by it.
        sign: "log_ratio" (the robust reading) or "divergence" (the paper's D(S‖Q)). The two point
            in opposite directions; the second one suits maps that are small on their own class.

    Returns:
        [C, N] scores; zero everywhere for a uniform map.

    Raises:
        ValueError: unknown sign.
    """
    q = f / jnp.sum(f, axis=-1, keepdims=True)
    return SIGNS[choose("KL sign", sign, SIGNS)](jnp.log(jnp.maximum(q * f.shape[-1], _FLOOR)))

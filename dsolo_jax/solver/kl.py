"""The discrepancy without a graph: pointwise Kullback-Leibler terms."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax.solver.fixed_point import check

_FLOOR = 1e-12  # of N·q: a patch without mass is very, not infinitely, far from uniform


def kl_discrepancy(f: Float[Array, "C N"]) -> Float[Array, "C N"]:
    """Scores each patch by the class map's divergence from the uniform distribution there.

        q = f / Σ f,   s = 1 / N,   D(S‖Q) = Σ s · log(s / q),   d = N · s · log(s / q) = -log(N q)

    Args:
        f: [C, N] non-negative class maps with a positive sum; each row is divided by it.

    Raises:
        ValueError: an f of another shape, negative or not finite.

    Returns:
        [C, N] scores -d, differentiable in f; zero everywhere for a uniform map.

    Source: DSLO notes, row II of the ablation.
    """
    check(f)
    f = f.astype(jnp.float32)
    q = f / jnp.sum(f, axis=-1, keepdims=True)
    return jnp.log(jnp.maximum(q * f.shape[-1], _FLOOR))

"""Attention made doubly stochastic, so that it is the transition of a Markov chain."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax.solver.fixed_point import Scaled, backward, check, forward, held


def doubly_stochastic(attention: Float[Array, "N N"], num_iters: int = 15) -> Float[Array, "N N"]:
    """Scales attention by iterative proportional fitting: columns, then rows, in each iteration.

        T = diag(r) A diag(c),    c ← 1 / (r A),    r ← 1 / (A c)

    The scaling vectors alone are iterated; the matrix is written once, at the end. Rows then sum to
    one; columns do up to the fit's error (about 1e-2 after 15 iterations). A row or column of zeros
    stays so. It can be differentiated, forwards and in reverse.

    Args:
        attention: [N, N], non-negative, rows are the patches that look.
        num_iters: the paper's 15; 0 returns the attention as it is.

    Raises:
        ValueError: an attention that is not [N, N].

    Source: DSLO notes (15 iterations), mechanics of M2N2 (CVPR 2025).
    """
    rows, matrix, columns = fitted(attention, num_iters)
    return rows[:, None] * matrix.astype(jnp.float32) * columns


def fitted(attention: Float[Array, "N N"], num_iters: int) -> Scaled:
    """Fits the vectors of `doubly_stochastic`, and leaves the matrix as it is."""
    check(attention, attention, maps=False)
    matrix = held(attention)

    def fit(_, scaling):
        rows, _ = scaling
        columns = _reciprocal(forward(rows, matrix))
        return _reciprocal(backward(columns, matrix)), columns

    ones = jnp.ones((1, len(matrix)), jnp.float32)
    rows, columns = jax.lax.fori_loop(0, num_iters, fit, (ones, ones))
    return Scaled(rows[0], matrix, columns[0])


def _reciprocal(x: Array) -> Array:
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))

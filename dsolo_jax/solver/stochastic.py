"""Attention made doubly stochastic, and its temperature."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax.solver.products import backward, forward


def _reciprocal(x: Array) -> Array:
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)


def doubly_stochastic(attention: Float[Array, "N N"], num_iters: int = 15) -> Float[Array, "N N"]:
    """Iterative proportional fitting: columns, then rows, in each iteration.

        T = diag(r) A diag(c),    c ← 1 / (r A),    r ← 1 / (A c)

    The scaling vectors alone are iterated; the matrix is written once, at the end. Rows then sum to
    one; columns do up to the fit's error (about 1e-2 after 15 iterations). A row or column of zeros
    stays so.

    Args:
        attention: [N, N], non-negative, rows are the patches that look.
        num_iters: the paper's 15; 0 returns the attention as it is.

    Source: DSLO notes (15 iterations), mechanics of M2N2 (CVPR 2025).
    """
    if num_iters == 0:
        return attention
    attention = attention.astype(jnp.float32)

    def body(_, rows_columns):
        rows, _ = rows_columns
        columns = _reciprocal(forward(rows, attention))
        return _reciprocal(backward(columns, attention)), columns

    ones = jnp.ones((1, attention.shape[0]), jnp.float32)
    rows, columns = jax.lax.fori_loop(0, num_iters, body, (ones, ones))
    return rows[0, :, None] * attention * columns[0, None, :]


def sharpen(attention: Float[Array, "N N"], temperature: float) -> Float[Array, "N N"]:
    """`softmax(log A / temperature)` along rows; below 1 it sharpens, 1 changes nothing.

    Source: M2N2, temperature 0.65; the notes on DSLO mention none.
    """
    if temperature <= 0:
        raise ValueError(f"attention temperature is {temperature}; it must be above 0 (1: as is)")
    return jax.nn.softmax(jnp.log(attention.astype(jnp.float32)) / temperature, axis=-1)

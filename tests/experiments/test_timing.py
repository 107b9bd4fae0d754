"""FLOPs counted from the traced program."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks.timing import product_flops


def _loop(x):
    return jax.lax.fori_loop(0, 5, lambda i, x: jax.jit(jnp.matmul)(x, x), x)


def _convolution(x):
    image, kernel = x.reshape(1, 4, 9, 1), x.reshape(3, 3, 1, 4)
    return jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x: x + 1, 0),
        (lambda x: x @ x.T, 2 * 6 * 6 * 6),
        (lambda x: x[:, :2] @ x[:2], 2 * 6 * 2 * 6),
        (jax.vmap(lambda x: x[None] @ x[:, None]), 6 * 2 * 6),
        (_loop, 5 * 2 * 6**3),
        (lambda x: jax.lax.map(lambda y: x @ y, x), 6 * 2 * 6 * 6),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x), 2 * 6**3),
        (_convolution, 2 * 4 * 9 * 9 * 4),
    ],
)
def test_flops_are_two_for_each_multiplication(function, flops):
    assert product_flops(function, jnp.ones((6, 6))) == flops

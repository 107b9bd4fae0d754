"""Resampling weights against torch.nn.functional.interpolate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dsolo_jax.transformer import cubic_weights

# Not a program for each of its operations; the identity below goes without.
one_program = jax.jit(cubic_weights, static_argnums=(1, 2))


@pytest.mark.parametrize(
    ("in_size", "out_size"), [(14, 21), (14, 28), (16, 24), (14, 5), (7, 100), (1, 4), (2, 3)]
)
def test_equals_torch_bicubic(in_size, out_size):
    samples = np.random.default_rng(0).standard_normal((1, 1, in_size, 1)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(samples), size=(out_size, 1), mode="bicubic", align_corners=False
    )
    weights = one_program(jnp.arange(out_size), in_size, out_size)
    np.testing.assert_allclose(
        weights @ samples[0, 0], expected.numpy()[0, 0], rtol=1e-5, atol=1e-5
    )


def test_equal_sizes_give_the_identity():
    np.testing.assert_array_equal(cubic_weights(jnp.arange(14), 14, 14), np.eye(14))


def test_weights_sum_to_one():
    weights = one_program(jnp.arange(37), 14, 37)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_sizes_may_be_traced_and_differ_in_a_batch():
    index, sizes = jnp.arange(6), jnp.array([[3], [6], [5]])
    weights = jax.jit(cubic_weights, static_argnums=1)(index, 4, sizes)
    assert weights.shape == (3, 6, 4)
    for row, size in zip(weights, (3, 6, 5), strict=True):
        np.testing.assert_allclose(row[:size], one_program(jnp.arange(size), 4, size), atol=1e-6)

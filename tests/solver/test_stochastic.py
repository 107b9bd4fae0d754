"""doubly_stochastic and kl_discrepancy: defining properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr

from dsolo_jax import solver


@pytest.fixture(scope="module")
def attention():
    logits = 2 * jax.random.normal(jax.random.key(0), (50, 50), jnp.float32)
    return np.asarray(jax.nn.softmax(logits, axis=-1))


@pytest.mark.parametrize("num_iters", [1, 15])
def test_equals_normalising_columns_then_rows(attention, num_iters):
    ours = solver.doubly_stochastic(attention, num_iters)
    np.testing.assert_allclose(ours, fitted(attention.astype(np.float64), num_iters), rtol=1e-4)


def fitted(attention, num_iters):
    for _ in range(num_iters):
        attention = attention / attention.sum(0, keepdims=True)
        attention = attention / attention.sum(1, keepdims=True)
    return attention


def test_derivatives_are_those_of_a_plain_loop(attention):
    change = np.random.default_rng(0).normal(size=attention.shape) * attention
    h, exact = 1e-5, attention.astype(np.float64)
    expected = (fitted(exact + h * change, 15) - fitted(exact - h * change, 15)) / (2 * h)
    tangents = (change.astype(np.float32),)
    _, found = jax.jvp(solver.doubly_stochastic, (attention,), tangents)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    weights = np.random.default_rng(1).normal(size=attention.shape).astype(np.float32)
    _, reverse = jax.vjp(solver.doubly_stochastic, attention)
    [gradient] = reverse(weights)
    assert np.sum(gradient * change) == pytest.approx(np.sum(weights * expected), rel=1e-3)


def test_both_sums_become_one(attention):
    found = np.asarray(solver.doubly_stochastic(attention, 200))
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def test_no_iterations_change_nothing(attention):
    np.testing.assert_array_equal(solver.doubly_stochastic(attention, 0), attention)


def test_rows_and_columns_of_zeros_stay(attention):
    padded = np.pad(attention, (0, 3))
    found = np.asarray(solver.doubly_stochastic(padded))
    np.testing.assert_allclose(found[:50, :50], solver.doubly_stochastic(attention), rtol=1e-5)
    assert not found[50:].any() and not found[:, 50:].any()


def test_everything_stays_float32_under_x64(attention):
    f = np.random.default_rng(0).uniform(0.1, 1, (4, 50))
    with jax.enable_x64(True):
        for num_iters in (0, 15):
            found = solver.doubly_stochastic(attention.astype(np.float64), num_iters)
            assert found.dtype == jnp.float32
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
        assert solver.kl_discrepancy(f).dtype == jnp.float32


def test_kl_terms_sum_to_scipys_divergence():
    f = np.random.default_rng(0).uniform(0.1, 1, (4, 30)).astype(np.float32)
    q = f / f.sum(1, keepdims=True)
    scores = np.asarray(solver.kl_discrepancy(f))
    np.testing.assert_allclose(-scores.mean(1), rel_entr(1 / 30, q).sum(1), rtol=1e-4)


def test_kl_of_a_uniform_map_is_zero_and_of_a_suppressed_patch_finite():
    np.testing.assert_allclose(solver.kl_discrepancy(np.full((2, 9), 3.0)), 0, atol=1e-6)
    sparse = np.asarray(solver.kl_discrepancy(np.eye(3)))
    assert np.isfinite(sparse).all() and (np.argmax(sparse, 1) == np.arange(3)).all()

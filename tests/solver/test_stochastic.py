"""doubly_stochastic, sharpen and kl_discrepancy: defining properties."""

import jax
import numpy as np
import pytest
from scipy.special import rel_entr

from dsolo_jax import solver


@pytest.fixture(scope="module")
def attention():
    return np.asarray(jax.nn.softmax(2 * jax.random.normal(jax.random.key(0), (50, 50)), axis=-1))


@pytest.mark.parametrize("num_iters", [1, 15])
def test_equals_normalising_columns_then_rows(attention, num_iters):
    expected = attention.astype(np.float64)
    for _ in range(num_iters):
        expected = expected / expected.sum(0, keepdims=True)
        expected = expected / expected.sum(1, keepdims=True)
    ours = solver.doubly_stochastic(attention, num_iters)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_both_sums_become_one(attention):
    fitted = np.asarray(solver.doubly_stochastic(attention, 200))
    np.testing.assert_allclose(fitted.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(fitted.sum(1), 1, atol=1e-5)


def test_no_iterations_change_nothing(attention):
    np.testing.assert_array_equal(solver.doubly_stochastic(attention, 0), attention)


def test_rows_and_columns_of_zeros_stay(attention):
    padded = np.pad(attention, (0, 3))
    fitted = np.asarray(solver.doubly_stochastic(padded))
    np.testing.assert_allclose(fitted[:50, :50], solver.doubly_stochastic(attention), rtol=1e-5)
    assert not fitted[50:].any() and not fitted[:, 50:].any()


def test_temperature(attention):
    powers = attention**2
    np.testing.assert_allclose(
        solver.sharpen(attention, 0.5), powers / powers.sum(1, keepdims=True), rtol=1e-4
    )
    np.testing.assert_allclose(solver.sharpen(attention, 1.0), attention, rtol=1e-5)
    with pytest.raises(ValueError, match="temperature is 0"):
        solver.sharpen(attention, 0)


def test_kl_terms_sum_to_scipys_divergence():
    f = np.random.default_rng(0).uniform(0.1, 1, (4, 30))
    q = f / f.sum(1, keepdims=True)
    terms = np.asarray(solver.kl_discrepancy(f, sign="divergence"))
    np.testing.assert_allclose(terms.sum(1), rel_entr(1 / 30, q).sum(1), rtol=1e-4)
    np.testing.assert_allclose(solver.kl_discrepancy(f), -30 * terms, rtol=1e-5)


def test_kl_of_a_uniform_map_is_zero_and_of_a_suppressed_patch_finite():
    np.testing.assert_allclose(solver.kl_discrepancy(np.full((2, 9), 3.0)), 0, atol=1e-6)
    sparse = np.asarray(solver.kl_discrepancy(np.eye(3)))
    assert np.isfinite(sparse).all() and (np.argmax(sparse, 1) == np.arange(3)).all()

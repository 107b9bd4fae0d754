"""Products with a matrix that is scaled, or held in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsolo_jax as dsolo
from dsolo_jax import solver
from dsolo_jax.solver import fixed_point
from dsolo_jax.solver.stochastic import fitted


@pytest.fixture(scope="module")
def attention():
    """Entries that bfloat16 holds exactly."""
    logits = 2 * jax.random.normal(jax.random.key(0), (50, 50), jnp.float32)
    return jax.nn.softmax(logits, axis=-1).astype(jnp.bfloat16)


@pytest.mark.parametrize("product", ["forward", "backward"])
def test_products_in_bfloat16_are_those_of_float32(attention, product):
    f = np.random.default_rng(0).uniform(size=(7, 50)).astype(np.float32) ** 8
    exact, step = np.asarray(attention, np.float64), getattr(fixed_point, product)
    expected = f @ (exact if product == "forward" else exact.T)
    for found in (jax.jit(step)(f, attention), jax.vmap(step, (0, None))(f[None], attention)[0]):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    along = jax.jvp(lambda f: step(f, attention), (f,), (f,))[1]
    np.testing.assert_allclose(along, expected, rtol=1e-6)


def test_what_is_scaled_is_what_is_written(attention):
    f = np.random.default_rng(0).uniform(size=(7, 50)).astype(np.float32)
    scaled, written = fitted(attention, 15), solver.doubly_stochastic(attention)
    np.testing.assert_allclose(
        fixed_point.forward(f, scaled), fixed_point.forward(f, written), rtol=1e-6
    )
    expected, found = (solver.max_velocity(f, x, tau=0.5) for x in (written, scaled))
    np.testing.assert_allclose(found.steps, expected.steps, atol=1e-3)


@pytest.mark.parametrize("method", ["velocity", "path", "propagate", "optimise"])
def test_an_accelerator_solves_in_bfloat16_as_a_cpu_in_float32(attention, method, monkeypatch):
    """The matrices have the same entries; but the path's kernel is rounded."""
    f = np.random.default_rng(0).normal(size=(7, 50)).astype(np.float32) / 20
    expected = dsolo.discrepancy(f, attention, method=method)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    # Jitted functions know nothing of another backend: the same, without their programs.
    found = dsolo.discrepancy.__wrapped__(f, attention, method=method)
    assert fixed_point.held(attention).dtype == jnp.bfloat16
    tolerance = (0.02 if method == "path" else 1e-4) * float(jnp.std(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)

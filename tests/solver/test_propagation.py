"""label_propagation against a dense solve, and what its definition promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsolo_jax import solver

C, N = 4, 49
propagation = jax.jit(solver.label_propagation, static_argnames="alpha")


@pytest.fixture(scope="module")
def world():
    """Cosines, and attention that is not symmetric, with patches 5 and 6 alone."""
    random = np.random.default_rng(0)
    attention = np.exp(3 * random.normal(size=(N, N)))
    for alone in (5, 6):
        attention[alone] = attention[:, alone] = 0
    attention /= np.maximum(attention.sum(1, keepdims=True), 1e-9)
    attention[6, 6] = 1  # looks at itself and nothing else
    f = 0.2 + 0.05 * random.normal(size=(C, N))
    return f.astype(np.float32), attention.astype(np.float32)


def dense(f, attention, alpha):
    """The closed form in float64."""
    w = (attention + attention.T) / 2
    w = w - np.diag(np.diag(w))
    degree = w.sum(1)
    degree[degree == 0] = 1
    s = np.diag(degree**-0.5) @ w @ np.diag(degree**-0.5)
    return np.linalg.solve(np.eye(len(w)) - alpha * s, f.T).T


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.95])
def test_equals_a_dense_solve(world, alpha):
    f, attention = world
    expected = dense(*(x.astype(np.float64) for x in world), alpha)
    found = propagation(f, attention, alpha=alpha)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_patches_without_neighbours_keep_their_value(world):
    f, attention = world
    found = np.asarray(propagation(f, attention))
    np.testing.assert_array_equal(found[:, [5, 6]], f[:, [5, 6]])
    others = np.setdiff1d(np.arange(N), [5, 6])
    without = propagation(f[:, others], attention[np.ix_(others, others)])
    np.testing.assert_allclose(found[:, others], without, rtol=1e-5)


def test_jitted_or_mapped_it_is_the_same(world):
    f, attention = world
    alone = np.asarray(solver.label_propagation(f, attention))
    np.testing.assert_allclose(propagation(f, attention), alone, rtol=1e-6)
    batch = np.stack([f, f[::-1]]), np.stack([attention, attention.T])
    mapped = np.asarray(jax.jit(jax.vmap(solver.label_propagation))(*batch))
    np.testing.assert_allclose(mapped[0], alone, rtol=1e-6)
    np.testing.assert_allclose(mapped[1], alone[::-1], rtol=1e-6)  # W is symmetric, classes apart


def test_each_class_is_solved_by_itself(world):
    """A class that is far harder, or zero, changes no other."""
    f, attention = world
    harder = np.concatenate([f, 1e4 * np.eye(1, N, 9, dtype=np.float32), np.zeros_like(f[:1])])
    found = np.asarray(propagation(harder, attention))
    np.testing.assert_allclose(found[:C], propagation(f, attention), rtol=1e-6)
    assert not found[-1].any()


def test_gradients_are_those_of_the_dense_solve(world):
    """In the maps both ways, in the graph against finite differences of the dense solve."""
    f, attention = world
    random = np.random.default_rng(1)
    weight = random.normal(size=f.shape).astype(np.float32)
    change = (random.normal(size=attention.shape) * attention).astype(np.float32)

    def loss(f, attention):
        return jnp.sum(weight * solver.label_propagation(f, attention))

    of_f, of_graph = jax.jit(jax.grad(loss, argnums=(0, 1)))(f, attention)
    f, attention, weight, change = (x.astype(np.float64) for x in (f, attention, weight, change))
    expected = dense(weight, attention, 0.95)  # the solve is linear and symmetric
    np.testing.assert_allclose(of_f, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    h = 1e-4
    ends = [np.sum(weight * dense(f, attention + sign * h * change, 0.95)) for sign in (1.0, -1.0)]
    assert np.sum(np.asarray(of_graph) * change) == pytest.approx(
        (ends[0] - ends[1]) / (2 * h), rel=1e-3
    )


def test_no_second_copy_of_the_graph_is_made():
    """S alone is written, [N, N] once: it is symmetric, and no product turns it round."""
    n = 256
    given = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, n), (n, n)))
    compiled = jax.jit(solver.label_propagation).lower(*given).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * 4 * n * n


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 2, float("nan")])
def test_shares_out_of_range_are_named(world, alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}; wanted a number from 0 to below 1"):
        solver.label_propagation(*world, alpha=alpha)
    with pytest.raises(ValueError, match="f has shape"):
        solver.label_propagation(world[0], world[1][:3])

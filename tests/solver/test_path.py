"""optimal_path against POT, ott-jax and a case in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.sinkhorn import Sinkhorn

from dsolo_jax import solver
from dsolo_jax.solver.path import COSTS, needs_log_domain

N, C = 60, 3


@pytest.fixture(scope="module")
def f():
    maps = np.random.default_rng(0).uniform(size=(C, N)).astype(np.float32)
    maps[0, :5] = 0  # suppressed patches
    return maps


@pytest.fixture(scope="module")
def cost():
    x = np.random.default_rng(1).uniform(size=(N, 2))
    distance = np.square(x[:, None] - x[None]).sum(-1) + 0.1 * np.arange(N)[:, None] / N
    return (distance / distance.max()).astype(np.float32)


def plans(result, cost, epsilon):
    return np.exp(
        np.asarray(result.log_u, np.float64)[:, :, None]
        + np.asarray(result.log_v, np.float64)[:, None, :]
        - cost / epsilon
    )


@pytest.mark.parametrize("epsilon, rounds", [(0.1, 200), (0.02, 1000), (0.004, 5000)])
def test_plans_equal_pot(f, cost, epsilon, rounds):
    result = solver.optimal_path(f, cost, epsilon=epsilon, num_iters=rounds)
    ours = plans(result, cost, epsilon)
    for c in range(C):
        q = f[c].astype(np.float64) / f[c].sum()
        theirs = ot.bregman.sinkhorn_log(
            np.maximum(q, 1e-300),
            np.full(N, 1 / N),
            cost,
            epsilon,
            numItermax=rounds,
            stopThr=1e-10,
        )
        assert np.abs(ours[c] - theirs).sum() <= 1e-3
    np.testing.assert_allclose(ours.sum(1), 1 / N, atol=1e-4 / N)
    row_error = np.abs(ours.sum(2) - f / f.sum(1, keepdims=True)).sum(1)
    assert row_error.max() <= 1e-4
    np.testing.assert_allclose(result.marginal_error, row_error, atol=1e-5)


def test_plan_equals_ott(f, cost):
    q = jnp.asarray(f[1] / f[1].sum())
    out = Sinkhorn(threshold=1e-7, max_iterations=2000)(
        LinearProblem(Geometry(cost_matrix=jnp.asarray(cost), epsilon=0.05), q, jnp.full(N, 1 / N))
    )
    ours = plans(solver.optimal_path(f[1:2], cost, epsilon=0.05, num_iters=2000), cost, 0.05)[0]
    assert np.abs(ours - np.asarray(out.matrix)).sum() <= 1e-4


def test_both_domains_agree(f, cost):
    fast, exact = (
        solver.optimal_path(f, cost, epsilon=0.05, log_domain=log_domain)
        for log_domain in (False, True)
    )
    for a, b in zip(fast[:-1], exact[:-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_a_patch_scores_by_what_filling_it_costs(f, cost):
    result = solver.optimal_path(f, cost)
    pi = plans(result, cost, 0.1)
    np.testing.assert_allclose(result.scores, -N * (pi * cost).sum(1), rtol=1e-4)


def test_two_patches_in_closed_form():
    """Cost [[0, 1], [1, 0]], marginals (a, 1 − a) and (½, ½): π₀₀π₁₁ = e^(2/ε) π₀₁π₁₀."""
    a, epsilon = 0.8, 0.5
    ratio = np.exp(2 / epsilon)
    # x (x + ½ − a) = ratio (a − x)(½ − x)
    quadratic = [1 - ratio, 0.5 - a + ratio * (a + 0.5), -ratio * a / 2]
    x = next(r for r in np.roots(quadratic) if 0 < r < 0.5)
    cost = np.array([[0, 1], [1, 0]], np.float32)
    f = np.array([[a, 1 - a]], np.float32)
    result = solver.optimal_path(f, cost, epsilon=epsilon, num_iters=500)
    expected = [[x, a - x], [0.5 - x, x + 0.5 - a]]
    np.testing.assert_allclose(plans(result, cost, epsilon)[0], expected, atol=1e-6)
    np.testing.assert_allclose(result.scores[0], [-2 * (0.5 - x), -2 * (a - x)], atol=1e-6)


def test_stopping_early_changes_nothing(f, cost):
    """The plan of 50 rounds, whether or not the loop stopped, is that of a plain numpy loop."""
    kernel = np.exp(-cost.astype(np.float64) / 0.5)
    q, v = f / f.sum(1, keepdims=True), np.ones((C, N))
    for _ in range(50):
        u = q / (v @ kernel.T)
        v = (1 / N) / (u @ kernel)
    result = solver.optimal_path(f, cost, epsilon=0.5)
    np.testing.assert_allclose(result.log_v, np.log(v), atol=1e-5)
    np.testing.assert_allclose(np.exp(result.log_u), u, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("log_domain", [False, True])
def test_rounds_are_those_it_took(f, cost, log_domain):
    """The cap, or fewer where nothing changes any more; more of them leave a smaller error."""

    def solve(num_iters, epsilon):
        return solver.optimal_path(
            f, cost, epsilon=epsilon, num_iters=num_iters, log_domain=log_domain
        )

    few, some = solve(3, 0.05), solve(30, 0.05)
    assert (int(few.rounds), int(some.rounds)) == (3, 30)
    assert (some.marginal_error < few.marginal_error).all()
    settled = solve(1000, 1.0)
    assert 3 < int(settled.rounds) < 100
    assert settled.marginal_error.max() < 1e-5


def sinkhorn(f, cost, epsilon, rounds):
    """-N Σ_i cost_ij π_ij in float64, by a plain loop."""
    kernel, q, v = np.exp(-cost / epsilon), f / f.sum(1, keepdims=True), np.ones(f.shape)
    for _ in range(rounds):
        u = q / (v @ kernel.T)
        v = (1 / f.shape[1]) / (u @ kernel)
    return -f.shape[1] * v * (u @ (kernel * cost))


@pytest.mark.parametrize("log_domain", [False, True])
def test_forward_derivatives_are_those_of_a_plain_loop(f, cost, log_domain):
    random = np.random.default_rng(3)
    f = f + np.float32(0.1)  # a map with zeros has no plan on the other side of them
    df, dcost = random.normal(size=f.shape) * 0.05, random.normal(size=cost.shape) * 0.05
    h = 1e-5
    expected = (
        sinkhorn(f + h * df, cost + h * dcost, 0.2, 100)
        - sinkhorn(f - h * df, cost - h * dcost, 0.2, 100)
    ) / (2 * h)

    def scores(f, cost):
        found = solver.optimal_path(f, cost, epsilon=0.2, num_iters=100, log_domain=log_domain)
        return found.scores

    _, found = jax.jvp(scores, (f, cost), (df.astype(np.float32), dcost.astype(np.float32)))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("epsilon", [0.1, 0.004])
def test_permuting_patches_permutes_scores(f, cost, epsilon):
    order = np.random.default_rng(2).permutation(N)
    scores = solver.optimal_path(f, cost, epsilon=epsilon, num_iters=50).scores
    permuted = solver.optimal_path(
        f[:, order], cost[np.ix_(order, order)], epsilon=epsilon, num_iters=50
    ).scores
    np.testing.assert_allclose(permuted, scores[:, order], atol=2e-5)


def test_uniform_map_on_a_regular_graph_has_no_discrepancy():
    """Where every patch has the same costs, the plan from uniform to uniform favours no patch."""
    apart = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    circulant = np.minimum(apart, N - apart).astype(np.float32) / N
    scores = solver.optimal_path(np.ones((1, N), np.float32), circulant).scores
    np.testing.assert_allclose(scores, np.full((1, N), scores[0, 0]), rtol=1e-5)


@pytest.mark.parametrize("log_domain", [None, False, True])
def test_everything_stays_float32_under_x64(f, cost, log_domain):
    expected = solver.optimal_path(f, cost, epsilon=0.2, log_domain=log_domain)
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            maps, costs = f.astype(dtype), cost.astype(dtype)
            found = solver.optimal_path(maps, costs, epsilon=0.2, log_domain=log_domain)
            assert [x.dtype for x in found] == [jnp.float32] * 4 + [jnp.int32]
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
        assert solver.transport_cost(cost.astype(np.float64), "minus_log").dtype == jnp.float32


def test_vmap_equals_loop(f, cost):
    fs = np.stack([f, f[::-1]])
    costs = np.stack([cost, cost.T])
    together = jax.vmap(solver.optimal_path)(fs, costs)
    for b in range(2):
        alone = solver.optimal_path(fs[b], costs[b])
        for x, y in zip(together[:-1], alone[:-1], strict=True):
            np.testing.assert_allclose(x[b], y, atol=1e-5)


@pytest.mark.parametrize("name", COSTS)
def test_costs_fall_as_attention_grows(name):
    attention = jax.nn.softmax(jax.random.normal(jax.random.key(0), (8, 8)), axis=-1)
    cost = np.asarray(solver.transport_cost(attention, name))
    order = np.argsort(np.asarray(attention), axis=-1)
    falling = np.diff(np.take_along_axis(cost, order, axis=-1), axis=-1)
    assert (falling < 0).all()
    assert cost.min() >= 0


def test_no_attention_costs_the_way_all_patches_share():
    """-log of attention in nats, but that one hundredth of it goes to all alike: 0 is log 100 N."""
    attention = np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0.25] * 4], np.float32)
    cost = solver.transport_cost(attention, "minus_log")
    np.testing.assert_allclose(cost, -np.log(0.99 * attention + 0.01 / 4), rtol=1e-5)
    np.testing.assert_allclose(cost[1, 1], np.log(400), rtol=1e-5)


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("epsilon", [0.03, 0.1, 0.2, 0.4])
def test_the_fast_form_is_exact_wherever_it_is_taken_for_a_named_cost(name, epsilon):
    """On attention of the widest range there is: zeros, and ones."""
    n = 25
    attention = np.eye(n, dtype=np.float32)
    attention[0] = 1 / n
    cost = np.asarray(solver.transport_cost(attention, name))
    if needs_log_domain(name, epsilon, n):
        assert (cost.max() - cost.min()) / epsilon > 35
        return
    f = np.random.default_rng(0).uniform(0.01, 1, (2, n)).astype(np.float32)
    fast, exact = (
        solver.optimal_path(f, cost, epsilon=epsilon, num_iters=200, log_domain=log_domain)
        for log_domain in (False, True)
    )
    np.testing.assert_allclose(fast.scores, exact.scores, rtol=1e-3, atol=1e-4)


def test_bad_arguments_are_named(f, cost):
    with pytest.raises(ValueError, match="epsilon is 0"):
        solver.optimal_path(f, cost, epsilon=0)
    with pytest.raises(ValueError, match="unknown path cost"):
        solver.transport_cost(cost, "euclid")

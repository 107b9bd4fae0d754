"""Optimal path: entropic transport of each class map to the uniform distribution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from dsolo_jax.solver.products import backward, forward
from dsolo_jax.utils.checks import choose

# exp(-x) and the scaling vectors it calls for stay inside float32's range up to about this x.
_LARGEST_EXPONENT = 40.0
# Two rounds whose scalings agree to this are the same round to float32's resolution.
_SAME = 2e-7


class OptimalPath(NamedTuple):
    """Plan of class c: `exp(log_u[c, :, None] + log_v[c, None, :] - cost / epsilon)`."""

    scores: Float[Array, "C N"]
    log_u: Float[Array, "C N"]
    log_v: Float[Array, "C N"]
    marginal_error: Float[Array, "C"]  # Σ_i |row marginal − f / Σ f|; columns are exact


def _one_minus_max(a: Array) -> Array:
    """`1 − A / max A`: bounded, global; nearly flat for a peaked A."""
    return 1 - a / jnp.max(a)


def _one_minus_rowmax(a: Array) -> Array:
    """`1 − A / row maximum`: bounded, each patch's own best neighbour costs nothing."""
    return 1 - a / jnp.max(a, axis=-1, keepdims=True)


def _one_minus(a: Array) -> Array:
    """`1 − A`: bounded; flat, as entries of A are about 1 / N."""
    return 1 - a


def _minus_log(a: Array) -> Array:
    """`−log A`: at epsilon 1 the kernel is A itself; unbounded, floored at 1e-12."""
    return -jnp.log(jnp.maximum(a, 1e-12))


def _minus_log_unit(a: Array) -> Array:
    """`−log A` brought to 0..1."""
    cost = _minus_log(a)
    low = jnp.min(cost)
    return (cost - low) / jnp.maximum(jnp.max(cost) - low, 1e-12)


# Each cost and the largest value it can take: BUILD_NOTES Q6.
COSTS = {
    "one_minus_max": (_one_minus_max, 1.0),
    "one_minus_rowmax": (_one_minus_rowmax, 1.0),
    "one_minus": (_one_minus, 1.0),
    "minus_log": (_minus_log, float("inf")),
    "minus_log_unit": (_minus_log_unit, 1.0),
}


def transport_cost(attention: Float[Array, "N N"], cost: str) -> Float[Array, "N N"]:
    """The cost of moving mass from patch i to patch j, from their attention; see `COSTS`."""
    return COSTS[choose("path cost", cost, COSTS)][0](attention.astype(jnp.float32))


def needs_log_domain(cost: str, epsilon: float) -> bool:
    """Whether a named cost at this epsilon may leave the range of the fast form."""
    return COSTS[choose("path cost", cost, COSTS)][1] / epsilon > _LARGEST_EXPONENT


class _Plan(NamedTuple):
    """What a score may look at: marginals and transport costs of each class's plan π, times N."""

    log_u: Array
    log_v: Array
    row_cost: Array  # N Σ_j C_ij π_ij
    column_cost: Array  # N Σ_i C_ij π_ij
    diagonal: Array  # N π_ii


# BUILD_NOTES Q5: which scalar of the plan is the discrepancy is not known; each is a guess.
SCORES = {
    "column_cost": lambda p: p.column_cost,  # paper: the cost of filling a patch
    "minus_column_cost": lambda p: -p.column_cost,  # robust
    "row_cost": lambda p: (
        p.row_cost
    ),  # the cost of emptying a patch; echoes f if the kernel is flat
    "minus_row_cost": lambda p: -p.row_cost,
    "log_u": lambda p: jnp.maximum(p.log_u, -40.0),  # source potential; echoes log f likewise
    "log_v": lambda p: p.log_v,  # target potential
    "diagonal": lambda p: p.diagonal,  # the mass that stays
}


def optimal_path(
    f: Float[Array, "C N"],
    cost: Float[Array, "N N"],
    *,
    epsilon: float = 0.1,
    num_iters: int = 50,
    score: str = "minus_column_cost",
    log_domain: bool | None = None,
) -> OptimalPath:
    """Entropic transport from each class map to uniform, by Sinkhorn's iteration.

        π = diag(u) K diag(v),   K = exp(−cost / ε),   u ← (f / Σ f) / (K v),   v ← (1 / N) / (u K)

    All classes share K and iterate together. The loop ends early when another round would change
    nothing at float32's resolution.

    Args:
        f: [C, N] non-negative class maps with a positive sum; each row is divided by its sum.
        cost: [N, N], finite; `cost[i, j]` moves mass from patch i to patch j.
        epsilon: strength of the entropy, in units of the cost.
        num_iters: rounds at the most.
        score: which scalar of the plan becomes the score (a name of `SCORES`).
        log_domain: iterate on log u, log v: exact for any epsilon, several times slower. None
            decides from the cost at run time, which under `jax.vmap` computes both; say False where
            cost / epsilon spans less than 40.

    Returns:
        Scores, log u, log v, each [C, N], and the row marginals' L1 error [C].

    Raises:
        ValueError: unknown score, epsilon not above 0.

    Source: DSLO notes (epsilon 0.1, 50 iterations); Cuturi 2013. Scores, costs: BUILD_NOTES Q5, Q6.
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0 (the paper's is 0.1)")
    score_of = SCORES[choose("path score", score, SCORES)]
    cost = cost.astype(jnp.float32)
    q = f.astype(jnp.float32)
    q = q / jnp.sum(q, axis=-1, keepdims=True)

    # K's rows are brought to a largest entry of 1, and u takes the factor back.
    row_least = jnp.min(cost, axis=-1)
    exponent = (cost - row_least[:, None]) / epsilon
    if log_domain is None:
        plan, error = jax.lax.cond(
            jnp.max(exponent) > _LARGEST_EXPONENT, _solve_log, _solve, q, cost, exponent, num_iters
        )
    else:
        plan, error = (_solve_log if log_domain else _solve)(q, cost, exponent, num_iters)
    plan = plan._replace(log_u=plan.log_u + row_least / epsilon)
    return OptimalPath(score_of(plan), plan.log_u, plan.log_v, error)


def _solve(q: Array, cost: Array, exponent: Array, num_iters: int) -> tuple[_Plan, Array]:
    """Sinkhorn on u and v themselves: two matrix products a round."""
    n = q.shape[-1]
    kernel = jnp.exp(-exponent)

    def unfinished(state):
        step, _, v, v_before = state
        return (step < num_iters) & jnp.any(jnp.abs(v - v_before) > _SAME * v)

    def round_(state):
        step, _, v, _ = state
        u = q / backward(v, kernel)
        return step + 1, u, (1 / n) / forward(u, kernel), v

    ones = jnp.ones_like(q)
    _, u, v, _ = jax.lax.while_loop(unfinished, round_, (0, ones, ones, jnp.zeros_like(q)))
    weighted = kernel * cost
    plan = _Plan(
        log_u=jnp.log(u),
        log_v=jnp.log(v),
        row_cost=n * u * backward(v, weighted),
        column_cost=n * v * forward(u, weighted),
        diagonal=n * u * jnp.diagonal(kernel) * v,
    )
    return plan, jnp.sum(jnp.abs(u * backward(v, kernel) - q), axis=-1)


def _solve_log(q: Array, cost: Array, exponent: Array, num_iters: int) -> tuple[_Plan, Array]:
    """The same iteration on log u and log v, a class at a time so that one [N, N] is held."""
    n = q.shape[-1]

    def one_class(q: Array) -> tuple[_Plan, Array]:
        log_q = jnp.log(q)

        def unfinished(state):
            step, _, log_v, before = state
            return (step < num_iters) & jnp.any(jnp.abs(log_v - before) > _SAME)

        def round_(state):
            step, _, log_v, _ = state
            log_u = log_q - logsumexp(log_v[None, :] - exponent, axis=1)
            return (
                step + 1,
                log_u,
                -jnp.log(n) - logsumexp(log_u[:, None] - exponent, axis=0),
                log_v,
            )

        zeros = jnp.zeros_like(q)
        _, log_u, log_v, _ = jax.lax.while_loop(
            unfinished, round_, (0, zeros, zeros, jnp.full_like(q, -jnp.inf))
        )
        pi = jnp.exp(log_u[:, None] + log_v[None, :] - exponent)
        plan = _Plan(
            log_u=log_u,
            log_v=log_v,
            row_cost=n * jnp.sum(pi * cost, axis=1),
            column_cost=n * jnp.sum(pi * cost, axis=0),
            diagonal=n * jnp.diagonal(pi),
        )
        return plan, jnp.sum(jnp.abs(jnp.sum(pi, axis=1) - q))

    return jax.lax.map(one_class, q)

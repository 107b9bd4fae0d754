"""Optimal path: entropic transport of each class map to the uniform distribution."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dsolo_jax.solver.fixed_point import backward, check, forward, iterate, settled
from dsolo_jax.utils.checks import choose

# exp(-x) and the scaling vectors it calls for stay inside float32's range up to about this x.
_LARGEST_EXPONENT = 40.0

# Share of a patch's attention that goes to all patches alike before its logarithm is taken.
_TELEPORT = 1e-2


class OptimalPath(NamedTuple):
    """Plan of class c: `exp(log_u[c, :, None] + log_v[c, None, :] - cost / epsilon)`."""

    scores: Float[Array, "C N"]  # −N Σ_i cost_ij π_ij
    log_u: Float[Array, "C N"]
    log_v: Float[Array, "C N"]
    marginal_error: Float[Array, "C"]  # Σ_i |row marginal − f / Σ f|; columns are exact
    rounds: Int[Array, ""]  # of Sinkhorn; in log domain the most that a class took


def _one_minus_max(a: Array) -> Array:
    """`1 − A / max A`: bounded, one unit for the whole picture; nearly flat for a peaked A."""
    return 1 - a / jnp.max(a)


def _minus_log(a: Array) -> Array:
    """`−log((1 − t) A + t / N)` in nats: at epsilon 1 the kernel is A itself.

    A patch that attends to another with 0 can reach it all the same, by the way that all patches
    share: the cost of no attention is log(N / t), not infinite, and not where a float ends.
    """
    return -jnp.log((1 - _TELEPORT) * a + _TELEPORT / a.shape[-1])


COSTS = {"minus_log": _minus_log, "one_minus_max": _one_minus_max}


def transport_cost(attention: Float[Array, "N N"], cost: str) -> Float[Array, "N N"]:
    """Prices the way from patch i to patch j by their attention, one of `COSTS`.

    Raises:
        ValueError: unknown cost.
    """
    return COSTS[choose("path cost", cost, COSTS)](attention.astype(jnp.float32))


def needs_log_domain(cost: str, epsilon: float, n: int) -> bool:
    """Whether a named cost between n patches may leave the range of the fast form."""
    spread = {"minus_log": math.log(n / _TELEPORT), "one_minus_max": 1.0}
    return spread[cost] / epsilon > _LARGEST_EXPONENT


def optimal_path(
    f: Float[Array, "C N"],
    cost: Float[Array, "N N"],
    *,
    epsilon: float = 0.1,
    num_iters: int = 50,
    log_domain: bool | None = None,
    kernel_dtype: DTypeLike = jnp.float32,
) -> OptimalPath:
    """Solves the entropic transport from each class map to uniform, by Sinkhorn's iteration.

        π = diag(u) K diag(v),   K = exp(−cost / ε),   u ← (f / Σ f) / (K v),   v ← (1 / N) / (u K)

    The discrepancy of a patch is what filling it costs, d_j = N Σ_i cost_ij π_ij; the score is -d.
    All classes share K and iterate together. The loop ends early when another round would change
    nothing at float32's resolution. It can be differentiated forwards, not in reverse.

    Args:
        f: [C, N] non-negative class maps with a positive sum; each row is divided by its sum.
        cost: [N, N], finite; `cost[i, j]` moves mass from patch i to patch j.
        epsilon: strength of the entropy, in units of the cost.
        num_iters: rounds at the most.
        log_domain: iterate on log u, log v: exact for any epsilon, several times slower. None
            decides from the cost at run time, which under `jax.vmap` computes both; say False where
            cost / epsilon spans less than 40.
        kernel_dtype: of K, but in log domain: bfloat16 is read in half the time, and rounds each
            entry, as if its cost were another by up to 0.004 epsilon.

    Raises:
        ValueError: epsilon not above 0; arrays of other shapes; an f that is negative or not
            finite.

    Source: DSLO notes (epsilon 0.1, 50 iterations); Cuturi 2013. The scalar of the plan that scores
    is not known; docs/method.md has what was tried.
    """
    check(f, cost)
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0 (the paper's is 0.1)")
    cost = cost.astype(jnp.float32)
    q = f.astype(jnp.float32)
    q = q / jnp.sum(q, axis=-1, keepdims=True)

    # K's rows are brought to a largest entry of 1, and u takes the factor back.
    row_least = jnp.min(cost, axis=-1)
    exponent = (cost - row_least[:, None]) / epsilon
    solve = partial(_solve, dtype=kernel_dtype)
    if log_domain is None:
        large = jnp.max(exponent) > _LARGEST_EXPONENT
        found = jax.lax.cond(large, _solve_log, solve, q, cost, exponent, num_iters)
    else:
        found = (_solve_log if log_domain else solve)(q, cost, exponent, num_iters)
    return found._replace(log_u=found.log_u + row_least / epsilon)


def _sinkhorn(round_: Callable, start: Array, num_iters: int, least: float = 0.0) -> Any:
    """Rounds on u and v, or their logarithms, until v settles; and how many there were."""

    def finished(before, after):
        return settled(before[1], after[1], least=least)

    return iterate(round_, (start, start), max_steps=num_iters, finished=finished)


def _solve(q: Array, cost: Array, exponent: Array, num_iters: int, dtype: DTypeLike) -> OptimalPath:
    """Sinkhorn on u and v themselves: two matrix products a round."""
    n = q.shape[-1]
    kernel = jnp.exp(-exponent).astype(dtype)

    def round_(_, uv):
        u = q / backward(uv[1], kernel)
        return u, (1 / n) / forward(u, kernel)

    (u, v), rounds = _sinkhorn(round_, jnp.ones_like(q), num_iters)
    scores = -n * v * forward(u, (kernel * cost).astype(dtype))
    error = jnp.sum(jnp.abs(u * backward(v, kernel) - q), axis=-1)
    return OptimalPath(scores, jnp.log(u), jnp.log(v), error, rounds)


def _solve_log(q: Array, cost: Array, exponent: Array, num_iters: int) -> OptimalPath:
    """The same iteration on log u and log v, a class at a time so that one [N, N] is held."""
    n = q.shape[-1]

    def one_class(q: Array) -> OptimalPath:
        log_q = jnp.log(q)

        def round_(_, uv):
            log_u = log_q - logsumexp(uv[1][None, :] - exponent, axis=1)
            return log_u, -jnp.log(n) - logsumexp(log_u[:, None] - exponent, axis=0)

        (log_u, log_v), rounds = _sinkhorn(round_, jnp.zeros_like(q), num_iters, least=1.0)
        pi = jnp.exp(log_u[:, None] + log_v[None, :] - exponent)
        error = jnp.sum(jnp.abs(jnp.sum(pi, axis=1) - q))
        return OptimalPath(-n * jnp.sum(pi * cost, axis=0), log_u, log_v, error, rounds)

    found = jax.lax.map(one_class, q)
    return found._replace(rounds=jnp.max(found.rounds))

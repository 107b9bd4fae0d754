"""The methods on one picture, and a step or round of their loops beside its bare products."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp

from dsolo_jax import solver
from dsolo_jax.solver.discrepancy import discrepancy
from dsolo_jax.solver.fixed_point import backward, forward
from experiments.benchmarks.timing import program, rows

_STEPS = 20


def run() -> Iterator[dict]:
    """Times maps of random cosines on a graph of neighbours, which takes the loops many rounds."""
    for side, classes in product((32, 64), (21, 150)):
        axis = jnp.arange(side) / side
        x = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        cost = jnp.sum((x[:, None] - x[None]) ** 2, -1)
        transition = solver.doubly_stochastic(jnp.exp(-50 * cost))
        f = jax.random.uniform(jax.random.key(0), (classes, side**2)) ** 8
        size = f"N={side**2} C={classes}"
        for method in ("velocity", "path", "kl") if classes == 21 else ():
            job, account = program(partial(discrepancy, method=method), f, transition)
            yield from rows("solver", f"{method}, {size}", {"ours": job}, repeats=3, **account)
        for name, ours, bare, matrix in (
            ("velocity step", _steps, forward, transition),
            ("Sinkhorn round", _rounds, _both_ways, cost),
        ):
            job, account = program(ours, f, matrix)
            repeated, _ = program(partial(_repeat, bare), f, matrix)
            jobs = {"ours": job, "bare products": repeated}
            yield from rows("solver", f"{name}, {size}", jobs, scale=1 / _STEPS, **account)


def _steps(f: jax.Array, transition: jax.Array) -> jax.Array:
    """tau = 2 is never reached, so that every step is taken."""
    return solver.max_velocity(f, transition, tau=2.0, max_steps=_STEPS).steps


def _rounds(f: jax.Array, cost: jax.Array) -> jax.Array:
    return solver.optimal_path(f, cost, num_iters=_STEPS, log_domain=False).scores


def _both_ways(f: jax.Array, kernel: jax.Array) -> jax.Array:
    return forward(backward(f, kernel), kernel)


def _repeat(product: Callable, f: jax.Array, matrix: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, _STEPS, lambda _, f: product(f, matrix), f)

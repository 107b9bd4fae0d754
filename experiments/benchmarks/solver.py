"""A Markov step and a Sinkhorn round against the bare products they need."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from dsolo_jax import solver
from dsolo_jax.solver.fixed_point import backward, forward
from experiments.benchmarks.timing import rows, xla_account

_SIDES = (32, 64)
_CLASSES = (21, 150)
_STEPS = 20
_BATCH = 8
_EPSILON = 0.1


def run() -> Iterator[dict]:
    for side in _SIDES:
        for classes in _CLASSES:
            f, transition, cost = _problem(side, classes)
            case = f"N={side**2} C={classes}"
            yield from _against_products(
                f"markov step {case}", _markov, _bare_markov, f, transition
            )
            yield from _against_products(
                f"sinkhorn round {case}", _sinkhorn, _bare_sinkhorn, f, cost
            )
    for side in _SIDES:
        f, transition, cost = _problem(side, 21)
        for name, method, matrix in (
            ("markov", _markov, transition),
            ("sinkhorn", _sinkhorn, cost),
        ):
            yield from _against_batch(f"{name} N={side**2} C=21", method, f, matrix)


def _problem(side: int, classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random sparse maps; a graph of neighbours, whose cost takes Sinkhorn many rounds."""
    axis = jnp.arange(side) / side
    x = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    squared = jnp.sum((x[:, None] - x[None]) ** 2, -1)
    transition = solver.doubly_stochastic(jnp.exp(-50 * squared))
    f = jax.random.uniform(jax.random.key(0), (classes, side**2)) ** 8
    return f, transition, squared


# tau = 2 is never reached, so that every step is taken.


@jax.jit
def _markov(f, transition):
    return solver.max_velocity(f, transition, tau=2.0, max_steps=_STEPS).steps


@jax.jit
def _bare_markov(f, transition):
    return jax.lax.fori_loop(0, _STEPS, lambda _, f: forward(f, transition), f)


@jax.jit
def _sinkhorn(f, cost):
    return solver.optimal_path(f, cost, epsilon=_EPSILON, num_iters=_STEPS, log_domain=False).scores


@jax.jit
def _bare_sinkhorn(f, kernel):
    return jax.lax.fori_loop(0, _STEPS, lambda _, f: forward(backward(f, kernel), kernel), f)


def _against_products(case: str, ours: Callable, bare: Callable, f, matrix) -> list[dict]:
    jobs = {"ours": lambda: ours(f, matrix), "bare products": lambda: bare(f, matrix)}
    return rows("solver", case, jobs, scale=1 / _STEPS, **xla_account(ours, f, matrix))


def _against_batch(case: str, method: Callable, f, matrix) -> list[dict]:
    """Of a batch, its pictures one after the other, and all of them at once."""
    batched = jax.jit(jax.vmap(method))
    fs, matrices = (jnp.stack([x] * _BATCH) for x in (f, matrix))
    jobs = {
        "ours": lambda: [method(f, matrix) for _ in range(_BATCH)],
        f"in a batch of {_BATCH}": lambda: batched(fs, matrices),
    }
    account = xla_account(batched, fs, matrices)
    case, scale = f"{case}, pictures alone", 1 / _STEPS / _BATCH
    return rows("solver", case, jobs, repeats=5, scale=scale, **account)

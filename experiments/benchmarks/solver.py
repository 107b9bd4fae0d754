"""The methods on one picture, and a step or round of their loops beside its bare products."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp

import dsolo_jax as dsolo
from dsolo_jax import solver
from dsolo_jax.solver.discrepancy import discrepancy
from dsolo_jax.solver.fixed_point import backward, forward
from experiments.benchmarks import world
from experiments.benchmarks.running import Case, Work
from experiments.benchmarks.timing import Program

_STEPS = 20


def run() -> Iterator[Case]:
    """The methods on real maps, see `world.maps`; the loops on drawn ones, for many rounds."""
    for side, classes in product((32, 64), (21, 150)):
        size = f"N={side**2} C={classes}"
        for method in ("velocity", "path", "kl") if classes == 21 else ():
            yield Case("solver", f"{method}, {size}", partial(_method, method, side, classes))
        for name, loop in {
            "velocity step": partial(_loop, _steps, forward, True),
            "Sinkhorn round": partial(_loop, _rounds, _both_ways, False),
        }.items():
            yield Case("solver", f"{name}, {size}", partial(loop, side, classes))


def _method(method: str, side: int, classes: int) -> Work:
    found, [graph] = world.maps(1, side)
    [f] = world.repeated(found, classes).cosines
    readings = dsolo.Readings()
    steps = {
        "velocity": (world.steps(f[None], graph[None], readings),),
        "path": (readings.sinkhorn_iters,),
        "kl": (),
    }[method]
    program = Program(partial(discrepancy, method=method), f, graph, rounds=steps)
    return Work(program, (program,), columns={"steps": steps[0] if steps else None})


def _loop(ours: Callable, bare: Callable, stochastic: bool, side: int, classes: int) -> Work:
    """A graph of neighbours."""
    axis = jnp.arange(side) / side
    x = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    cost = jnp.sum((x[:, None] - x[None]) ** 2, -1)
    matrix = solver.doubly_stochastic(jnp.exp(-50 * cost)) if stochastic else cost
    f = jax.random.uniform(jax.random.key(0), (classes, side**2)) ** 8
    program = Program(ours, f, matrix, rounds=(_STEPS,))
    products = Program(partial(_repeat, bare), f, matrix)
    beside = {"bare products": products}
    return Work(program, (program,), (products,), lambda: beside, scale=1 / _STEPS)


def _steps(f: jax.Array, transition: jax.Array) -> jax.Array:
    """tau = 2 is never reached, so that every step is taken."""
    return solver.max_velocity(f, transition, tau=2.0, max_steps=_STEPS).steps


def _rounds(f: jax.Array, cost: jax.Array) -> jax.Array:
    return solver.optimal_path(f, cost, num_iters=_STEPS, log_domain=False).scores


def _both_ways(f: jax.Array, kernel: jax.Array) -> jax.Array:
    return forward(backward(f, kernel), kernel)


def _repeat(product: Callable, f: jax.Array, matrix: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, _STEPS, lambda _, f: product(f, matrix), f)

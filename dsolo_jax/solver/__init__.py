"""The discrepancy between class maps and the uniform distribution, along a graph of patches.

Everything here is written for one picture: class maps `f [C, N]`, attention `[N, N]`. Batches come
from `jax.vmap` outside. Rows are distributions, a step of the chain is `f @ T`.
"""

from dsolo_jax.solver.kl import kl_discrepancy
from dsolo_jax.solver.path import OptimalPath, optimal_path, transport_cost
from dsolo_jax.solver.stochastic import doubly_stochastic, sharpen
from dsolo_jax.solver.velocity import MaxVelocity, max_velocity, propagate

__all__ = [
    "MaxVelocity",
    "OptimalPath",
    "doubly_stochastic",
    "kl_discrepancy",
    "max_velocity",
    "optimal_path",
    "propagate",
    "sharpen",
    "transport_cost",
]

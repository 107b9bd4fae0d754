"""The discrepancy between class maps and the uniform distribution, along a graph of patches.

Everything here is written for one picture: class maps `f [C, N]`, attention `[N, N]`. Batches come
from `jax.vmap` outside. Rows are distributions, a step of the chain is `f @ T`. The whole method is
`solver/discrepancy.py`, which the package offers as `dsolo_jax.discrepancy`.
"""

from dsolo_jax.solver.kl import kl_discrepancy
from dsolo_jax.solver.normalise import normalise, suppress
from dsolo_jax.solver.optimise import OptimalLogits, optimal_logits
from dsolo_jax.solver.path import OptimalPath, optimal_path, transport_cost
from dsolo_jax.solver.propagation import label_propagation
from dsolo_jax.solver.stochastic import doubly_stochastic
from dsolo_jax.solver.velocity import MaxVelocity, max_velocity, propagate

__all__ = [
    "MaxVelocity",
    "OptimalLogits",
    "OptimalPath",
    "doubly_stochastic",
    "kl_discrepancy",
    "label_propagation",
    "max_velocity",
    "normalise",
    "optimal_logits",
    "optimal_path",
    "propagate",
    "suppress",
    "transport_cost",
]

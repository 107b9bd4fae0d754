"""Version 0.1.0's formulas for the scores found along the graph, and each change since.

A change is a name; a formula is 0.1.0's with the changes of a set made to it, so that what each
moves can be seen alone.
"""

import jax.numpy as jnp

from dsolo_jax.solver.discrepancy import _in_unit
from dsolo_jax.solver.kl import kl_discrepancy
from dsolo_jax.solver.normalise import normalise
from dsolo_jax.solver.path import optimal_path, transport_cost
from dsolo_jax.solver.stochastic import doubly_stochastic
from dsolo_jax.solver.velocity import max_velocity

VELOCITY = {
    "temperature": "temperature 0.25 to 0.5 deviations of the cosines",
    "stop": "100 steps at most to 30, and an estimate for what has not arrived then",
    "unit": "half the KL map's deviation to 0.6 of the double-centred cosines'",
}
PATH = {
    "temperature": VELOCITY["temperature"],
    "cost": "-log A over its range, epsilon 0.3, to -log A in nats with 1 % teleport, epsilon 2",
    "unit": "the KL map's deviation to 0.6 of the double-centred cosines'",
}


def velocity(changes):
    """Scores of the velocity with a set of `VELOCITY`, as a method's function."""

    def scores(f, attention, readings):
        temperature, q = _class_maps(f, changes)
        cap = 30 if "stop" in changes else 100
        found = max_velocity(q, doubly_stochastic(attention, 15), tau=0.5, max_steps=cap)
        steps = found.expected if "stop" in changes else found.steps
        return _scaled(-jnp.log1p(steps), f, temperature, q, 0.5, changes)

    return scores


def path(changes):
    """Scores of the path with a set of `PATH`, as a method's function."""

    def scores(f, attention, readings):
        temperature, q = _class_maps(f, changes)
        if "cost" in changes:
            cost, epsilon = transport_cost(attention, "minus_log"), 2.0
        else:
            cost = -jnp.log(jnp.maximum(attention, 1e-12))
            cost = (cost - cost.min()) / jnp.maximum(cost.max() - cost.min(), 1e-12)
            epsilon = 0.3
        found = optimal_path(q, cost, epsilon=epsilon, log_domain=False)
        return _scaled(found.scores, f, temperature, q, 1.0, changes)

    return scores


def _class_maps(f, changes):
    """The temperature in cosines, and the class maps."""
    temperature = (0.5 if "temperature" in changes else 0.25) * jnp.std(f)
    return temperature, normalise(f, temperature=temperature)


def _scaled(scores, f, temperature, q, share, changes):
    if "unit" in changes:
        return _in_unit(scores, f)
    kl = temperature * kl_discrepancy(q)
    scores, kl = (x - jnp.mean(x, axis=0) for x in (scores, kl))
    return share * scores / jnp.std(scores) * jnp.std(kl)

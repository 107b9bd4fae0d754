"""Logits moved by gradient steps towards a target: the paradigm that the closed forms replace."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import xlogy
from jaxtyping import Array, Float, Int

from dsolo_jax.solver.fixed_point import backward, check, held
from dsolo_jax.utils.checks import choose

# What the distribution of the logits is drawn to, and what of the arguments that is made of.
TARGETS = {"graph": "attention", "oracle": "truth"}

# Rates as shares of the one that is asked for, at shares of the way: 0 at the first step.
SCHEDULES = {
    "constant": jnp.ones_like,
    "cosine": lambda way: (1 + jnp.cos(jnp.pi * way)) / 2,
}

# Of Adam, beside the gradient of a single patch. Its usual 1e-8 would take whole steps by rounding
# errors where a patch has arrived; this one lets it stand still.
_EPS = 1e-2
_FLOOR = 1e-30  # of a probability, before its logarithm


class OptimalLogits(NamedTuple):
    """The logits after the last step, and the loss on the way there."""

    scores: Float[Array, "C N"]  # in units of f
    loss: Float[Array, "steps"]  # before each step, to the target that it is taken to


def optimal_logits(
    f: Float[Array, "C N"],
    attention: Float[Array, "N N"] | None = None,
    truth: Int[Array, "N"] | None = None,
    *,
    target: str = "graph",
    temperature: float | Float[Array, ""] = 0.01,
    steps: int = 30,
    rate: float = 0.2,
    schedule: str = "constant",
    entropy: float = 0.0,
    every: int = 10,
) -> OptimalLogits:
    """Moves logits, each of them free, by Adam, until classes are distributed as a target has them.

        P = softmax over classes of L / T,     L = f at the start
        loss = mean over patches of  KL(t_i ‖ P_i) + entropy · H(P_i)

        "graph":   t_ic ∝ q_ic² / Σ_j q_jc,  q = P Aᵀ: what a patch attends to, sharpened, each
                   class divided by its mass; made of P anew from time to time and held between.
                   Self-training along the graph, which needs no label
        "oracle":  t_i is the true class. No target has a better end, so this bounds the paradigm;
                   the ablation alone can ask for it

    One picture, no Python loop: jit it, vmap it. 0 steps give f itself.

    Args:
        f: cosines of each class with each patch.
        attention: for "graph": which patch looks at which, rows sum to one.
        truth: for "oracle": the class of each patch; below 0 where none is known, which leaves the
            patch's logits where they are.
        temperature: T, in units of f.
        steps: of Adam, 0 or more.
        rate: how far a step moves a logit, in units of T.
        schedule: what becomes of the rate, one of `SCHEDULES`.
        entropy: weight of the entropy H: above 0 it falls too, so that patches are decided more.
        every: steps from one estimate of the target "graph" to the next.

    Raises:
        ValueError: unknown target or schedule; a target without what it is made of; arrays of other
            shapes.

    Source: the paradigm is what the DSLO paper argues against; the target "graph" is DEC's (Xie et
    al., Unsupervised Deep Embedding for Clustering Analysis, 2016) along a graph, which is ours.
    """
    made_of = TARGETS[choose("target", target, TARGETS)]
    given: Any = {"attention": attention, "truth": truth}[made_of]
    if given is None:
        raise ValueError(f"the target {target!r} is made of {made_of}, found None; give it")
    check(f, attention, maps=False)
    f = f.astype(jnp.float32)
    classes, n = f.shape

    def logits(moved: Array) -> Array:
        return f / temperature + moved

    def estimate(moved: Array) -> Array:
        if target == "oracle":
            return jax.nn.one_hot(given, classes, axis=0, dtype=jnp.float32)
        return graph_target(jax.nn.softmax(logits(moved), axis=0), given)

    def step(carry, at):
        moved, state, held = carry
        number, rate = at
        held = jax.lax.cond(number % every == 0, lambda: estimate(moved), lambda: held)
        loss, gradient = jax.value_and_grad(
            lambda moved: divergence(logits(moved), jax.lax.stop_gradient(held), entropy)
        )(moved)
        direction, state = adam.update(gradient, state)
        return (moved - rate * direction, state, held), loss

    adam = optax.scale_by_adam(eps=_EPS / n)  # the gradient of the mean is as much smaller
    way = jnp.arange(steps, dtype=jnp.float32) / max(steps, 1)
    rates = rate * SCHEDULES[choose("schedule", schedule, SCHEDULES)](way)
    still = jnp.zeros_like(f)
    (moved, _, _), loss = jax.lax.scan(
        step, (still, adam.init(still), still), (jnp.arange(steps, dtype=jnp.int32), rates)
    )
    return OptimalLogits(f + temperature * moved, loss)


def divergence(
    logits: Float[Array, "C N"], target: Float[Array, "C N"], entropy: float = 0.0
) -> Float[Array, ""]:
    """Averages `KL(t_i ‖ P_i) + entropy · H(P_i)` over the patches that have a target.

    Args:
        logits: over their temperature; P is their softmax over classes.
        target: distributions over classes; a column of zeros where there is none.
    """
    log_p = jax.nn.log_softmax(logits, axis=0)
    kl = jnp.sum(xlogy(target, target) - target * log_p, axis=0)
    decided = -jnp.sum(jnp.exp(log_p) * log_p, axis=0)
    has_target = jnp.sum(target, axis=0)  # 1 or 0
    each = has_target * (kl + entropy * decided)
    return jnp.sum(each) / jnp.maximum(jnp.sum(has_target), 1)


def graph_target(p: Float[Array, "C N"], attention: Float[Array, "N N"]) -> Float[Array, "C N"]:
    """Makes the target "graph" of posteriors: `t_ic ∝ q_ic² / Σ_j q_jc,  q = P Aᵀ`."""
    log_q = jnp.log(jnp.maximum(backward(p, held(attention)), _FLOOR))
    mass = jax.nn.logsumexp(log_q, axis=1, keepdims=True)
    return jax.nn.softmax(2 * log_q - mass, axis=0)

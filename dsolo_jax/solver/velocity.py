"""Maximum velocity: how soon a class's mass arrives at each patch of the chain."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dsolo_jax.solver.fixed_point import Scaled, backward, check, forward, held, iterate
from dsolo_jax.utils.checks import choose

_TINY = 1e-9  # keeps the quotients of empty maps and patches finite


class MaxVelocity(NamedTuple):
    """How soon each patch arrives: bounded scores, and the step itself."""

    scores: Float[Array, "C N"]  # 1 / (1 + steps)
    steps: Float[Array, "C N"]  # whole numbers unless interpolated; max_steps: not arrived
    expected: Float[Array, "C N"]  # steps, and an estimate beyond max_steps of what did not arrive
    arrived: Bool[Array, "C N"]
    rounds: Int[Array, ""]  # steps that were taken


class _Criterion(NamedTuple):
    """A patch arrives at the first step whose margin is above zero (of a step: not below)."""

    of_state: bool  # tests the state, its largest entry brought to 1, from step 0; else each step
    margin: Callable[[Array, Array, float], Array]  # (state, state one step before, tau)


CRITERIA = {
    # State over its maximum exceeds tau: M2N2, with the same tau and the same scaling of A.
    "saturation": _Criterion(True, lambda p, before, tau: p - tau),
    # The step changes the entry by at most tau: the wording of the notes on the paper.
    "increment": _Criterion(False, lambda p, before, tau: tau - jnp.abs(p - before)),
}


def max_velocity(
    f: Float[Array, "C N"],
    transition: Float[Array, "N N"] | Scaled,
    *,
    tau: float = 0.3,
    max_steps: int = 1000,
    criterion: str = "saturation",
    interpolate: bool = True,
) -> MaxVelocity:
    """Counts the steps `f ← f @ T` until each patch first passes the criterion.

        "saturation":  f / max f exceeds tau, each class by its own largest entry, from step 0 on
        "increment":   a step changes the entry by at most tau

    On a graph of loosely joined parts much of a map needs thousands of steps. So a state p that has
    not arrived is taken to grow e-fold every `max_steps` steps:

        expected = max_steps · (1 + log(tau / p))                       ("saturation" alone; ours)

    All classes step together; the loop ends when every entry has arrived or nothing moves. Steps
    have a derivative in f and T (forwards only, `jax.jvp`) through the interpolation alone.

    Args:
        f: [C, N] non-negative class maps. "saturation" divides by the largest entry of each class,
            before the first step and after every one; "increment" takes f as it is, and tau is
            then in f's own units.
        transition: [N, N] doubly stochastic (`doubly_stochastic`), or `Scaled` to be so.
        tau: the threshold, strictly exceeded by "saturation".
        max_steps: the step count of an entry that never arrives.
        criterion: "saturation" or "increment".
        interpolate: place the arrival linearly between the two steps around it.

    Raises:
        ValueError: unknown criterion; tau not above 0; arrays of other shapes; an f that is
            negative or not finite.

    Source: DSLO notes (tau 0.3); the saturation test and its interpolation are M2N2's, without its
    special denominator in the first step. docs/method.md has what is not known.
    """
    rule = CRITERIA[choose("velocity criterion", criterion, CRITERIA)]
    if isinstance(transition, Scaled):
        check(f, transition.matrix)
    else:
        check(f, transition)
        transition = held(transition)
    if not tau > 0:
        raise ValueError(f"tau is {tau}; it must be above 0 (the paper's is 0.3)")

    def rescale(p):
        return p / jnp.maximum(jnp.max(p, axis=-1, keepdims=True), _TINY) if rule.of_state else p

    def passes(margin):
        return margin > 0 if rule.of_state else margin >= 0

    def advance(step, state):
        before, p, steps, arrived = state
        after = rescale(forward(p, transition))
        margin, margin_after = rule.margin(p, before, tau), rule.margin(after, p, tau)
        # From a margin below zero to the first one that passes, the crossing is linear.
        share = margin / (margin - margin_after) if interpolate else 1.0
        arrives = passes(margin_after) & ~arrived
        steps = jnp.where(arrives, step + share, steps)
        return p, after, steps, arrived | arrives

    def finished(_, state):
        before, p, _, arrived = state
        # One pass over the entries for both questions.
        waiting = ~arrived & (p != before)
        return ~jnp.any(waiting) | jnp.all(p == before)

    p = rescale(f.astype(jnp.float32))
    far_away = jnp.full_like(p, -1e25)  # no step from there is a small one
    arrived = passes(rule.margin(p, far_away, tau))
    steps = jnp.where(arrived, 0.0, jnp.float32(max_steps))
    (_, p, steps, arrived), rounds = iterate(
        advance, (far_away, p, steps, arrived), max_steps=max_steps, finished=finished
    )
    steps = jnp.where(jnp.isnan(p), jnp.nan, steps)
    expected = steps
    if rule.of_state:
        beyond = max_steps * (1 + jnp.log(tau / jnp.maximum(p, _TINY)))
        expected = jnp.where(arrived, steps, beyond)
    return MaxVelocity(1 / (1 + steps), steps, expected, arrived, rounds)


def propagate(f: Float[Array, "C N"], attention: Float[Array, "N N"]) -> Float[Array, "C N"]:
    """Takes the mean of what each patch attends to: one plain attention step.

    The control that every reading of the method must beat (ours).
    """
    return backward(f.astype(jnp.float32), held(attention))

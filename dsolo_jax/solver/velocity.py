"""Maximum velocity: how soon a class's mass saturates each patch of the chain."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax.solver.products import backward, forward
from dsolo_jax.utils.checks import choose

_TINY = 1e-9  # keeps the quotients of empty maps and patches finite
_FAR_AWAY = -1e25  # where a state was before the start: no step from there is a small one
_MISSING, _MOVING = 1, 2  # some entry has not arrived; some entry has changed


class MaxVelocity(NamedTuple):
    """How soon each patch arrives: bounded scores, and the step itself."""

    scores: Float[Array, "C N"]
    steps: Float[Array, "C N"]  # whole numbers unless interpolated; max_steps: never arrived


class _Criterion(NamedTuple):
    """A patch arrives at the first step whose margin is above zero (of a step: not below)."""

    of_state: bool  # tests the state, its largest entry brought to 1, from step 0; else each step
    margin: Callable[[Array, Array, float], Array]  # (state, state one step before, tau)


def _saturation(p: Array, _: Array, tau: float) -> Array:
    """State over its maximum exceeds tau: M2N2, and the robust reading (BUILD_NOTES Q1)."""
    return p - tau


def _increment(p: Array, before: Array, tau: float) -> Array:
    """The step changes the entry by at most tau: the wording of the notes on the paper."""
    return tau - jnp.abs(p - before)


def _relative_increment(p: Array, before: Array, tau: float) -> Array:
    """The step changes the entry by at most tau times its value before (Q1, ours)."""
    return tau - jnp.abs(p - before) / jnp.maximum(before, _TINY)


CRITERIA = {
    "saturation": _Criterion(True, _saturation),
    "increment": _Criterion(False, _increment),
    "relative": _Criterion(False, _relative_increment),
}

WINNERS = {
    "early": lambda steps: 1 / (1 + steps),  # robust: the class's patches arrive first
    "late": lambda steps: steps / (1 + steps),  # paper: slower = larger discrepancy
}


def max_velocity(
    f: Float[Array, "C N"],
    transition: Float[Array, "N N"],
    *,
    tau: float = 0.3,
    max_steps: int = 1000,
    criterion: str = "saturation",
    interpolate: bool = True,
    winner: str = "early",
) -> MaxVelocity:
    """The first step at which each patch passes the criterion, under `f ← f @ T`.

    All classes step together; the loop ends when every entry has arrived or nothing moves.

    Args:
        f: [C, N] non-negative class maps. "saturation" divides by the largest entry of each class,
            before the first step and after every one; the increment criteria take f as it is, and
            tau is then in f's own units (bring the largest entry to 1).
        transition: [N, N] doubly stochastic (`doubly_stochastic`).
        tau: the threshold, strictly exceeded by "saturation".
        max_steps: the step count of an entry that never arrives.
        criterion: "saturation", "increment" or "relative" (`CRITERIA`).
        interpolate: place the arrival linearly between the two steps around it.
        winner: "early" scores 1 / (1 + l), "late" scores l / (1 + l).

    Returns:
        Scores and steps, both [C, N].

    Raises:
        ValueError: unknown criterion or winner.

    Source: DSLO notes (tau 0.3); the saturation test and its interpolation are M2N2's, without its
    special denominator in the first step. BUILD_NOTES Q1 and Q2 for what is not known.
    """
    rule = CRITERIA[choose("velocity criterion", criterion, CRITERIA)]
    score_of = WINNERS[choose("velocity winner", winner, WINNERS)]

    def rescale(p):
        return p / jnp.maximum(jnp.max(p, axis=-1, keepdims=True), _TINY) if rule.of_state else p

    def passes(margin):
        return margin > 0 if rule.of_state else margin >= 0

    def unfinished(state):
        step, _, _, _, found = state
        return (step < max_steps) & (found == _MISSING | _MOVING)

    def advance(state):
        step, before, p, steps, _ = state
        after = rescale(forward(p, transition))
        margin, margin_after = rule.margin(p, before, tau), rule.margin(after, p, tau)
        # From a margin below zero to the first one that passes, the crossing is linear.
        share = margin / (margin - margin_after) if interpolate else 1.0
        arrives = passes(margin_after) & (steps == max_steps)
        steps = jnp.where(arrives, step + share, steps)
        return step + 1, p, after, steps, look(after, p, steps)

    def look(p, before, steps):
        # One pass over the entries for both questions: the passes are what a step costs beyond
        # its product.
        flags = _MISSING * (steps == max_steps) | _MOVING * (p != before)
        return jax.lax.reduce(flags, 0, jax.lax.bitwise_or, (0, 1))

    p = rescale(f.astype(jnp.float32))
    before = jnp.full_like(p, _FAR_AWAY)
    steps = jnp.where(passes(rule.margin(p, before, tau)), 0.0, float(max_steps))
    start = (0, before, p, steps, look(p, before, steps))
    _, _, _, steps, _ = jax.lax.while_loop(unfinished, advance, start)
    return MaxVelocity(score_of(steps), steps)


def propagate(
    f: Float[Array, "C N"], attention: Float[Array, "N N"], *, num_steps: int = 1
) -> Float[Array, "C N"]:
    """Plain attention: each patch takes the mean of what it attends to, `num_steps` times.

    The control every reading of the method must beat (ours).
    """
    return jax.lax.fori_loop(0, num_steps, lambda _, f: backward(f, attention), f)

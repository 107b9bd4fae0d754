"""The loop and the two products that every solver here is made of.

The products read the matrix as it lies in memory. `matrix.T @ x` would not: XLA on CPU writes a
transposed copy each time. Both are true float32, where an accelerator's default would be TF32 or
bfloat16.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

State = TypeVar("State")

_PRECISION = jax.lax.Precision.HIGHEST

# Two rounds whose values agree to this share are the same: rounding alone keeps them up to 5e-7
# apart for ever.
_SAME = 1e-6


def iterate(
    step: Callable[[Int[Array, ""], State], State],
    state: State,
    *,
    max_steps: int,
    finished: Callable[[State, State], Bool[Array, ""]],
) -> tuple[State, Int[Array, ""]]:
    """Repeats `state <- step(n, state)`, n = 0, 1, ..., `max_steps` times or until it is finished.

    Args:
        step: the next state, from the number of steps done before it and the state.
        state: where it starts, a tree of arrays.
        max_steps: steps at the most.
        finished: of the states before and after a step, whether it was the last.

    Returns:
        The last state, and how many steps were taken.

    It can be differentiated forwards (`jax.jvp`), not in reverse: it is a `lax.while_loop`.
    """

    def unfinished(carry):
        n, _, done = carry
        return (n < max_steps) & ~done

    def advance(carry):
        n, before, _ = carry
        after = step(n, before)
        return n + 1, after, finished(before, after)

    start = jnp.int32(0), state, jnp.bool_(False)
    steps, state, _ = jax.lax.while_loop(unfinished, advance, start)
    return state, steps


def settled(
    before: Float[Array, "..."], after: Float[Array, "..."], *, least: float = 0.0
) -> Bool[Array, ""]:
    """Whether a round changed nothing at float32's resolution; for `iterate`.

    Args:
        least: size that values are taken to have at least; 1 for logarithms, which may be 0.
    """
    return jnp.all(jnp.abs(after - before) <= _SAME * jnp.maximum(jnp.abs(after), least))


def forward(f: Float[Array, "C N"], matrix: Float[Array, "N M"]) -> Float[Array, "C M"]:
    """`out[c, j] = Σ_i f[c, i] matrix[i, j]`: the mass of each row is sent along the matrix."""
    return jnp.matmul(f, matrix, precision=_PRECISION)


def backward(f: Float[Array, "C M"], matrix: Float[Array, "N M"]) -> Float[Array, "C N"]:
    """`out[c, i] = Σ_j matrix[i, j] f[c, j]`: each entry gathers from where its row points."""
    return jnp.einsum("cj,ij->ci", f, matrix, precision=_PRECISION)

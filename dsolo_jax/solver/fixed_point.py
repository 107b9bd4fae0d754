"""The loop and the two products that every solver here is made of.

The products read the matrix as it lies in memory. `matrix.T @ x` would not: XLA on CPU writes a
transposed copy each time. Both are true float32, where an accelerator's default would be TF32 or
bfloat16; a matrix that is held in bfloat16, which is read in half the time, is multiplied as
exactly as one of float32 with the same entries.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

State = TypeVar("State")

_PRECISION = jax.lax.Precision.HIGHEST

# Two rounds whose values agree to this share are the same: rounding alone keeps them up to 5e-7
# apart for ever.
_SAME = 1e-6


def check(
    f: Float[Array, "C N"], matrix: Float[Array, "N N"] | None = None, *, maps: bool = True
) -> None:
    """Checks the shapes of a solver's arrays, and that class maps are finite and not negative.

    Values are looked at where they are there: not under `jax.jit`, `jax.vmap` or in an export,
    where a map that is not finite gives scores that are not.
    """
    square = None if matrix is None else tuple(matrix.shape)
    if f.ndim != 2 or square not in (None, (f.shape[1], f.shape[1])):
        raise ValueError(
            f"f has shape {tuple(f.shape)}{f', the matrix {square}' if square else ''}; wanted "
            "[C, N] and [N, N] of one picture; flatten its grid, and map a batch by jax.vmap"
        )
    if maps and f.size and not isinstance(f, jax.core.Tracer):
        least, most = float(np.min(f)), float(np.max(f))
        if not 0 <= least <= most < np.inf:
            raise ValueError(
                f"the class maps f go from {least} to {most}; wanted finite numbers of at least 0, "
                "as `solver.normalise` makes them of cosines"
            )


def iterate(
    step: Callable[[Int[Array, ""], State], State],
    state: State,
    *,
    max_steps: int,
    finished: Callable[[State, State], Bool[Array, ""]],
) -> tuple[State, Int[Array, ""]]:
    """Repeats `state <- step(n, state)`, n = 0, 1, ..., `max_steps` times or until `finished`, of
    the states before and after a step, says that it was the last.

    Gives the last state, a tree of arrays, and how many steps were taken. It can be differentiated
    forwards (`jax.jvp`), not in reverse: it is a `lax.while_loop`.
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
    """Whether a round changed nothing at float32's resolution, values being taken to have a size of
    `least` at least: 1 for logarithms, which may be 0."""
    return jnp.all(jnp.abs(after - before) <= _SAME * jnp.maximum(jnp.abs(after), least))


class Scaled(NamedTuple):
    """`diag(rows) matrix diag(columns)`, which is never written: a product scales what goes in and
    what comes out."""

    rows: Float[Array, "N"]
    matrix: Float[Array, "N N"]
    columns: Float[Array, "N"]


def held(matrix: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """Gives the matrix as products take it: in float32, or in bfloat16 if it has come so to an
    accelerator. A CPU would bring it to float32 in each product."""
    kept = matrix.dtype == jnp.bfloat16 and jax.default_backend() != "cpu"
    return matrix if kept else matrix.astype(jnp.float32)


def forward(f: Float[Array, "C N"], matrix: Float[Array, "N M"] | Scaled) -> Float[Array, "C M"]:
    """`out[c, j] = Σ_i f[c, i] matrix[i, j]`: the mass of each row is sent along the matrix."""
    if isinstance(matrix, Scaled):
        return forward(f * matrix.rows, matrix.matrix) * matrix.columns
    return _product("cn,nm->cm", f, matrix)


def backward(f: Float[Array, "C M"], matrix: Float[Array, "N M"]) -> Float[Array, "C N"]:
    """`out[c, i] = Σ_j matrix[i, j] f[c, j]`: each entry gathers from where its row points."""
    return _product("cm,nm->cn", f, matrix)


def _product(axes: str, f: Float[Array, "C n"], matrix: Float[Array, "N M"]) -> Float[Array, "C m"]:
    if matrix.dtype == jnp.float32:
        return jnp.einsum(axes, f, matrix, precision=_PRECISION)
    # f is the sum of three numbers of bfloat16, whose products with its like are exact.
    parts = []
    for _ in range(3):
        # Not a cast there and back, which XLA leaves out.
        parts.append(jax.lax.reduce_precision(f, exponent_bits=8, mantissa_bits=7))
        f = f - parts[-1]
    rows = jnp.concatenate(parts).astype(jnp.bfloat16)
    found = jnp.einsum(axes, rows, matrix, preferred_element_type=jnp.float32)
    return jnp.sum(found.reshape(3, -1, found.shape[-1]), axis=0)

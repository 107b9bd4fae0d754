"""Label propagation: maps spread along the graph until each patch agrees with its neighbours."""

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from dsolo_jax.solver.fixed_point import check, forward

# Of the conjugate gradient: LPOSS's.
_TOLERANCE = 1e-6
_MAX_STEPS = 50


def label_propagation(
    f: Float[Array, "C N"], attention: Float[Array, "N N"], *, alpha: float = 0.95
) -> Float[Array, "C N"]:
    """Solves for the maps that are their start and what the neighbours say, in closed form.

        W = (A + Aᵀ) / 2 without its diagonal,   S = D^-1/2 W D^-1/2,   D_ii = Σ_j W_ij
        F = (I - alpha S)^-1 f = f + alpha S f + alpha² S² f + ...

    A patch without neighbours (D_ii = 0, taken as 1) keeps its own value. Each class is solved by
    conjugate gradient with step sizes of its own, to a residual of 1e-6 of its map or for 50 steps.
    It can be differentiated in f and A, forwards and in reverse.

    Args:
        f: [C, N] maps of any sign, such as cosines.
        attention: [N, N], not negative.
        alpha: how much of the neighbours' is taken over, in 0..1, below 1. F grows as
            1 / (1 - alpha).

    Raises:
        ValueError: arrays of other shapes; alpha out of its range.

    Source: Zhou et al., Learning with Local and Global Consistency (2004), as LPOSS (CVPR 2025)
    has it: alpha, tolerance and number of steps are its.
    """
    check(f, attention, maps=False)
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha is {alpha}; wanted a number from 0 to below 1 (LPOSS: 0.95)")
    f = f.astype(jnp.float32)
    similarity = _normalised(attention.astype(jnp.float32))

    def neighbours(x: Array) -> Array:
        return alpha * forward(x, similarity)

    def solve(f: Array) -> Array:
        found, _ = cg(lambda x: x - neighbours(x[None])[0], f, tol=_TOLERANCE, maxiter=_MAX_STEPS)
        return found

    # One step of the fixed point F = f + alpha S F on top. It makes the error smaller, and takes a
    # NaN of the graph into the scores, at which the solver stops at once with zeros.
    return f + neighbours(jax.vmap(solve)(f))


def _normalised(attention: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """S: symmetric, so that a product with it from either side is the same."""
    weights = (attention + attention.T) / 2
    weights = jnp.where(jnp.eye(len(weights), dtype=bool), 0, weights)
    degree = jnp.sum(weights, axis=1)
    scale = jax.lax.rsqrt(jnp.where(degree == 0, 1, degree))
    return scale[:, None] * weights * scale[None, :]

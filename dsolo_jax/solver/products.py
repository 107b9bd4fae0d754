"""The two products the solver is made of.

Both read the matrix as it lies in memory. `matrix.T @ x` would not: XLA on CPU writes a transposed
copy each time. Both are true float32, where an accelerator's default would be TF32 or bfloat16.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_PRECISION = jax.lax.Precision.HIGHEST


def forward(f: Float[Array, "C N"], matrix: Float[Array, "N M"]) -> Float[Array, "C M"]:
    """`out[c, j] = Σ_i f[c, i] matrix[i, j]`: the mass of each row is sent along the matrix."""
    return jnp.matmul(f, matrix, precision=_PRECISION)


def backward(f: Float[Array, "C M"], matrix: Float[Array, "N M"]) -> Float[Array, "C N"]:
    """`out[c, i] = Σ_j matrix[i, j] f[c, j]`: each entry gathers from where its row points."""
    return jnp.einsum("cj,ij->ci", f, matrix, precision=_PRECISION)

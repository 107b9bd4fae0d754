"""Resampling as matrices of weights, so that the sizes may be traced."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

# The cubic kernel's free parameter, PyTorch's choice.
_A = -0.75


def _cubic(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keys' cubic convolution kernel: 1 at 0, 0 at the other integers and from 2 on."""
    x = jnp.abs(x)
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0))


def cubic_weights(
    index: Num[Array, "..."], in_size: int, out_size: Num[Array, "..."] | int
) -> Float[Array, "... {in_size}"]:
    """Weights of the `in_size` samples in sample `index` of an axis resampled to `out_size`.

        w[j] = sum of cubic(s - k) over the taps k that clamp to j,  s = (index + 1/2) in/out - 1/2

    This is torch.nn.functional.interpolate(mode="bicubic", align_corners=False) along one axis: no
    antialiasing, samples beyond the border repeat it. `out_size` may be traced and broadcasts with
    `index`. Equal sizes give the identity.
    """
    scale = in_size / jnp.asarray(out_size, jnp.float32)
    source = (index + 0.5) * scale - 0.5
    # s lies in [-1/2, in_size - 1/2], so the taps within reach are -2 .. in_size + 1.
    taps = _cubic(source[..., None] - jnp.arange(-2, in_size + 2))
    weights = taps[..., 2:-2].at[..., 0].add(taps[..., :2].sum(-1))
    return weights.at[..., -1].add(taps[..., -2:].sum(-1))

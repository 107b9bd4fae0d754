"""The 3 x 3 convolution of Stable Diffusion, in the forms that are fast where XLA's own is not.

Letters: B batch, h w positions, C O channels in and out.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# B h w C; height, width and channels are the stage's own.
Field = Float[Array, "B _ _ _"]
Padding = tuple[tuple[int, int], tuple[int, int]]

_SAME: Padding = ((1, 1), (1, 1))


class Convolution(nn.Module):
    """3 x 3."""

    channels: int
    stride: int = 1
    padding: Padding = _SAME

    @nn.compact
    def __call__(self, x: Field) -> Field:
        shape = 3, 3, x.shape[-1], self.channels
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        return convolve(x.astype(kernel.dtype), kernel, self.stride, self.padding) + bias


# Where, on CPU, another form than XLA's own is faster (measured in docs/performance.md): up to so
# many positions one product over gathered neighbours, from so many positions and channels on
# Winograd's. In bfloat16 its sums would lose too much.
_FEW_POSITIONS = 16 * 16
_MANY_POSITIONS, _MANY_CHANNELS = 128 * 128, 32


def convolve(
    x: Field, kernel: Float[Array, "3 3 C O"], stride: int = 1, padding: Padding = _SAME
) -> Float[Array, "B _ _ O"]:
    """Σ kernel[i, j] · x[s·h + i, s·w + j], sums in float32; on a GPU rounded to x's dtype."""
    if stride == 1 and padding == _SAME and jax.default_backend() == "cpu":
        _, h, w, channels = x.shape
        if h * w <= _FEW_POSITIONS:
            return gathered(x, kernel)
        many = h * w >= _MANY_POSITIONS and channels >= _MANY_CHANNELS
        if many and x.dtype == jnp.float32 and h % _STRIP == 0 and w % 2 == 0:
            return winograd(x, kernel)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=product_dtype(),
    ).astype(jnp.float32)


def product_dtype() -> DTypeLike | None:
    """What a product is asked to give: float32, on a GPU (None) the dtype of its factors.

    The sums are float32 everywhere. A GPU asked for other convolutions brings their factors to
    float32 first, and so to half the speed; and fields of half the bytes are read twice as fast.
    """
    return None if jax.default_backend() == "gpu" else jnp.float32


def gathered(x: Field, kernel: Float[Array, "3 3 C O"]) -> Float[Array, "B _ _ O"]:
    """One product, of each position's nine neighbours side by side with the whole kernel."""
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), *_SAME, (0, 0)))
    near = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return jnp.matmul(
        jnp.concatenate(near, axis=-1),
        kernel.reshape(-1, kernel.shape[-1]),
        preferred_element_type=jnp.float32,
    )


# Rows of a strip: few enough for its 16 products to stay near the caches.
_STRIP = 16

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def winograd(x: Field, kernel: Float[Array, "3 3 C O"]) -> Float[Array, "B _ _ O"]:
    """16 products for each 2 x 2 outputs, where 36 were due; h a multiple of 16, w of 2.

        Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A,   d a 4 x 4 tile of the input, g the kernel

    Source: Lavin & Gray 2016, F(2 x 2, 3 x 3), whose Bᵀ, G and Aᵀ these are.
    """
    b, h, w, _ = x.shape
    filters = jnp.einsum("ai,bj,ijco->abco", _G, _G, kernel, precision="highest")
    padded = jnp.pad(x, ((0, 0), *_SAME, (0, 0)))

    def strip(first: Array) -> Float[Array, "B r w O"]:
        d = jax.lax.dynamic_slice_in_dim(padded, first, _STRIP + 2, axis=1)
        by_row = _transform_input([d[:, i : i + _STRIP - 1 : 2] for i in range(4)])
        products = []
        for rows, filter_row in zip(by_row, filters, strict=True):
            tiles = _transform_input([rows[:, :, j : j + w - 1 : 2] for j in range(4)])
            products.append([tile @ f for tile, f in zip(tiles, filter_row, strict=True)])
        upper, lower = zip(
            *(_transform_output(*column) for column in zip(*products, strict=True)), strict=True
        )
        pairs = [jnp.stack(_transform_output(*half), axis=3) for half in (upper, lower)]
        return jnp.stack(pairs, axis=2).reshape(b, _STRIP, w, -1)

    strips = jax.lax.map(strip, jnp.arange(0, h, _STRIP))
    return jnp.moveaxis(strips, 0, 1).reshape(b, h, w, -1)


def _transform_input(d: list[Array]) -> list[Array]:
    """Bᵀ d along one axis."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _transform_output(m0: Array, m1: Array, m2: Array, m3: Array) -> tuple[Array, Array]:
    """Aᵀ m along one axis."""
    return m0 + m1 + m2, m1 - m2 - m3

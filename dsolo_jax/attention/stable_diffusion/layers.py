"""What Stable Diffusion's VAE and UNet are both made of.

Letters: B batch, h w positions, C channels, n = h · w tokens, K heads, d head size.

Between the products all is float32; their factors have the dtype of the weights. With bfloat16
weights this halves the error of the maps against bfloat16 throughout, and costs little beside the
products.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax import transformer
from dsolo_jax.transformer import Heads, by_rows

Field = Float[Array, "B h w C"]


class Dense(nn.Module):
    """x kernel + bias; with `heads` split into them, in the kernel's dtype."""

    features: int
    heads: int | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"] | Heads:
        shape = x.shape[-1], self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))
        return y if self.heads is None else split(y, self.heads).astype(kernel.dtype)


class Convolution(nn.Module):
    """3 x 3."""

    channels: int
    stride: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))

    @nn.compact
    def __call__(self, x: Field) -> Field:
        shape = 3, 3, x.shape[-1], self.channels
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        y = _convolve(x.astype(kernel.dtype), kernel, self.stride, self.padding)
        return y + bias


# Positions up to which, on CPU, one product over gathered neighbours beats XLA's convolution (by 2
# to 4 at 16 x 16 and 8 x 8 positions of 1280 channels; from 32 x 32 on it loses).
_FEW = 16 * 16


def _convolve(
    x: Field,
    kernel: Float[Array, "3 3 C O"],
    stride: int,
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Field:
    """Σ kernel[i, j] · x[s·h + i, s·w + j], sums in float32."""
    if stride == 1 and x.shape[1] * x.shape[2] <= _FEW and jax.default_backend() == "cpu":
        h, w = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        near = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
        flat = kernel.reshape(-1, kernel.shape[-1])
        gathered = jnp.concatenate(near, axis=-1)
        return jnp.matmul(gathered, flat, preferred_element_type=jnp.float32)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=jnp.float32,
    )


class GroupNorm(nn.Module):
    """(x − mean) / √(variance + ε), over positions and the channels of a group."""

    groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Field) -> Field:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def of_group(of_channel: Float[Array, "B C"]) -> Float[Array, "B C"]:
            grouped = of_channel.reshape(len(x), self.groups, -1).mean(axis=-1)
            return jnp.repeat(grouped, channels // self.groups, axis=-1)

        # Each channel first, whose sums run along memory. A group's variance is the mean of its
        # channels' variances and of their means' squared distances.
        means = x.mean(axis=(1, 2))
        variances = jnp.square(x - means[:, None, None]).mean(axis=(1, 2))
        mean = of_group(means)
        variance = of_group(variances + jnp.square(means - mean))
        gain = scale * jax.lax.rsqrt(variance + self.epsilon)
        return (x - mean[:, None, None]) * gain[:, None, None] + bias


class Resnet(nn.Module):
    """x + convolve(silu(norm(convolve(silu(norm(x))))))."""

    channels: int
    groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Field) -> Field:
        y = nn.silu(GroupNorm(self.groups, self.epsilon, name="norm1")(x))
        y = Convolution(self.channels, name="conv1")(y)
        y = nn.silu(GroupNorm(self.groups, self.epsilon, name="norm2")(y))
        y = Convolution(self.channels, name="conv2")(y)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, name="conv_shortcut")(x)
        return x + y


def tokens(x: Field) -> Float[Array, "B n C"]:
    return x.reshape(len(x), -1, x.shape[-1])


def split(x: Float[Array, "B n C"], heads: int) -> Heads:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def attend(query: Heads, key: Heads, value: Heads) -> Float[Array, "B n C"]:
    """Attention in blocks of queries, its heads side by side."""
    mixed = by_rows(lambda q: transformer.attend(q, key, value), query, key.shape[2])
    return mixed.swapaxes(1, 2).reshape(len(query), query.shape[2], -1)

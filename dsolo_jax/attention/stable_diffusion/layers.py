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

from dsolo_jax.attention.stable_diffusion.convolution import Convolution, Field, product_dtype
from dsolo_jax.transformer import Heads, attend_in_blocks


class Dense(nn.Module):
    """x kernel + bias; with `heads` split into them, in the kernel's dtype."""

    features: int
    heads: int | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"] | Heads:
        shape = x.shape[-1], self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        y = jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=product_dtype())
        y = y.astype(jnp.float32)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y if self.heads is None else split(y, self.heads).astype(kernel.dtype)


class GroupNorm(nn.Module):
    """(x − mean) / √(variance + ε), over positions and the channels of a group."""

    groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Field) -> Field:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)

        def of_group(of_channel: Float[Array, "B C"]) -> Float[Array, "B C"]:
            grouped = of_channel.reshape(len(x), self.groups, -1).mean(axis=-1)
            return jnp.repeat(grouped, channels // self.groups, axis=-1)

        # Each channel first, whose sums run along memory, both in one pass: from about the mean,
        # that of a row, squares lose no digits.
        near = x[:, 0].mean(axis=1)
        means = x.mean(axis=(1, 2))
        squares = jnp.square(x - near[:, None, None]).mean(axis=(1, 2))
        variances = squares - jnp.square(means - near)
        # A group's variance is the mean of its channels' and of their means' squared distances.
        mean = of_group(means)
        variance = of_group(variances + jnp.square(means - mean))
        gain = scale * jax.lax.rsqrt(variance + self.epsilon)
        return (x - mean[:, None, None]) * gain[:, None, None] + bias


class Resnet(nn.Module):
    """x + convolve(silu(norm(convolve(silu(norm(x))) + dense(embedding))))."""

    channels: int
    groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Field, embedding: Float[Array, "E"] | None = None) -> Field:
        y = nn.silu(GroupNorm(self.groups, self.epsilon, name="norm1")(x))
        y = Convolution(self.channels, name="conv1")(y)
        if embedding is not None:
            y = y + Dense(self.channels, name="time_emb_proj")(embedding)
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
    """Attention, its heads side by side."""
    mixed = attend_in_blocks(query, key, value)
    return mixed.swapaxes(1, 2).reshape(len(query), query.shape[2], -1)

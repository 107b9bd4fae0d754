"""Stable Diffusion's image encoder, the first half of diffusers' AutoencoderKL."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax import transformer
from dsolo_jax.attention.stable_diffusion.config import VAEConfig
from dsolo_jax.attention.stable_diffusion.convolution import Convolution, Field
from dsolo_jax.attention.stable_diffusion.layers import Dense, GroupNorm, Resnet, attend, tokens

EPSILON = 1e-6


class _Attention(nn.Module):
    """One head over all positions."""

    groups: int

    @nn.compact
    def __call__(self, x: Field) -> Field:
        width = x.shape[-1]
        y = tokens(GroupNorm(self.groups, EPSILON, name="group_norm")(x))
        q, k, v = (Dense(width, heads=1, name=f"to_{name}")(y) for name in "qkv")
        y = Dense(width, name="to_out")(attend(q, k, v))
        return x + y.reshape(x.shape)


class _Down(nn.Module):
    config: VAEConfig
    channels: int
    halve: bool

    @nn.compact
    def __call__(self, x: Field) -> Field:
        groups = self.config.norm_num_groups
        for j in range(self.config.layers_per_block):
            x = Resnet(self.channels, groups, EPSILON, name=f"resnets_{j}")(x)
        if self.halve:
            x = Convolution(self.channels, 2, ((0, 1), (0, 1)), name="downsample")(x)
        return x


class Middle(nn.Module):
    config: VAEConfig

    @nn.compact
    def __call__(self, x: Field) -> Field:
        groups = self.config.norm_num_groups
        x = Resnet(x.shape[-1], groups, EPSILON, name="resnets_0")(x)
        x = _Attention(groups, name="attentions_0")(x)
        return Resnet(x.shape[-1], groups, EPSILON, name="resnets_1")(x)


class Encoder(nn.Module):
    """Pictures in -1..1 to the posterior of their latents, a Gaussian: its mean, which is its mode,
    and its log variance, both unscaled.
    """

    config: VAEConfig

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B h w L"], Float[Array, "B h w L"]]:
        config, widths = self.config, self.config.block_out_channels
        x = Convolution(widths[0], name="conv_in")(pixels)
        for i, width in enumerate(widths):
            x = _Down(config, width, halve=i < len(widths) - 1, name=f"down_blocks_{i}")(x)
        x = Middle(config, name="mid_block")(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, EPSILON, name="conv_norm_out")(x))
        x = Convolution(2 * config.latent_channels, name="conv_out")(x)
        if config.use_quant_conv:
            x = Dense(2 * config.latent_channels, name="quant_conv")(x)
        mean, log_variance = jnp.split(x, 2, axis=-1)
        return mean, log_variance


def parameter_shapes(config: VAEConfig) -> dict[str, Any]:
    """Gives the tree of parameters, as `jax.ShapeDtypeStruct`s."""
    pixels = jnp.zeros((1, 2 ** len(config.block_out_channels), 8, 3))
    return transformer.parameter_shapes(Encoder(config), pixels)

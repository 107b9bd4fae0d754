"""Stable Diffusion's image decoder, the second half of diffusers' AutoencoderKL.

Only training needs it: a patch graph never goes back to pixels.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax.attention.stable_diffusion.config import VAEConfig
from dsolo_jax.attention.stable_diffusion.convolution import Convolution, Field
from dsolo_jax.attention.stable_diffusion.layers import GroupNorm, Resnet
from dsolo_jax.attention.stable_diffusion.vae import EPSILON, Middle


class _Up(nn.Module):
    config: VAEConfig
    channels: int
    double: bool

    @nn.compact
    def __call__(self, x: Field) -> Field:
        for j in range(self.config.layers_per_block + 1):
            x = Resnet(self.channels, self.config.norm_num_groups, EPSILON, name=f"resnets_{j}")(x)
        if self.double:
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = Convolution(self.channels, name="upsample")(x)
        return x


class Decoder(nn.Module):
    """Latents, unscaled, to pictures in -1..1, without diffusers' post_quant_conv."""

    config: VAEConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "B h w L"]) -> Float[Array, "B H W 3"]:
        config, widths = self.config, self.config.block_out_channels[::-1]
        x = Convolution(widths[0], name="conv_in")(jnp.asarray(latents))
        x = Middle(config, name="mid_block")(x)
        for i, width in enumerate(widths):
            x = _Up(config, width, double=i < len(widths) - 1, name=f"up_blocks_{i}")(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, EPSILON, name="conv_norm_out")(x))
        return Convolution(3, name="conv_out")(x)

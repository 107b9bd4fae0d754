"""Stable Diffusion's denoiser, diffusers' UNet2DConditionModel, at one timestep and one prompt."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax import transformer
from dsolo_jax.attention.stable_diffusion.config import ATTENDING_DOWN, ATTENDING_UP, UNetConfig
from dsolo_jax.attention.stable_diffusion.convolution import Convolution, Field
from dsolo_jax.attention.stable_diffusion.layers import Dense, GroupNorm, Resnet, attend, tokens
from dsolo_jax.checkpoints import Params
from dsolo_jax.transformer import Heads, layer_norm

_ATTENTION_NORM_EPSILON = 1e-6  # of diffusers' Transformer2DModel, whatever the config's norm_eps


class Looking(NamedTuple):
    """What a self-attention looks with, and at."""

    query: Heads
    key: Heads


class _Heads(nn.Module):
    """Attention of positions to themselves, or to a prompt."""

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B n C"], context: Float[Array, "#B m E"]
    ) -> tuple[Float[Array, "B n C"], Looking]:
        width = x.shape[-1]
        q = Dense(width, self.heads, use_bias=False, name="to_q")(x)
        k, v = (
            Dense(width, self.heads, use_bias=False, name=name)(context)
            for name in ("to_k", "to_v")
        )
        return Dense(width, name="to_out")(attend(q, k, v)), Looking(q, k)


class _FeedForward(nn.Module):
    """GEGLU: contract(a · gelu(b)), [a, b] = expand(x)."""

    @nn.compact
    def __call__(self, x: Float[Array, "B n C"]) -> Float[Array, "B n C"]:
        width = x.shape[-1]
        a, b = jnp.split(Dense(8 * width, name="expand")(x), 2, axis=-1)
        return Dense(width, name="contract")(a * nn.gelu(b, approximate=False))


class _Attention(nn.Module):
    """A transformer block over all positions: to themselves, to the prompt, a feed-forward."""

    config: UNetConfig
    heads: int

    @nn.compact
    def __call__(self, field: Field, prompt: Float[Array, "T D"]) -> tuple[Field, Looking]:
        width = field.shape[-1]
        x = GroupNorm(self.config.norm_num_groups, _ATTENTION_NORM_EPSILON, name="norm")(field)
        x = Dense(width, name="proj_in")(tokens(x))
        norm = [layer_norm(1e-5, f"norm{i}") for i in (1, 2, 3)]
        normed = norm[0](x)
        y, looking = _Heads(self.heads, name="attn1")(normed, normed)
        x = x + y
        x = x + _Heads(self.heads, name="attn2")(norm[1](x), prompt[None])[0]
        x = x + _FeedForward(name="ff")(norm[2](x))
        return field + Dense(width, name="proj_out")(x).reshape(field.shape), looking


class _Stage(nn.Module):
    """Resnets at one resolution, the first of them followed by attention; then a change of size."""

    config: UNetConfig
    channels: int
    resnets: int
    attentions: int
    heads: int
    resize: str = ""

    @nn.compact
    def __call__(
        self,
        x: Field,
        embedding: Float[Array, "E"],
        prompt: Float[Array, "T D"],
        skips: list[Field] | None = None,
    ) -> tuple[list[Field], list[Looking]]:
        """Everything the stage puts out, in order, and its self-attentions.

        `skips`, one for each resnet, the last first, join the resnets' inputs.
        """
        config, outputs, lookings = self.config, [], []
        for j in range(self.resnets):
            if skips is not None:
                x = jnp.concatenate([x, skips[-1 - j]], axis=-1)
            shape = self.channels, config.norm_num_groups, config.norm_eps
            x = Resnet(*shape, name=f"resnets_{j}")(x, embedding)
            if j < self.attentions:
                x, looking = _Attention(config, self.heads, name=f"attentions_{j}")(x, prompt)
                lookings.append(looking)
            outputs.append(x)
        if self.resize == "half":
            outputs.append(Convolution(self.channels, 2, name="downsample")(x))
        if self.resize == "double":
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            outputs.append(Convolution(self.channels, name="upsample")(x))
        return outputs, lookings


class _TimeEmbedding(nn.Module):
    """linear_2(silu(linear_1([cos, sin](t · 10000^(−i / half)))))."""

    width: int

    @nn.compact
    def __call__(self, timestep: Float[Array, ""] | float) -> Float[Array, "E"]:
        half = self.width // 2
        angles = timestep * jnp.exp(-math.log(10000) / half * jnp.arange(half, dtype=jnp.float32))
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])
        x = nn.silu(Dense(4 * self.width, name="linear_1")(x))
        return Dense(4 * self.width, name="linear_2")(x)


class _UNet(nn.Module):
    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "B h w L"],
        prompt: Float[Array, "T D"],
        timestep: Float[Array, ""] | float,
    ) -> tuple[Float[Array, "B h w L"], dict[str, Looking]]:
        """The denoiser's output, and its self-attentions by diffusers' names of their modules."""
        config, widths, heads = self.config, self.config.block_out_channels, self.config.num_heads
        last, per_stage = len(widths) - 1, config.layers_per_block
        embedding = nn.silu(_TimeEmbedding(widths[0], name="time_embedding")(timestep))
        found: dict[str, Looking] = {}

        def stage(name: str, i: int, resnets: int, attentions: int, resize: str, x, *given):
            shape = widths[i], resnets, attentions, heads[i], resize
            run = _Stage(config, *shape, name=name.replace(".", "_"))
            outputs, lookings = run(x, embedding, prompt, *given)
            found.update({f"{name}.attentions.{j}": x for j, x in enumerate(lookings)})
            return outputs

        x = Convolution(widths[0], name="conv_in")(latents)
        skips = [x]
        for i, kind in enumerate(config.down_block_types):
            attentions = per_stage * (kind == ATTENDING_DOWN)
            resize = "half" if i < last else ""
            skips += stage(f"down_blocks.{i}", i, per_stage, attentions, resize, skips[-1])
        x = stage("mid_block", last, 2, 1, "", skips[-1])[-1]
        for i, kind in enumerate(config.up_block_types):
            resnets = per_stage + 1
            attentions = resnets * (kind == ATTENDING_UP)
            resize = "double" if i < last else ""
            skips, given = skips[:-resnets], skips[-resnets:]
            x = stage(f"up_blocks.{i}", last - i, resnets, attentions, resize, x, given)[-1]
        x = nn.silu(GroupNorm(config.norm_num_groups, config.norm_eps, name="conv_norm_out")(x))
        return Convolution(config.out_channels, name="conv_out")(x), found


def layer_names(config: UNetConfig) -> tuple[str, ...]:
    """Lists the self-attentions there are, by diffusers' names of their modules, as they run."""
    stages = [("mid_block", 1)]
    for i, kind in reversed(list(enumerate(config.down_block_types))):
        stages.insert(0, (f"down_blocks.{i}", config.layers_per_block * (kind == ATTENDING_DOWN)))
    for i, kind in enumerate(config.up_block_types):
        stages.append((f"up_blocks.{i}", (config.layers_per_block + 1) * (kind == ATTENDING_UP)))
    return tuple(f"{name}.attentions.{j}" for name, count in stages for j in range(count))


def denoise(
    params: Params,
    config: UNetConfig,
    latents: Float[Array, "B h w L"],
    prompt: Float[Array, "T D"],
    timestep: Float[Array, ""] | float,
) -> tuple[Float[Array, "B h w L"], dict[str, Looking]]:
    """Computes the denoiser's output, and every self-attention by its name; h and w are multiples
    of 2 ** (number of resolutions - 1).

    What of this a jitted caller does not use, XLA does not compute: nothing runs behind the last
    self-attention that is asked for.
    """
    found: Any = _UNet(config).apply({"params": params}, latents, prompt, timestep)
    return found


def parameter_shapes(config: UNetConfig) -> dict[str, Any]:
    """Gives the tree of parameters, as `jax.ShapeDtypeStruct`s."""
    side = 2 ** len(config.block_out_channels)
    latents = jnp.zeros((1, side, side, config.in_channels))
    prompt = jnp.zeros((1, config.cross_attention_dim))
    return transformer.parameter_shapes(_UNet(config), latents, prompt, 0.0)

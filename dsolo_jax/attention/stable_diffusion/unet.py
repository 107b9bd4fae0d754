"""Stable Diffusion's denoiser, diffusers' UNet2DConditionModel, at one timestep and one prompt.

What depends on the timestep and the prompt alone is constant for a checkpoint: the shifts that the
time embedding adds inside the resnets, and the keys and values that the pictures look up in the
prompt. `at_timestep` computes them once and puts them where the weights were.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax.attention.stable_diffusion.config import (
    ATTENDING_DOWN,
    ATTENDING_UP,
    UNetConfig,
)
from dsolo_jax.attention.stable_diffusion.convolution import Convolution, Field
from dsolo_jax.attention.stable_diffusion.layers import (
    Dense,
    GroupNorm,
    Resnet,
    attend,
    split,
    tokens,
)
from dsolo_jax.checkpoints import Params
from dsolo_jax.transformer import Heads, layer_norm

_ATTENTION_NORM_EPSILON = 1e-6  # of diffusers' Transformer2DModel, whatever the config's norm_eps


class Looking(NamedTuple):
    """What a self-attention looks with, and at."""

    query: Heads
    key: Heads


class _SelfAttention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "B n C"]) -> tuple[Float[Array, "B n C"], Looking]:
        width = x.shape[-1]
        q, k, v = (Dense(width, self.heads, use_bias=False, name=f"to_{name}")(x) for name in "qkv")
        return Dense(width, name="to_out")(attend(q, k, v)), Looking(q, k)


class _PromptAttention(nn.Module):
    """Cross-attention to a prompt of T tokens, whose keys and values are constants."""

    heads: int
    prompt_length: int

    @nn.compact
    def __call__(self, x: Float[Array, "B n C"]) -> Float[Array, "B n C"]:
        width, shape = x.shape[-1], (self.prompt_length, x.shape[-1])
        q = Dense(width, self.heads, use_bias=False, name="to_q")(x)
        k, v = (
            split(self.param(name, nn.initializers.zeros, shape)[None], self.heads)
            for name in ("keys", "values")
        )
        return Dense(width, name="to_out")(attend(q, k, v))


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
    prompt_length: int

    @nn.compact
    def __call__(self, field: Field) -> tuple[Field, Looking]:
        width = field.shape[-1]
        normed = GroupNorm(self.config.norm_num_groups, _ATTENTION_NORM_EPSILON, name="norm")(field)
        x = Dense(width, name="proj_in")(tokens(normed))
        norm = [layer_norm(1e-5, f"norm{i}") for i in (1, 2, 3)]
        y, looking = _SelfAttention(self.heads, name="attn1")(norm[0](x))
        x = x + y
        prompt = _PromptAttention(self.heads, self.prompt_length, name="attn2")
        x = x + prompt(norm[1](x))
        x = x + _FeedForward(name="ff")(norm[2](x))
        return field + Dense(width, name="proj_out")(x).reshape(field.shape), looking


class _Stage(nn.Module):
    """Resnets at one resolution, the first of them followed by attention; then a change of size."""

    config: UNetConfig
    channels: int
    resnets: int
    attentions: int
    heads: int
    prompt_length: int
    resize: str = ""

    @nn.compact
    def __call__(
        self, x: Field, skips: list[Field] | None = None
    ) -> tuple[list[Field], list[Looking]]:
        """Everything the stage puts out, in order, and its self-attentions.

        `skips`, one for each resnet, the last first, join the resnets' inputs.
        """
        config, outputs, lookings = self.config, [], []
        for j in range(self.resnets):
            if skips is not None:
                x = jnp.concatenate([x, skips[-1 - j]], axis=-1)
            x = Resnet(self.channels, config.norm_num_groups, config.norm_eps, name=f"resnets_{j}")(
                x
            )
            if j < self.attentions:
                x, looking = _Attention(
                    config, self.heads, self.prompt_length, name=f"attentions_{j}"
                )(x)
                lookings.append(looking)
            outputs.append(x)
        if self.resize == "half":
            outputs.append(Convolution(self.channels, 2, name="downsample")(x))
        if self.resize == "double":
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            outputs.append(Convolution(self.channels, name="upsample")(x))
        return outputs, lookings


class _UNet(nn.Module):
    config: UNetConfig
    prompt_length: int

    @nn.compact
    def __call__(
        self, latents: Float[Array, "B h w L"]
    ) -> tuple[Float[Array, "B h w L"], dict[str, Looking]]:
        """The denoiser's output, and its self-attentions by diffusers' names of their modules."""
        config, widths, heads = self.config, self.config.block_out_channels, self.config.num_heads
        last, per_stage = len(widths) - 1, config.layers_per_block
        found: dict[str, Looking] = {}

        def stage(name: str, i: int, resnets: int, attentions: int, resize: str, *inputs):
            shape = widths[i], resnets, attentions, heads[i], self.prompt_length, resize
            outputs, lookings = _Stage(config, *shape, name=name.replace(".", "_"))(*inputs)
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
    fixed: Params, config: UNetConfig, latents: Float[Array, "B h w L"]
) -> tuple[Float[Array, "B h w L"], dict[str, Looking]]:
    """Computes the denoiser's output, and every self-attention by its name.

    Args:
        fixed: parameters at one timestep and prompt, of `at_timestep`.
        latents: h and w multiples of 2 ** (number of resolutions - 1).

    What of this a jitted caller does not use, XLA does not compute: nothing runs behind the last
    self-attention that is asked for.
    """
    prompt_length = len(fixed["mid_block"]["attentions_0"]["attn2"]["keys"])
    found: Any = _UNet(config, prompt_length).apply({"params": fixed}, latents)
    return found


# -------------------------------------------------------------------------------- constants


def at_timestep(
    params: Params,
    config: UNetConfig,
    prompt: Float[Array, "T E"],
    timestep: Float[Array, ""] | float | int,
) -> Params:
    """Makes of a checkpoint's parameters those of the network at one timestep and one prompt.

    A resnet's shift, made of the time embedding, goes into the bias of its first convolution; a
    cross-attention's keys and values become those of the prompt.
    """
    embedding = nn.silu(_time_embedding(params["time_embedding"], config, timestep))

    def fix(tree: Params) -> Params:
        fixed = {k: fix(v) if isinstance(v, dict) else v for k, v in tree.items()}
        if "time_emb_proj" in tree:
            shift = _dense(fixed.pop("time_emb_proj"), embedding)
            fixed["conv1"]["bias"] = fixed["conv1"]["bias"] + shift
        if "attn2" in tree:
            cross = fixed["attn2"]
            cross["keys"] = _dense(cross.pop("to_k"), prompt)
            cross["values"] = _dense(cross.pop("to_v"), prompt)
        return fixed

    fixed = fix(params)
    del fixed["time_embedding"]
    return fixed


def _time_embedding(
    params: Params, config: UNetConfig, timestep: Float[Array, ""] | float | int
) -> Float[Array, "E"]:
    """linear_2(silu(linear_1([cos, sin](t · 10000^(−i / (half − shift))))))."""
    half = config.block_out_channels[0] // 2
    exponents = -math.log(10000) * jnp.arange(half, dtype=jnp.float32) / (half - config.freq_shift)
    angles = timestep * jnp.exp(exponents)
    waves = [jnp.sin(angles), jnp.cos(angles)]
    if config.flip_sin_to_cos:
        waves.reverse()
    hidden = nn.silu(_dense(params["linear_1"], jnp.concatenate(waves)))
    return _dense(params["linear_2"], hidden)


def _dense(params: Params, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
    kernel = params["kernel"]
    y = x.astype(kernel.dtype) @ kernel
    return y + params["bias"] if "bias" in params else y


def parameter_shapes(config: UNetConfig) -> dict[str, Any]:
    """Gives the tree of a checkpoint's parameters, as `jax.ShapeDtypeStruct`s."""
    side = 2 ** len(config.block_out_channels)
    latents = jnp.zeros((1, side, side, config.in_channels))
    tree = jax.eval_shape(_UNet(config, 1).init, jax.random.key(0), latents)["params"]
    embedding = 4 * config.block_out_channels[0]
    width = config.cross_attention_dim

    def dense(inputs: int, outputs: int) -> dict[str, Any]:
        return {
            "kernel": jax.ShapeDtypeStruct((inputs, outputs), jnp.float32),
            "bias": jax.ShapeDtypeStruct((outputs,), jnp.float32),
        }

    def unfix(fixed: Params) -> Params:
        """The inverse of what `at_timestep` does."""
        tree = {k: unfix(v) if isinstance(v, dict) else v for k, v in fixed.items()}
        if "conv1" in tree:
            tree["time_emb_proj"] = dense(embedding, tree["conv1"]["bias"].shape[0])
        if "attn2" in tree:
            cross = tree["attn2"]
            for name, constant in (("to_k", "keys"), ("to_v", "values")):
                outputs = cross.pop(constant).shape[-1]
                cross[name] = {"kernel": dense(width, outputs)["kernel"]}
        return tree

    inputs = config.block_out_channels[0]
    time = {"linear_1": dense(inputs, embedding), "linear_2": dense(embedding, embedding)}
    return unfix(tree) | {"time_embedding": time}

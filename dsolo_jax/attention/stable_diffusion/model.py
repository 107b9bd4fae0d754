"""From a picture to its patch graph: the latent, one step of the denoiser, its self-attentions."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dsolo_jax.attention.resample import resample_attention
from dsolo_jax.attention.stable_diffusion import unet, vae
from dsolo_jax.attention.stable_diffusion.config import StableDiffusionConfig
from dsolo_jax.attention.stable_diffusion.unet import Looking
from dsolo_jax.checkpoints import Params
from dsolo_jax.transformer import attention_rows, by_rows, precision
from dsolo_jax.utils.checks import choose


def pixels_per_patch(config: StableDiffusionConfig) -> int:
    """Side of the square of pixels behind one latent position: 8."""
    return 2 ** (len(config.vae.block_out_channels) - 1)


def size_multiple(config: StableDiffusionConfig) -> int:
    """What a picture's sides must be multiples of, pixels: 64."""
    return pixels_per_patch(config) * 2 ** (len(config.unet.block_out_channels) - 1)


def layer_names(config: StableDiffusionConfig) -> tuple[str, ...]:
    """The self-attentions by name: M2N2's short names, then diffusers' names of all.

    "down.0", "down.1" are the first down block's, "up.0", "up.1", "up.2" the last up block's: those
    at the latent's full resolution.
    """
    return (*_short_names(config), *unet.layer_names(config.unet))


def _short_names(config: StableDiffusionConfig) -> dict[str, str]:
    first, last = "down_blocks.0.", f"up_blocks.{len(config.unet.up_block_types) - 1}."
    return {
        f"{short}.{name.rsplit('.', 1)[1]}": name
        for short, stage in (("down", first), ("up", last))
        for name in unet.layer_names(config.unet)
        if name.startswith(stage)
    }


def encode(
    params: Params, config: StableDiffusionConfig, pixels: Float[Array, "B H W 3"]
) -> Float[Array, "B h w L"]:
    """Latents of pictures in -1..1: the VAE's posterior mode times its scaling factor, no noise.

    Args:
        params, config: as `load` gives them.
        pixels: H and W multiples of `pixels_per_patch`.
    """
    return _encode(params["vae"], config, pixels)


@partial(jax.jit, static_argnames=("config",))
def _encode(params, config, pixels) -> Float[Array, "B h w L"]:
    with precision(params["conv_in"]["kernel"]):
        mean, _ = vae.Encoder(config.vae).apply({"params": params}, pixels)
        return mean * config.vae.scaling_factor


def at_timestep(params: Params, config: StableDiffusionConfig, timestep: float) -> Params:
    """Parameters for `self_attention(..., timestep=None)`: what depends on the timestep and on the
    empty prompt alone, computed once.
    """
    with precision(params["unet"]["conv_in"]["kernel"]):
        fixed = unet.at_timestep(params["unet"], config.unet, params["prompt"], timestep)
    return {"vae": params["vae"], "unet": fixed}


def self_attention(
    params: Params,
    config: StableDiffusionConfig,
    pixels: Float[Array, "B 8r 8r 3"],
    *,
    layers: Sequence[str] = ("up.0", "up.1"),
    weights: Sequence[float] | None = None,
    timestep: float | None = 100,
) -> Float[Array, "B N N"]:
    """Patch-to-patch attention of the denoiser on the noise-free latent, without a prompt.

    The logits of all heads never exist at once, and nothing behind the last layer asked for is
    computed.

    Args:
        params, config: as `load` gives them.
        pixels: square pictures in -1..1, sides multiples of `size_multiple` (64).
        layers: some of `layer_names`. Layers of lower resolution are resampled bilinearly, queries
            and keys alike, to the latent's r x r.
        weights: of each layer, not negative; all alike if None.
        timestep: 0..999; None where `params` come from `at_timestep`.

    Returns:
        softmax(qkᵀ/√d), mean over heads, weighted mean over layers, float32; rows sum to one,
        N = r · r.

    Raises:
        ValueError: an unknown layer; no layer; weights that do not fit them; pixels of another
            shape.

    Source: M2N2 (Karmann & Urfalioglu 2025), whose layers and timestep are the defaults.
    """
    names, multiple = layer_names(config), size_multiple(config)
    for layer in layers:
        choose("layer", layer, names)
    weights = (1.0,) * len(layers) if weights is None else tuple(map(float, weights))
    if len(weights) != len(layers) or not sum(weights) > 0 or min(weights) < 0:
        raise ValueError(
            f"weights {weights} for layers {tuple(layers)}: wanted at least one layer, and for "
            "each a weight of at least 0, not all 0"
        )
    if pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[1] % multiple:
        raise ValueError(
            f"pixels {pixels.shape}: wanted [B, S, S, 3] with S a multiple of {multiple}; "
            "resize the pictures first"
        )
    fixed = params if timestep is None else at_timestep(params, config, timestep)
    short = _short_names(config)
    canonical = tuple(short.get(layer, layer) for layer in layers)
    return _self_attention(fixed, config, pixels, canonical, weights)


@partial(jax.jit, static_argnames=("config", "layers", "weights"))
def _self_attention(params, config, pixels, layers, weights) -> Float[Array, "B N N"]:
    latents = _encode(params["vae"], config, pixels)
    with precision(params["unet"]["conv_in"]["kernel"]):
        _, lookings = unet.denoise(params["unet"], config.unet, latents)
        chosen = [lookings[layer] for layer in layers]
        shares = [weight / sum(weights) for weight in weights]
        return mean_attention(chosen, shares, latents.shape[1])


def mean_attention(
    lookings: Sequence[Looking], shares: Sequence[float], side: int
) -> Float[Array, "B N N"]:
    """Σ share · mean over heads of softmax(qkᵀ/√d), on the grid of `side` x `side`."""
    mean = 0.0
    for n in sorted({looking.key.shape[2] for looking in lookings}):
        group = [(x, s) for x, s in zip(lookings, shares, strict=True) if x.key.shape[2] == n]
        share = sum(s for _, s in group)

        # The layers of one resolution in one pass over its rows, so that A exists once.
        def rows(queries, group=group, share=share):
            ends = np.cumsum([x.query.shape[1] for x, _ in group])
            each = zip(jnp.split(queries, ends[:-1], axis=1), group, strict=True)
            return sum(s / share * attention_rows(query, x.key) for query, (x, s) in each)

        maps = by_rows(rows, jnp.concatenate([x.query for x, _ in group], axis=1), n)
        if n != side**2:
            grid = jnp.full(2, round(n**0.5))
            maps = jax.vmap(lambda a, grid=grid: resample_attention(a, grid, side))(maps)
        mean = mean + share * maps
    return mean

"""From a picture to its patch graph: the latent, one step of the denoiser, its self-attentions."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dsolo_jax.attention.common import Squares, weigh
from dsolo_jax.attention.stable_diffusion import unet, vae
from dsolo_jax.attention.stable_diffusion.config import StableDiffusionConfig
from dsolo_jax.attention.stable_diffusion.unet import Looking
from dsolo_jax.checkpoints import Params
from dsolo_jax.resample import resample_attention
from dsolo_jax.transformer import attention_rows, by_rows, precision

# M2N2's.
LAYERS = ("up.0", "up.1")

# CLIPer's product over the heads of these two, in this order.
_CLIPER, _FACTORS = "cliper", ("up.1", "up.0")
_LEAST, _TINY = 0.1, 1e-5


def squares(config: StableDiffusionConfig) -> Squares:
    """Says how pictures are taken: a latent position is 8 pixels wide, sides are multiples of 64.

    The size is what the checkpoint was trained on, 512 pixels for most; M2N2 has 1024, CLIPer 512.
    """
    patch = 2 ** (len(config.vae.block_out_channels) - 1)
    multiple = patch * 2 ** (len(config.unet.block_out_channels) - 1)
    return Squares(patch, multiple, patch * config.unet.sample_size, mean=(0.5,), std=(0.5,))


def layer_names(config: StableDiffusionConfig) -> dict[str, str]:
    """Maps M2N2's short names and diffusers' names of all self-attentions to the latter.

    "down.0", "down.1" are the first down block's, "up.0", "up.1", "up.2" the last up block's: those
    at the latent's full resolution. "cliper" is no self-attention of its own, see
    `product_over_heads`.
    """
    first, last = "down_blocks.0.", f"up_blocks.{len(config.unet.up_block_types) - 1}."
    names = unet.layer_names(config.unet)
    short = {
        f"{short}.{name.rsplit('.', 1)[1]}": name
        for short, stage in (("down", first), ("up", last))
        for name in names
        if name.startswith(stage)
    }
    return short | {name: name for name in (*names, _CLIPER)}


@partial(jax.jit, static_argnames=("config",))
def encode(
    params: Params, config: StableDiffusionConfig, pixels: Float[Array, "B H W 3"]
) -> Float[Array, "B h w L"]:
    """Computes latents of pictures in -1..1, H and W multiples of 8: the VAE's posterior mode times
    its scaling factor."""
    with precision(params["vae"]["conv_in"]["kernel"]):
        mean, _ = vae.Encoder(config.vae).apply({"params": params["vae"]}, pixels)
        return mean * config.vae.scaling_factor


def self_attention(
    params: Params,
    config: StableDiffusionConfig,
    pixels: Float[Array, "B S S 3"],
    *,
    layers: Sequence[str] = LAYERS,
    weights: Sequence[float] | None = None,
    timestep: float = 100,
) -> Float[Array, "B N N"]:
    """Computes patch-to-patch attention of the denoiser on the noise-free latent, without a prompt.

    The logits of all heads never exist at once, and nothing behind the last layer asked for is
    computed. Has derivatives in `params` and `pixels`.

    Args:
        params, config: as `load` gives them.
        pixels: square pictures in -1..1, sides multiples of 64.
        layers: some of `layer_names`. Layers of lower resolution are resampled bilinearly, queries
            and keys alike, to the latent's r x r. "cliper" is `product_over_heads` of "up.1" and
            "up.0"; CLIPer's latent has noise, of step 45 of 50, ours has none.
        weights: of each layer, not negative; all alike if None.
        timestep: 0..999.

    Returns:
        softmax(qkᵀ/√d), mean over heads (of "cliper" their product), weighted mean over layers,
        float32; rows sum to one, N = r · r.

    Raises:
        ValueError: see `weigh`; pixels of another shape.

    Source: M2N2 (Karmann & Urfalioglu 2025), whose layers and timestep are the defaults.
    """
    weighed, multiple = weigh(layers, weights, layer_names(config)), squares(config).multiple
    if pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[1] % multiple:
        raise ValueError(
            f"pixels {pixels.shape}: wanted [B, S, S, 3] with S a multiple of {multiple}; "
            "resize the pictures first"
        )
    return _self_attention(params, config, pixels, np.float32(timestep), weighed)


@partial(jax.jit, static_argnames=("config", "weights"))
def _self_attention(params, config, pixels, timestep, weights) -> Float[Array, "B N N"]:
    latents = encode(params, config, pixels)
    with precision(params["unet"]["conv_in"]["kernel"]):
        given = latents, params["prompt"], timestep
        _, lookings = unet.denoise(params["unet"], config.unet, *given)
        total = sum(weight for _, weight in weights)
        shares = {layer: weight / total for layer, weight in weights}
        product = shares.pop(_CLIPER, 0)
        chosen = [lookings[layer] for layer in shares]
        mean = mean_attention(chosen, list(shares.values()), latents.shape[1])
        if not product:
            return mean
        names = layer_names(config)
        return mean + product * product_over_heads([lookings[names[x]] for x in _FACTORS])


def mean_attention(
    lookings: Sequence[Looking], shares: Sequence[float], side: int
) -> Float[Array, "B N N"]:
    """Computes Σ share · mean over heads of softmax(qkᵀ/√d), on the grid of `side` x `side`."""
    mean = jnp.float32(0)
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


def product_over_heads(lookings: Sequence[Looking]) -> Float[Array, "B N N"]:
    """Computes CLIPer's fused attention of layers of one resolution; float32, rows sum to one.

        a_h = softmax(qkᵀ/√d) of head h,  b_h = a_h / (largest of the column + 1e-5), 0 below 0.1
        c_h = b_h / (sum of the row + 1e-5),  M = c_1 c_2 ··· c_H,  A = M / (sum of the row)

    The heads of the first layer come first. One head's map is in memory beside the product. CLIPer
    applies M itself; bringing rows to sum to one is ours, as is that a patch whose row of M is
    empty, because it is looked at by none of the patches it looks at, looks at itself.

    Source: CLIPer (Sun et al. 2025) and its code, ovs/pipeline.py, refinement "SFSA".
    """
    query, key = (jnp.concatenate(x, axis=1)[:, :, None] for x in zip(*lookings, strict=True))
    b, _, _, n, _ = query.shape

    def times_head(product, head):
        q, k = head
        a = by_rows(partial(attention_rows, key=k), q, n)
        shares = a / (a.max(axis=-2, keepdims=True) + _TINY)
        shares = jnp.where(shares < _LEAST, 0, shares)
        shares = shares / (shares.sum(axis=-1, keepdims=True) + _TINY)
        return jnp.matmul(product, shares, precision="highest"), None

    itself = jnp.eye(n, dtype=jnp.float32)
    heads = query.swapaxes(0, 1), key.swapaxes(0, 1)
    product, _ = jax.lax.scan(times_head, jnp.broadcast_to(itself, (b, n, n)), heads)
    sums = product.sum(axis=-1, keepdims=True)
    return jnp.where(sums > 0, product / jnp.where(sums > 0, sums, 1), itself)

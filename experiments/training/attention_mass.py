"""Of a patch graph: how much of a row's mass lies on patches of the row's own class.

Letters: B pictures, S side of a picture in pixels, r side of its latent, N patches of a layer.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dsolo_jax.attention import stable_diffusion
from dsolo_jax.attention.stable_diffusion import StableDiffusionConfig, unet
from dsolo_jax.checkpoints import Params
from dsolo_jax.transformer import attention_rows


class Mass(NamedTuple):
    """What a self-attention looks at, over all rows, and over those of things.

    own: share of a row's mass that lies on patches of the row's own class, mean over the rows.
    base: what it would be if the rows were flat.
    """

    own: float
    base: float
    own_things: float
    base_things: float


def attention_mass(
    params: Params,
    config: StableDiffusionConfig,
    latents: Float[Array, "B r r L"],
    labels: UInt8[Array, "B S S"],
    timestep: float,
    first_thing: int,
) -> dict[str, Mass]:
    """Of each self-attention, by its name, without noise and with the empty prompt.

    Args:
        params, config: as `attention.stable_diffusion.load` gives them.
        labels: of the pixels; a patch is of the class that most of its pixels are of.
        first_thing: classes from this one on are things.
    """
    fixed = stable_diffusion.at_timestep(params, config, timestep)
    looks = _looks(fixed["unet"], config.unet, latents)
    masses = {}
    for name, looking in looks.items():
        side = math.isqrt(looking.key.shape[2])
        of_patches = majority(labels, labels.shape[1] // side).reshape(len(labels), -1)
        total = 0
        for query, key, classes in zip(*looking, of_patches, strict=True):
            total = total + np.asarray(own_mass(query, key, classes, first_thing))
        own, base, rows = total.T
        masses[name] = Mass(*np.stack([own / rows, base / rows], 1).ravel().tolist())
    return masses


@partial(jax.jit, static_argnames="config")
def _looks(fixed, config, latents) -> dict[str, unet.Looking]:
    return unet.denoise(fixed, config, latents)[1]


@jax.jit
def own_mass(
    query: Float[Array, "K N d"],
    key: Float[Array, "K N d"],
    classes: UInt8[Array, "N"],
    first_thing: int,
) -> Float[Array, "2 3"]:
    """Sums of a row's own mass, of a flat row's, and of 1, over all rows and over things' rows."""
    attention = attention_rows(query[None], key[None])[0]
    same = (classes[:, None] == classes).astype(jnp.float32)
    rows = jnp.stack([jnp.ones(len(classes)), classes >= first_thing])
    columns = (attention * same).sum(-1), same.mean(-1), jnp.ones(len(classes))
    return rows @ jnp.stack(columns, axis=1)


def majority(labels: UInt8[np.ndarray, "B S S"], patch: int) -> UInt8[np.ndarray, "B r r"]:
    """The class that most pixels of each patch are of."""
    b, side, _ = labels.shape
    r = side // patch
    patches = labels.reshape(b, r, patch, r, patch).transpose(0, 1, 3, 2, 4).reshape(b, r, r, -1)
    counts = (patches[..., None] == np.arange(labels.max() + 1)).sum(-2)
    return counts.argmax(-1).astype(np.uint8)

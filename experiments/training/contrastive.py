"""A tiny CLIP of the miniature world: its sizes, its start, and what it is trained on.

The networks are those of `dsolo_jax.clip`. Letters: B pictures, S their side in pixels, P patch
size, L tokens, V nouns, D shared space.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from dsolo_jax import clip, images
from dsolo_jax.checkpoints import Params, flatten, unflatten
from dsolo_jax.clip import ClipConfig, TextConfig, VisionConfig

SIZE, PATCH = 112, 8  # side of whole scenes and of patches, pixels
LENGTH = 48  # of the longest caption, tokens


def config(vocabulary: int) -> ClipConfig:
    """The network for a vocabulary whose last token ends a text."""
    return ClipConfig(
        vision=VisionConfig(128, 512, 4, 4, image_size=SIZE, patch_size=PATCH),
        text=TextConfig(vocabulary, 128, 512, 2, 4, LENGTH, eos_token_id=vocabulary - 1),
        projection_dim=128,
    )


class Batch(NamedTuple):
    """Pictures in 0..1, a caption of each, and a prompt of each noun asked for.

    corner: (row, column) of the positions of whole scenes at which smaller pictures lie, so that
        all positions are trained, at their own distances, long before whole scenes are.
    named: whether a picture's captions enumerate the noun; a row of none says nothing.
    """

    pictures: Float[Array, "B S S 3"]
    corner: Int[Array, "2"]
    captions: Int[Array, "B L"]
    prompts: Int[Array, "V L"]
    named: Bool[Array, "B V"]


# ------------------------------------------------------------------------------------ start


def init(config: ClipConfig, pictures: UInt8[np.ndarray, "n S S 3"], key: jax.Array) -> Params:
    """Random parameters, with what small vision transformers learn slowly put in place.

    Patches are whitened by the patch embedding (principal components of `pictures`, as in Jordan's
    airbench, 2024), positions are sines and cosines, and keys start as queries, so that patches
    attend to their like (after Trockman & Kolter, mimetic initialization, 2023).
    """
    params = flatten(clip.init(config, key))
    vision = config.vision
    params["vision/patch_kernel"] = _whitening(pictures, config, key)
    side = vision.image_size // vision.patch_size
    params["vision/positions"] = _sines(side, vision.hidden_size)
    for path in list(params):
        if path.startswith("vision/") and path.endswith("query/kernel"):
            params[path] = 0.7 * params[path]
            params[path.replace("query", "key")] = params[path]
    params["text/positions"] = 0.3 * params["text/positions"]
    # Of the nouns' logits, asked of pictures and of regions; not the checkpoint's.
    for asked in ("nouns", "regions"):
        params |= {f"{asked}/scale": jnp.log(jnp.float32(10)), f"{asked}/bias": jnp.float32(-2)}
    params["regions/sharpness"] = jnp.log(jnp.float32(10))
    return unflatten(params)


def _whitening(pictures, config: ClipConfig, key: jax.Array) -> Float[Array, "P P 3 W"]:
    patch, width = config.vision.patch_size, config.vision.hidden_size
    size = pictures.shape[1] // patch * patch
    cropped = pictures[:, :size, :size]
    normalised = images.normalise(cropped, config.image_mean, config.image_std)
    flat = np.asarray(clip.patchify(jnp.asarray(normalised), patch)).reshape(-1, patch * patch * 3)
    variances, directions = np.linalg.eigh(np.cov(flat, rowvar=False))
    top = np.argsort(variances)[::-1][:width]
    scaled = directions[:, top] / np.sqrt(variances[top] + 0.02)
    mixing = np.asarray(jax.random.orthogonal(key, width))[: len(top)]
    return jnp.asarray((scaled @ mixing).reshape(patch, patch, 3, width), jnp.float32)


def _sines(side: int, width: int) -> Float[Array, "1+N W"]:
    """Sines and cosines of row and column, 4 to 40 patches long; 0 for the class token."""
    phase = np.arange(side)[:, None] * (2 * np.pi / np.geomspace(4, 40, width // 4))
    one = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)
    both = [np.repeat(one, side, axis=0), np.tile(one, (side, 1))]
    table = 0.7 * np.concatenate(both, axis=1)
    return jnp.asarray(np.pad(table, ((1, 0), (0, 0))), jnp.float32)


def optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon for the matrices, Adam for all else; `schedule` scales the rates of both."""

    def matrices(params):
        rows_and_columns = optax.contrib.MuonDimensionNumbers()
        return unflatten(
            {k: rows_and_columns if k.endswith("/kernel") else None for k in flatten(params)}
        )

    return optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.contrib.muon(
            lambda step: 0.02 * schedule(step),
            adam_learning_rate=lambda step: 2e-3 * schedule(step),
            weight_decay=0.01,
            adam_b2=0.98,
            muon_weight_dimension_numbers=matrices,
        ),
    )


# ------------------------------------------------------------------------------------ losses


def loss(params: Params, batch: Batch, config: ClipConfig) -> Float[Array, ""]:
    """Captions against pictures, nouns against pictures, and nouns against where they look."""
    whole, local = (
        encode(params, batch.pictures, config, batch.corner, start)
        for start in ("vanilla", "maskclip")
    )
    pictures = _unit(whole.pooled)
    texts = batch.captions, batch.prompts
    captions, prompts = (_unit(clip.encode_text(params, config, tokens)) for tokens in texts)
    scale = jnp.exp(jnp.minimum(params["logit_scale"], jnp.log(100.0)))
    same = (batch.captions[:, None] == batch.captions[None]).all(axis=-1)
    sharpness = jnp.exp(params["regions"]["sharpness"])
    regions = look(_unit(local.patches), _unit(whole.patches), prompts, sharpness)
    return (
        contrast(scale * pictures @ captions.T, same)
        + naming(_logits(params["nouns"], pictures @ prompts.T), batch.named)
        + naming(_logits(params["regions"], regions), batch.named)
    )


def _logits(params: Params, cosines: Array) -> Array:
    return jnp.exp(params["scale"]) * cosines + params["bias"]


def look(
    dense: Float[Array, "B h w D"],
    patches: Float[Array, "B h w D"],
    prompts: Float[Array, "V D"],
    sharpness: Float[Array, ""],
) -> Float[Array, "B V"]:
    """Cosine of each noun with the patches it looks at: its dense map, a softmax over patches.

    Text-conditioned attention pooling, as in FLAIR (Xiao et al. 2025), without its extra layer.
    """
    weights = jax.nn.softmax(sharpness * jnp.einsum("bhwd,vd->bvhw", dense, prompts), axis=(2, 3))
    return jnp.einsum("bvhw,bhwd,vd->bv", weights, patches, prompts)


def contrast(logits: Float[Array, "B B"], same: Bool[Array, "B B"]) -> Float[Array, ""]:
    """CLIP's loss, where all pairs of equal sentences are right: each row's share of it is even."""
    target = same / same.sum(axis=1, keepdims=True)
    rows = (target * jax.nn.log_softmax(logits, axis=1)).sum(axis=1)
    columns = (target * jax.nn.log_softmax(logits, axis=0)).sum(axis=0)
    return -(rows.mean() + columns.mean()) / 2


def naming(logits: Float[Array, "B V"], named: Bool[Array, "B V"]) -> Float[Array, ""]:
    """SigLIP's loss of each picture with each noun, summed over the nouns."""
    losses = optax.sigmoid_binary_cross_entropy(logits, named.astype(jnp.float32)).sum(axis=1)
    told = named.any(axis=1)
    return (losses * told).sum() / jnp.maximum(told.sum(), 1)


def encode(
    params: Params,
    pictures: Float[Array, "B S S 3"],
    config: ClipConfig,
    corner: Int[Array, "2"] | tuple[int, int],
    start: str,
) -> clip.ImageEncoding:
    """Encodes square pictures in 0..1, no larger than whole scenes; see `Batch` for `corner`."""
    vision, patch = params["vision"], config.vision.patch_size
    side, part = config.vision.image_size // patch, pictures.shape[1] // patch
    table = vision["positions"][1:].reshape(side, side, -1)
    cut = jax.lax.dynamic_slice(table, (*corner, 0), (part, part, table.shape[-1]))
    positions = jnp.concatenate([vision["positions"][:1], cut.reshape(part * part, -1)])
    smaller = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, image_size=pictures.shape[1])
    )
    pixels = (pictures - jnp.array(config.image_mean)) / jnp.array(config.image_std)
    moved = params | {"vision": vision | {"positions": positions}}
    return clip.encode_image(moved, smaller, pixels, start=start)


def _unit(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

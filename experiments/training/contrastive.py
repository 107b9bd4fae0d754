"""A tiny CLIP of the miniature world: its sizes, its start, and what it is trained on.

The networks are those of `dsolo_jax.clip`. Letters: B pictures, S their side in pixels, P patch
size, L tokens, V nouns, D shared space.
"""

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
        vision=VisionConfig(128, 512, 5, 4, image_size=SIZE, patch_size=PATCH),
        text=TextConfig(vocabulary, 128, 512, 2, 4, LENGTH, eos_token_id=vocabulary - 1),
        projection_dim=128,
    )


class Batch(NamedTuple):
    """Pictures in 0..1, k captions of each, and a prompt of each noun asked for.

    named: whether a picture's captions enumerate the noun; a row of none says nothing.
    """

    pictures: Float[Array, "B S S 3"]
    captions: Int[Array, "k B L"]
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


# Of the mean beside the class token's own stream, which no hint has taught anything.
_GAIN = 100.0


def taught(params: Params, vision: Params, teacher: Params) -> Params:
    """Puts in place what a teacher gave: its text tower, its features and how it pools them.

    Args:
        params: random ones, see `init`.
        vision: of a tower that has one block fewer and has learned the teacher's features, see
            `hints`. The last block starts as their mean over the patches, by a flat attention whose
            values are what it is given and by an MLP that adds nothing, so that the class token
            starts where the teacher ends.
        teacher: see `teacher.init`.
    """
    (name,) = params["vision"].keys() - vision.keys()
    last = params["vision"][name]
    width = len(vision["class_embedding"])
    whole = {
        "query": {"kernel": 0.1 * last["query"]["kernel"], "bias": last["query"]["bias"]},
        "value": {"kernel": jnp.eye(width), "bias": jnp.zeros(width)},
        "out": {"kernel": _GAIN * jnp.eye(width), "bias": jnp.zeros(width)},
        "contract": jax.tree.map(jnp.zeros_like, last["contract"]),
    }
    grown = {"vision": vision | {name: last | whole}}
    return params | grown | {part: teacher[part] for part in ("text", "logit_scale")}


def optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon for the matrices, Adam for all else; `schedule` scales the rates of both."""

    def matrices(params):
        """A kernel's last axis is what comes out, all others are what goes in."""
        flat = flatten(params)
        axes = {k: tuple(range(x.ndim)) for k, x in flat.items() if k.endswith("/kernel")}
        numbers = {k: optax.contrib.MuonDimensionNumbers(x[:-1], x[-1]) for k, x in axes.items()}
        return unflatten({k: numbers.get(k) for k in flat})

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


def hints(
    params: Params,
    batch: tuple[Float[Array, "B S S 3"], Float[Array, "B h w D"]],
    config: ClipConfig,
) -> Float[Array, ""]:
    """Mean squared error of patches that foretell a teacher's features (FitNets, Romero 2015).

    Args:
        batch: pictures in 0..1, and the features.
    """
    pictures, features = batch
    return jnp.mean((encode(params, pictures, config).patches - features) ** 2)


def plain(params: Params, batch: Batch, config: ClipConfig) -> Float[Array, ""]:
    """CLIP's own loss, which asks nothing of the patches."""
    pictures = unit(encode(params, batch.pictures, config).pooled)
    return sentences(params, pictures, batch.captions, config)


def dense(params: Params, batch: Batch, config: ClipConfig) -> Float[Array, ""]:
    """CLIP's loss, and nouns against pictures and against the patches they look at."""
    whole, local = (
        encode(params, batch.pictures, config, start) for start in ("vanilla", "maskclip")
    )
    pictures = unit(whole.pooled)
    prompts = unit(clip.encode_text(params, config, batch.prompts))
    sharpness = jnp.exp(params["regions"]["sharpness"])
    regions = look(unit(local.patches), unit(whole.patches), prompts, sharpness)
    return (
        sentences(params, pictures, batch.captions, config)
        + naming(_logits(params["nouns"], pictures @ prompts.T), batch.named)
        + naming(_logits(params["regions"], regions), batch.named)
    )


def sentences(
    params: Params, pictures: Float[Array, "B D"], captions: Int[Array, "k B L"], config: ClipConfig
) -> Float[Array, ""]:
    """CLIP's loss of pictures, embedded with length 1, and a caption of each; mean over the k."""
    k, b, length = captions.shape
    texts = unit(clip.encode_text(params, config, captions.reshape(k * b, length)))
    scale = jnp.exp(jnp.minimum(params["logit_scale"], jnp.log(100.0)))
    logits = scale * pictures @ texts.reshape(k, b, -1).mT
    same = (captions[:, :, None] == captions[:, None]).all(axis=-1)
    return jax.vmap(contrast)(logits, same).mean()


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
    params: Params, pictures: Float[Array, "B S S 3"], config: ClipConfig, start: str = "vanilla"
) -> clip.ImageEncoding:
    """Encodes pictures in 0..1."""
    pixels = (pictures - jnp.array(config.image_mean)) / jnp.array(config.image_std)
    return clip.encode_image(params, config, pixels, start=start)


def unit(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

"""Picture and class names to labels: the only file that knows all rooms."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from dsolo_jax import cache, images, refine, vocabulary
from dsolo_jax.attention import SOURCES, resample_attention, resample_maps
from dsolo_jax.checkpoints import Params
from dsolo_jax.checks import choose
from dsolo_jax.clip import ClipConfig, encode_patches, load_tokenizer, patchify
from dsolo_jax.clip import load as load_clip
from dsolo_jax.readings import METHODS, Readings, discrepancy, resolve
from dsolo_jax.vocabulary import Vocabulary

# Mean over these blocks of CLIP's image tower is the graph, if CLIP is the attention source. The
# first block served best where it was measured (a toy world, not real weights: BUILD_NOTES).
CLIP_ATTENTION_LAYERS = (0,)

_SOURCES_TO_COME = ("sd2", "sd1", "dino", "dinov2", "miniature")


class Preset(NamedTuple):
    """What `load` takes from the hub, and the readings the model goes by."""

    clip: str
    attention: str
    readings: str


PRESETS = {
    "dslo_b16": Preset("openai/clip-vit-base-patch16", "sd2", "robust"),
    "dslo_l14": Preset("openai/clip-vit-large-patch14", "sd2", "robust"),
    "paper_b16": Preset("openai/clip-vit-base-patch16", "sd2", "paper"),
    "paper_l14": Preset("openai/clip-vit-large-patch14", "sd2", "paper"),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """All that segments: weights, their config, and the settings that go with them.

    attention: the attention source; attention_layers: which of its layers are averaged.
    grid: side r of the solver's square grid, N = r · r.
    short_side, long_side: working size of a picture in CLIP, pixels (mmseg's keep-ratio rule).
    embeddings: of the vocabularies used so far.
    """

    config: ClipConfig
    params: Params = dataclasses.field(repr=False)
    tokenize: Callable[[Sequence[str]], np.ndarray]
    attention: str
    attention_layers: tuple[int, ...]
    readings: Readings
    grid: int = 32
    short_side: int = 336
    long_side: int = 2048
    embeddings: dict[Vocabulary, Array] = dataclasses.field(default_factory=dict, repr=False)


class Picture(NamedTuple):
    """A picture made ready on the host: its pixels, and its patches at the working size."""

    pixels: UInt8[np.ndarray, "H W 3"]
    patches: Float[np.ndarray, "n P*P*3"]
    grid: tuple[int, int]  # (h, w), n = h · w


class Result(NamedTuple):
    """Index of a class for each pixel; the scores of all of them if they were asked for."""

    labels: Int[np.ndarray, "H W"]
    scores: Float[np.ndarray, "C H W"] | None


def load(
    preset: str = "dslo_b16",
    clip: str | os.PathLike | None = None,
    attention: str | None = None,
    dtype: DTypeLike | None = None,
    *,
    readings: str | Readings | None = None,
    attention_layers: Sequence[int] = CLIP_ATTENTION_LAYERS,
    grid: int = 32,
    short_side: int = 336,
    long_side: int = 2048,
) -> Model:
    """Loads the weights a preset names, and turns JAX's persistent compilation cache on.

    Args:
        preset: one of `PRESETS`.
        clip: a hub id or a local folder in transformers' layout, instead of the preset's.
        attention: where the patch graph comes from, instead of the preset's: "clip", CLIP's own
            maps. The presets' Stable Diffusion is not in this version yet.
        dtype: of the encoder's weights and activations: float32 if None, or jnp.bfloat16.
        readings: "robust", "paper" or a `Readings`, instead of the preset's.
        attention_layers, grid, short_side, long_side: see `Model`.

    Raises:
        ValueError: unknown preset, source or layer; a checkpoint that does not fit.
        OSError: a checkpoint that cannot be had.
    """
    chosen = PRESETS[choose("preset", preset, PRESETS)]
    source = chosen.attention if attention is None else attention
    if source in _SOURCES_TO_COME:
        raise ValueError(
            f"attention source {source!r} is not in this version yet; give attention='clip' "
            "(CLIP's own maps)"
        )
    choose("attention source", source, SOURCES)
    if grid < 1:
        raise ValueError(f"grid is {grid}; wanted the side of the solver's grid, such as 32")
    cache.keep_compilations()
    checkpoint = chosen.clip if clip is None else clip
    config, params = load_clip(checkpoint, dtype)
    return Model(
        config=config,
        params=params,
        tokenize=load_tokenizer(checkpoint, config.text.max_position_embeddings),
        attention=source,
        attention_layers=tuple(attention_layers),
        readings=resolve(chosen.readings if readings is None else readings),
        grid=grid,
        short_side=short_side,
        long_side=long_side,
    )


def segment(
    model: Model,
    image: str | os.PathLike | Image.Image | UInt8[np.ndarray, "H W 3"],
    classes: Sequence[str] | Vocabulary,
    method: str = "velocity",
    readings: str | Readings | None = None,
    return_scores: bool = False,
) -> Result:
    """Labels every pixel of a picture with one of the classes.

    Args:
        model: of `load`.
        image: a path, a PIL image or an array.
        classes: one string a class, synonyms separated by ", "; or a `Vocabulary`.
        method: "velocity", "path", "kl", "logits", "fusion" or "propagate".
        readings: "robust", "paper" or a `Readings`, instead of the model's.
        return_scores: also give every pixel's scores, float32 [C, H, W].

    Raises:
        ValueError: unreadable picture, unusable classes, unknown method or readings.
        FileNotFoundError: no such picture.
    """
    pictures = [prepare(model, image)]
    [result] = segment_batch(model, pictures, classes, method, readings, return_scores)
    return result


def prepare(
    model: Model, image: str | os.PathLike | Image.Image | UInt8[np.ndarray, "H W 3"]
) -> Picture:
    """Reads a picture and cuts it, at the working size, into normalised patches; on the host.

    Raises:
        ValueError: it is no picture.
        FileNotFoundError: no such file.
    """
    pixels = images.read_image(image)
    patch = model.config.vision.patch_size
    height, width = images.resized_size(
        *pixels.shape[:2], short_side=model.short_side, long_side=model.long_side, multiple=patch
    )
    normalised = images.normalise(images.resize(pixels, (height, width)))
    [patches] = patchify(normalised[None], patch)
    return Picture(pixels, patches, (height // patch, width // patch))


def segment_batch(
    model: Model,
    pictures: Sequence[Picture],
    classes: Sequence[str] | Vocabulary,
    method: str = "velocity",
    readings: str | Readings | None = None,
    return_scores: bool = False,
) -> list[Result]:
    """`segment` of several pictures of any shapes, each made ready by `prepare`.

    Pictures whose numbers of patches fall into one bucket go through the encoder and the solver
    together, padded; a picture's result is the same alone, in a batch, or in a larger bucket.
    """
    choose("method", method, METHODS)
    readings = model.readings if readings is None else resolve(readings)
    words = classes if isinstance(classes, Vocabulary) else vocabulary.parse(classes)
    results: dict[int, Result] = {}
    for members in buckets([len(picture.patches) for picture in pictures]):
        batch = [pictures[i] for i in members]
        encoded = encode(model, batch, words, readings.start)
        scores = solve(encoded, words, method, readings)
        for i, picture, scores_ in zip(members, batch, scores, strict=False):
            results[i] = to_pixels(picture, scores_, readings, return_scores)
    return [results[i] for i in range(len(pictures))]


class Encoded(NamedTuple):
    """What the solver needs of a batch of pictures, all on the r x r grid, N = r · r."""

    cosines: Float[Array, "B Q N"]  # of each query with each patch
    graph: Float[Array, "B N N"]  # attention, rows sum to one
    presence: Float[Array, "B Q"]  # cosine of each query with the whole picture


def encode(model: Model, pictures: Sequence[Picture], words: Vocabulary, start: str) -> Encoded:
    """Encodes pictures as one batch, padded to its bucket and to a power of two of pictures."""
    length = bucket(max(len(picture.patches) for picture in pictures))
    rows = 1 << (len(pictures) - 1).bit_length()
    pictures = [*pictures, *[pictures[-1]] * (rows - len(pictures))]
    return _encode(
        model.params,
        np.stack([_padded(picture.patches, length) for picture in pictures]),
        np.array([picture.grid for picture in pictures], np.int32),
        embed_classes(model, words),
        config=model.config,
        attention_layers=model.attention_layers,
        side=model.grid,
        start=start,
    )


def solve(
    encoded: Encoded, words: Vocabulary, method: str, readings: Readings
) -> Float[Array, "B C r r"]:
    """Scores of the classes on the solver's grid."""
    query_class = np.array(words.query_class, np.int32)
    return _solve(encoded, query_class, len(words.classes), method=method, readings=readings)


def embed_classes(model: Model, words: Vocabulary) -> Float[Array, "Q D"]:
    """Text embeddings of the queries, made once for each model and vocabulary."""
    if words not in model.embeddings:
        model.embeddings[words] = jnp.asarray(
            vocabulary.embed(words.queries, model.params, model.config, model.tokenize)
        )
    return model.embeddings[words]


def bucket(length: int) -> int:
    """The next of the lengths 4, 5, 6, 7, 8, 10, 12, 14, 16, …: at most a quarter of padding."""
    step = 1 << max(length.bit_length() - 3, 0)
    return -(-length // step) * step


def buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the lengths, those of one bucket together."""
    members: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        members.setdefault(bucket(length), []).append(i)
    return list(members.values())


def _padded(x: np.ndarray, *sizes: int) -> np.ndarray:
    """Zeros behind the leading axes, up to `sizes`."""
    behind = [size - n for size, n in zip(sizes, x.shape, strict=False)]
    behind += [0] * (x.ndim - len(sizes))
    return np.pad(x, [(0, n) for n in behind])


@partial(jax.jit, static_argnames=("config", "attention_layers", "side", "start"))
def _encode(
    params: Params,
    patches: Float[Array, "B n P*P*3"],
    grids: Int[Array, "B 2"],
    text: Float[Array, "Q D"],
    *,
    config: ClipConfig,
    attention_layers: tuple[int, ...],
    side: int,
    start: str,
) -> Encoded:
    def on_the_grid(patches, pooled, attention, grid):
        return Encoded(
            resample_maps(_cosine(text, patches), grid, side),
            resample_attention(attention, grid, side),
            _cosine(text, pooled[None])[:, 0],
        )

    encoding = encode_patches(
        params, config, patches, grids, start=start, attention_layers=attention_layers
    )
    return jax.vmap(on_the_grid)(*encoding, grids)


def _cosine(text: Float[Array, "Q D"], x: Float[Array, "n D"]) -> Float[Array, "Q n"]:
    """Text has length 1; padding, which is zero, gets zero."""
    x = x.astype(jnp.float32)
    length = jnp.linalg.norm(x, axis=-1)
    products = jnp.einsum("qd,nd->qn", text, x, precision=jax.lax.Precision.HIGHEST)
    return products / jnp.where(length > 0, length, 1)


@partial(jax.jit, static_argnames=("num_classes", "method", "readings"))
def _solve(
    encoded: Encoded,
    query_class: Int[Array, "Q"],
    num_classes: int,
    *,
    method: str,
    readings: Readings,
) -> Float[Array, "B C r r"]:
    def fold(x: Float[Array, "Q ..."]) -> Float[Array, "C ..."]:
        return vocabulary.fold(x, query_class, num_classes)

    def one(cosines, graph, presence):
        if readings.fold == "before":
            cosines, presence = fold(cosines), fold(presence)
        scores = discrepancy(cosines, graph, presence, method=method, readings=readings)
        return fold(scores) if readings.fold == "after" else scores

    scores = jax.vmap(one)(*encoded)
    side = math.isqrt(scores.shape[-1])
    return scores.reshape(*scores.shape[:2], side, side)


def to_pixels(
    picture: Picture,
    scores: Float[Array, "C r r"],
    readings: Readings,
    return_scores: bool = False,
) -> Result:
    """Scores to the picture's own size; the picture is padded, so that few sizes compile."""
    height, width = picture.pixels.shape[:2]
    guide = _padded(picture.pixels, bucket(height), bucket(width))
    size = np.array([height, width], np.int32)
    options = {
        "form": readings.upsample,
        "spatial_sigma": readings.spatial_sigma,
        "range_sigma": readings.range_sigma,
    }
    if not return_scores:
        labels = refine.upsample_labels(scores, guide, size, **options)
        return Result(np.asarray(labels)[:height, :width], None)
    upsampled = np.asarray(refine.joint_bilateral_upsample(scores, guide, size, **options))
    upsampled = upsampled[:, :height, :width]
    return Result(upsampled.argmax(axis=0).astype(np.int32), upsampled)

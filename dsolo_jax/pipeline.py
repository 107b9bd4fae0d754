"""Picture and class names to labels: the only file that knows all rooms."""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from dsolo_jax import attention as sources
from dsolo_jax import images, metrics, upsample, vocabulary
from dsolo_jax.attention import Source, resample_attention, resample_maps
from dsolo_jax.checkpoints import Params
from dsolo_jax.clip import ClipConfig, encode_patches, load_tokenizer, patchify
from dsolo_jax.clip import load as load_clip
from dsolo_jax.readings import BUNDLES, METHODS, Readings, discrepancy, resolve
from dsolo_jax.utils import cache, memory
from dsolo_jax.utils.checks import choose
from dsolo_jax.vocabulary import BackgroundThreshold, Decision, Vocabulary

# Mean over these blocks of CLIP's image tower is the graph, if CLIP is the attention source. The
# first block served best where it was measured (a toy world, not real weights: BUILD_NOTES).
_CLIP_LAYERS = ("0",)
_CLIP_GRID = 32

# Of a picture in CLIP, pixels, where neither preset nor protocol has another.
_SHORT_SIDE = 336

# Matrices [N, N] that live at once in the solver, float32: A, its doubly stochastic form or the
# cost and its kernel, and one more while they are made.
_MATRICES = 4


class Preset(NamedTuple):
    """Where the weights come from, the readings the model goes by, and its sizes, see `load`."""

    clip: str
    attention: str
    readings: str | Readings
    short_side: int | None = None
    grid: int | None = None
    attention_size: int | None = None


_CLIPS = {"b16": "openai/clip-vit-base-patch16", "l14": "openai/clip-vit-large-patch14"}

PRESETS = {
    f"{name}_{size}": Preset(clip, attention, readings)
    for name, attention, readings in (
        ("dslo", "sd2", "robust"),
        ("paper", "sd2", "paper"),
        # The paper's method with the sources of its ablation, and with ours.
        ("sd1", "sd1", "robust"),
        ("dino", "dino", "robust"),
        ("dinov2", "dinov2", "robust"),
        ("clip", "clip", "robust"),
        ("appearance", "appearance", "robust"),
    )
    for size, clip in _CLIPS.items()
}
# Comes with the package: trained on drawn scenes of 112 pixels, it knows their classes alone. The
# start served best there; real checkpoints are known to do better by naclip (BUILD_NOTES).
PRESETS["miniature"] = Preset(
    "miniature",
    "appearance",
    dataclasses.replace(BUNDLES["robust"], start="maskclip"),
    short_side=112,
    grid=14,
    attention_size=112,
)


@dataclasses.dataclass(frozen=True)
class Model:
    """All that segments: weights, their config, and the settings that go with them.

    attention: name of the attention source; attention_layers: which of its layers are averaged.
    source: the attention source itself; None if the graph is CLIP's own attention.
    grid: side r of the solver's square grid, N = r · r.
    short_side, long_side: working size of a picture in CLIP, pixels (mmseg's keep-ratio rule).
    embeddings: of the vocabularies used so far.
    mesh: the devices that share a batch, see `spread`; None: one device takes all of it.
    """

    config: ClipConfig
    params: Params = dataclasses.field(repr=False)
    tokenize: Callable[[Sequence[str]], np.ndarray]
    attention: str
    attention_layers: tuple[str, ...]
    readings: Readings
    source: Source | None = None
    grid: int = _CLIP_GRID
    short_side: int = _SHORT_SIDE
    long_side: int = 2048
    embeddings: dict[Vocabulary, Array] = dataclasses.field(default_factory=dict, repr=False)
    mesh: Mesh | None = None


class Picture(NamedTuple):
    """A picture made ready on the host: its pixels, its patches at the working size for CLIP, and
    its square for the attention source (None if that is CLIP)."""

    pixels: UInt8[np.ndarray, "H W 3"]
    patches: Float[np.ndarray, "n P*P*3"]
    grid: tuple[int, int]  # (h, w), n = h · w
    square: UInt8[np.ndarray, "S S 3"] | None


class Result(NamedTuple):
    """Index of a class for each pixel; the scores of all of them if they were asked for."""

    labels: Int[np.ndarray, "H W"]
    scores: Float[np.ndarray, "C H W"] | None


def load(
    preset: str = "dslo_b16",
    clip: str | os.PathLike | None = None,
    attention: str | os.PathLike | None = None,
    dtype: DTypeLike | None = None,
    *,
    readings: str | Readings | None = None,
    attention_layers: Sequence[str] | None = None,
    attention_weights: Sequence[float] | None = None,
    attention_size: int | None = None,
    timestep: float = 100,
    grid: int | None = None,
    short_side: int | None = None,
    long_side: int = 2048,
) -> Model:
    """Loads the weights a preset names, and turns JAX's persistent compilation cache on.

    Args:
        preset: one of `PRESETS`.
        clip: a hub id, a local folder in transformers' layout, or "miniature", instead of the
            preset's.
        attention: where the patch graph comes from, instead of the preset's: "sd2", "sd1", "dino",
            "dinov2", "miniature", a hub id or a local folder of such a checkpoint, "clip", CLIP's
            own maps, or "appearance", colour and texture alone.
        dtype: of the encoders' weights and activations: float32 if None, or jnp.bfloat16.
        readings: "robust", "paper" or a `Readings`, instead of the preset's.
        attention_layers, attention_weights: layers of the source that are averaged, and how; if
            None "up.0" and "up.1" of Stable Diffusion, the last of DINO, the first of CLIP, all
            cues of appearance.
        attention_size: side of the square the source sees, pixels; the preset's, if its source is
            kept, or the source's own, about 512 but for "miniature", if None: 512 gives Stable
            Diffusion N = 4096 patches, 1024 gives N = 16384.
        timestep: of Stable Diffusion's one step.
        grid: side of the solver's grid; the preset's, or the source's own, if None; 32 for CLIP.
        short_side, long_side: see `Model`; the preset's short side, or 336, if None.

    Raises:
        ValueError: unknown preset, source or layer; a checkpoint that does not fit; a grid that
            does not fit into memory.
        OSError: a checkpoint that cannot be had.
    """
    chosen = PRESETS[choose("preset", preset, PRESETS)]
    name = chosen.attention if attention is None else os.fspath(attention)
    if grid is not None and grid < 1:
        raise ValueError(f"grid is {grid}; wanted the side of the solver's grid, such as 32")
    grid = chosen.grid if grid is None else grid
    cache.keep_compilations()
    source = None
    size = attention_size
    if size is None and name == chosen.attention:
        size = chosen.attention_size
    if name != "clip":
        source = sources.load(
            name,
            dtype,
            layers=attention_layers,
            weights=attention_weights,
            size=size,
            timestep=timestep,
        )
        attention_layers, grid = source.layers, source.grid if grid is None else grid
        _check_memory(max(grid, source.grid))
    checkpoint = chosen.clip if clip is None else clip
    config, params = load_clip(checkpoint, dtype)
    blocks = range(-config.vision.num_hidden_layers, config.vision.num_hidden_layers)
    if source is None:
        if attention_weights is not None or attention_size is not None:
            raise ValueError(
                "attention_weights and attention_size are for other sources than 'clip', whose "
                "layers count alike at the size that short_side gives; leave them out"
            )
        attention_layers = tuple(map(str, attention_layers or _CLIP_LAYERS))
        for layer in attention_layers:
            choose("layer of clip", layer, map(str, blocks))
    return Model(
        config=config,
        params=params,
        tokenize=load_tokenizer(checkpoint, config.text.max_position_embeddings),
        attention=name,
        attention_layers=attention_layers,
        readings=resolve(chosen.readings if readings is None else readings),
        source=source,
        grid=grid or _CLIP_GRID,
        short_side=short_side or chosen.short_side or _SHORT_SIDE,
        long_side=long_side,
    )


def _check_memory(side: int) -> None:
    """Says before anything is tried that a graph of side · side patches is too large."""
    free, needed = memory.available(), _MATRICES * 4 * side**4
    if free is not None and needed > free:
        fits = math.isqrt(math.isqrt(free // (_MATRICES * 4)))
        raise ValueError(
            f"a grid of {side} x {side} patches: the graph and the solver need about "
            f"{needed / 2**30:.1f} GiB for each picture, and {free / 2**30:.1f} GiB are free; give "
            f"a smaller attention_size, so that the grid is at most {fits} x {fits}"
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
    """Reads a picture, cuts it at the working size into normalised patches, and squeezes it to the
    attention source's square; on the host.

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
    square = None if model.source is None else images.squeeze(pixels, model.source.size)
    return Picture(pixels, patches, (height // patch, width // patch), square)


def segment_batch(
    model: Model,
    pictures: Sequence[Picture],
    classes: Sequence[str] | Vocabulary,
    method: str = "velocity",
    readings: str | Readings | None = None,
    return_scores: bool = False,
    watch: Callable[[str, Any], None] = lambda stage, value: None,
    threshold: BackgroundThreshold | None = None,
) -> list[Result]:
    """`segment` of several pictures of any shapes, each made ready by `prepare`.

    Pictures whose numbers of patches fall into one bucket go through the encoders and the solver
    together, padded; a picture's result is the same alone, in a batch, or in a larger bucket.

    Args:
        threshold: below which class 0 wins, see `decision`.
        watch: called with the name and the value of each stage as it ends: "graph", "CLIP",
            "solver", "pixels". A value may still be on its way: `jax.block_until_ready` waits.
    """
    choose("method", method, METHODS)
    readings = model.readings if readings is None else resolve(readings)
    words = classes if isinstance(classes, Vocabulary) else vocabulary.parse(classes)
    solved, decide = decision(words, method, threshold)
    results: dict[int, Result] = {}
    for members in buckets([len(picture.patches) for picture in pictures]):
        batch = [pictures[i] for i in members]
        attention = graph(model, batch)
        watch("graph", attention)
        encoded = encode(model, batch, words, readings.start, attention)
        watch("CLIP", encoded)
        scores = solve(encoded, solved, method, readings, model.mesh)
        watch("solver", scores)
        for i, picture, scores_ in zip(members, batch, scores, strict=False):
            results[i] = to_pixels(picture, scores_, readings, return_scores, decide)
            watch("pixels", results[i])
    return [results[i] for i in range(len(pictures))]


class Encoded(NamedTuple):
    """What the solver needs of a batch of pictures, all on the r x r grid, N = r · r."""

    cosines: Float[Array, "B Q N"]  # of each query with each patch
    graph: Float[Array, "B N N"]  # attention, rows sum to one
    presence: Float[Array, "B Q"]  # cosine of each query with the whole picture


def graph(model: Model, pictures: Sequence[Picture]) -> Float[Array, "B N N"] | None:
    """The attention source's graph of each picture on the solver's grid; rows sum to one.

    None if the source is CLIP itself, whose maps come with `encode`.
    """
    if model.source is None:
        return None
    squares = np.stack([picture.square for picture in _filled(pictures, model.mesh)])
    source = dataclasses.replace(model.source, params=None)
    program = _program(_graph, model.mesh, 1, source=source, side=model.grid)
    return program(model.source.params, squares)


def encode(
    model: Model,
    pictures: Sequence[Picture],
    words: Vocabulary,
    start: str,
    attention: Float[Array, "B N N"] | None,
) -> Encoded:
    """Encodes pictures as one batch, padded to its bucket and to a power of two of pictures.

    Args:
        attention: of `graph`, for the same pictures.
    """
    length = bucket(max(len(picture.patches) for picture in pictures))
    pictures = _filled(pictures, model.mesh)
    program = _program(
        _encode,
        model.mesh,
        2,
        config=model.config,
        clip_layers=() if model.source else tuple(map(int, model.attention_layers)),
        side=model.grid,
        start=start,
    )
    return program(
        {"vision": model.params["vision"]},
        embed_classes(model, words),
        np.stack([_padded(picture.patches, length) for picture in pictures]),
        np.array([picture.grid for picture in pictures], np.int32),
        attention,
    )


def solve(
    encoded: Encoded,
    words: Vocabulary,
    method: str,
    readings: Readings,
    mesh: Mesh | None = None,
) -> Float[Array, "B C r r"]:
    """Scores of the classes on the solver's grid; `mesh` is the model's."""
    classes = len(words.classes)
    program = _program(_solve, mesh, 1, num_classes=classes, method=method, readings=readings)
    return program(np.array(words.query_class, np.int32), encoded)


def spread(model: Model) -> Model:
    """The model on all devices of this process: each takes one picture of every batch.

    What a device does to its picture is what one device alone would do, so the results are the same
    however many there are. The text tower stays where it is.
    """
    if model.mesh is not None:
        return model
    mesh = Mesh(np.array(jax.local_devices()), ("picture",))
    vision = _on_every_device(model.params["vision"], mesh)
    source = model.source and dataclasses.replace(
        model.source, params=_on_every_device(model.source.params, mesh)
    )
    return dataclasses.replace(
        model,
        params={**model.params, "vision": vision},
        source=source,
        embeddings={words: _on_every_device(x, mesh) for words, x in model.embeddings.items()},
        mesh=mesh,
    )


def _on_every_device(arrays: Any, mesh: Mesh | None, *, split: bool = False) -> Any:
    """All of the arrays on each device of the mesh, or each device's share of a leading axis."""
    if mesh is None:
        return arrays
    axes = mesh.axis_names if split else ()
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec(*axes)))


def decision(
    words: Vocabulary, method: str, threshold: BackgroundThreshold | None
) -> tuple[Vocabulary, Decision | None]:
    """What `solve` scores, and what `to_pixels` makes of its scores, under a threshold.

    The logits stay those of queries up to the pixels, as the probabilities are over all of them.
    The other methods give scores of classes, and a threshold is taken of these as if they were
    logits.
    """
    if threshold is None:
        return words, None
    if method == "logits":
        return vocabulary.unfolded(words), Decision(
            words.query_class, len(words.classes), threshold
        )
    classes = len(words.classes)
    return words, Decision(tuple(range(classes)), classes, threshold)


def embed_classes(model: Model, words: Vocabulary) -> Float[Array, "Q D"]:
    """Text embeddings of the queries, made once for each model and vocabulary."""
    if words not in model.embeddings:
        embeddings = vocabulary.embed(words.queries, model.params, model.config, model.tokenize)
        model.embeddings[words] = _on_every_device(jnp.asarray(embeddings), model.mesh)
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


def _filled(pictures: Sequence[Picture], mesh: Mesh | None) -> list[Picture]:
    """The last picture again and again, up to a power of two, or as many for each device."""
    rows = 1 << (len(pictures) - 1).bit_length()
    if mesh is not None:
        rows = -(-len(pictures) // mesh.size) * mesh.size
    return [*pictures, *[pictures[-1]] * (rows - len(pictures))]


def _padded(x: np.ndarray, *sizes: int) -> np.ndarray:
    """Zeros behind the leading axes, up to `sizes`."""
    behind = [size - n for size, n in zip(sizes, x.shape, strict=False)]
    behind += [0] * (x.ndim - len(sizes))
    return np.pad(x, [(0, n) for n in behind])


# ------------------------------------------------------------------------------- programs


@functools.cache
def _program(function: Callable, mesh: Mesh | None, shared: int, **static: Any) -> Callable:
    """`function` with its static arguments, jitted.

    With a mesh, each device has the first `shared` arguments whole and takes its share of the
    others' leading axes: what it does with it is what it would do alone.
    """

    @functools.wraps(function)
    def program(*arguments):
        bound = partial(function, **static)
        if mesh is None:
            return bound(*arguments)
        parts = PartitionSpec(*mesh.axis_names)
        specs = [PartitionSpec()] * shared + [parts] * (len(arguments) - shared)
        return jax.shard_map(
            bound, mesh=mesh, in_specs=tuple(specs), out_specs=parts, check_vma=False
        )(*arguments)

    return jax.jit(program)


def _graph(
    params: Params, squares: UInt8[Array, "B S S 3"], *, source: Source, side: int
) -> Float[Array, "B N N"]:
    attention = sources.graph(dataclasses.replace(source, params=params), squares)
    if source.grid == side:
        return attention
    own = np.full(2, source.grid)
    return jax.vmap(lambda a: resample_attention(a, own, side))(attention)


def _encode(
    params: Params,
    text: Float[Array, "Q D"],
    patches: Float[Array, "B n P*P*3"],
    grids: Int[Array, "B 2"],
    attention: Float[Array, "B N N"] | None,
    *,
    config: ClipConfig,
    clip_layers: tuple[int, ...],
    side: int,
    start: str,
) -> Encoded:
    encoding = encode_patches(
        params, config, patches, grids, start=start, attention_layers=clip_layers
    )
    if clip_layers:
        resample = partial(resample_attention, side=side)
        attention = jax.vmap(resample)(encoding.attention, grids)

    def cosines(patches, pooled, grid):
        maps = resample_maps(_cosine(text, patches), grid, side)
        return maps, _cosine(text, pooled[None])[:, 0]

    maps, presence = jax.vmap(cosines)(encoding.patches, encoding.pooled, grids)
    return Encoded(maps, attention, presence)


def _cosine(text: Float[Array, "Q D"], x: Float[Array, "n D"]) -> Float[Array, "Q n"]:
    """Text has length 1; padding, which is zero, gets zero."""
    x = x.astype(jnp.float32)
    length = jnp.linalg.norm(x, axis=-1)
    products = jnp.einsum("qd,nd->qn", text, x, precision=jax.lax.Precision.HIGHEST)
    return products / jnp.where(length > 0, length, 1)


def _solve(
    query_class: Int[Array, "Q"],
    encoded: Encoded,
    *,
    num_classes: int,
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
    decide: Decision | None = None,
) -> Result:
    """Scores to the picture's own size, strip by strip: one program serves every size."""
    options = _upsampling(readings)
    cutting = {name: options[name] for name in ("form", "spatial_sigma")}
    height, width = picture.pixels.shape[:2]
    length = upsample.strip_length(
        (height, width), scores.shape, **cutting, of_scores=return_scores
    )
    labels = np.empty((height, width), np.int32)
    classes = len(scores) if decide is None else decide.num_classes
    upsampled = np.empty((classes, height, width), np.float32) if return_scores else None
    for rows, strip in upsample.strips(picture.pixels, scores.shape, length=length, **cutting):
        pixels = (rows.stop - rows.start) * width
        if return_scores:
            found = np.asarray(upsample.strip_scores(scores, strip, **options))[:, :pixels]
            found = found if decide is None else np.asarray(decide(found))
            upsampled[:, rows] = found.reshape(classes, -1, width)
            labels[rows] = upsampled[:, rows].argmax(axis=0)
        else:
            found = upsample.strip_labels(scores, strip, **options, decide=decide)
            found = np.asarray(found)[:pixels]
            labels[rows] = found.reshape(-1, width)
    return Result(labels, upsampled)


def compare(
    model: Model,
    pictures: Sequence[Picture],
    truths: Sequence[Int[np.ndarray, "K H W"]],
    scores: Float[Array, "D C r r"],
    readings: Readings,
    *,
    ignore: int,
    keep_labels: bool,
    decide: Decision | None = None,
) -> tuple[Int[Array, "D K C C"], list[Int[np.ndarray, "H W"]]]:
    """`to_pixels` of at most one picture on each device of a `spread` model, held to the truths.

    Args:
        truths: K of each picture.
        decide: see `decision`.

    Returns:
        Confusion matrices, rows truth, still on the devices (those behind the pictures' are zero);
        and the labels of the pictures, fetched, if they are to be kept.
    """
    devices, *shape = scores.shape
    options = _upsampling(readings)
    cutting = {name: options[name] for name in ("form", "spatial_sigma")}
    sizes = [picture.pixels.shape[:2] for picture in pictures]
    length = max(upsample.strip_length(size, shape, **cutting) for size in sizes)
    cut = [upsample.strips(p.pixels, shape, length=length, **cutting) for p in pictures]
    cut += [iter(())] * (devices - len(pictures))
    nothing = slice(0), upsample.idle_strip(shape, length)
    classes = shape[0] if decide is None else decide.num_classes
    program = _program(_compare, model.mesh, 0, ignore=ignore, decide=decide, **options)
    zeros = np.zeros((devices, len(truths[0]), classes, classes), np.int32)
    total = _on_every_device(zeros, model.mesh, split=True)
    labels = [np.empty(size, np.int32) for size in sizes] if keep_labels else []
    for turn in itertools.zip_longest(*cut, fillvalue=nothing):
        strips = jax.tree.map(lambda *parts: np.stack(parts), *(strip for _, strip in turn))
        true = np.full((devices, len(truths[0]), length), ignore, np.int32)
        for flat, truth, (rows, _) in zip(true, truths, turn, strict=False):
            wanted = truth[:, rows].reshape(len(truth), -1)
            flat[:, : wanted.shape[1]] = wanted
        found, total = program(scores, strips, true, total)
        if not keep_labels:
            continue
        for ours, flat, (rows, _) in zip(labels, np.asarray(found), turn, strict=False):
            ours[rows] = flat[: ours[rows].size].reshape(ours[rows].shape)
    return total, labels


def _compare(
    scores: Float[Array, "1 C r r"],
    strip: upsample.Strip,
    truth: Int[Array, "1 K L"],
    total: Int[Array, "1 K C C"],
    *,
    ignore: int,
    **options: Any,
) -> tuple[Int[Array, "1 L"], Int[Array, "1 K C C"]]:
    labels = upsample.strip_labels(scores[0], jax.tree.map(lambda x: x[0], strip), **options)
    classes = total.shape[-1]
    counts = [metrics.confusion_matrix(labels, true, classes, ignore) for true in truth[0]]
    return labels[None], total + jnp.stack(counts)


def _upsampling(readings: Readings) -> dict[str, Any]:
    return {
        "form": readings.upsample,
        "spatial_sigma": readings.spatial_sigma,
        "range_sigma": readings.range_sigma,
    }

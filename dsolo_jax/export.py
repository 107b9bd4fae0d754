"""A model for fixed classes and one size of picture, as a program that runs without this package.

`save` leaves a folder:

    program.bin            StableHLO of (weights, uint8 [H, W, 3]) -> int32 [H, W], as `jax.export`
                           serialises it; -1 everywhere where the scores are not finite
    weights.safetensors    what it takes as weights, by name: the networks', and the embeddings of
                           the classes
    export.json            classes, size, settings, versions, and the weights in their order
    run.py                 labels a picture with them: the example of how it is used

The weights are no constants of the program: its format ends at 2 GiB, and constants of gigabytes
take long to compile. The program has the forms that are fast on the platform that made it.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.export
import jax.numpy as jnp
import jaxlib
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

import dsolo_jax
from dsolo_jax import assets, checkpoints, clip, images, pillow, pipeline, upsample, vocabulary
from dsolo_jax.checkpoints import Params
from dsolo_jax.model import Config, Model
from dsolo_jax.pictures import Batch, bucket
from dsolo_jax.readings import Readings, resolve
from dsolo_jax.solver.discrepancy import needs_graph
from dsolo_jax.upsample import strips
from dsolo_jax.upsample.weights import Kernel
from dsolo_jax.utils import files
from dsolo_jax.utils.checks import choose
from dsolo_jax.utils.extras import extra
from dsolo_jax.utils.progress import progress
from dsolo_jax.vocabulary import Vocabulary

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FILES = ("program.bin", "weights.safetensors", "export.json", "run.py")

# What a GPU's own attention is called in a program. JAX does not promise that later versions of it
# run this.
_KERNELS = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax")

T = TypeVar("T")


def save(
    model: Model,
    classes: Sequence[str] | Vocabulary,
    size: tuple[int, int] | None,
    directory: str | os.PathLike,
    *,
    method: str | None = None,
    readings: str | Readings | None = None,
    platforms: Sequence[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model as a program from a picture to its labels, with its weights, see above.

    On the platform that makes it, it gives the labels of `segment`. On the others that it is made
    for the labels may differ where two scores nearly tie, as they do between machines, and it may
    be slower than a program made there. To be run it needs jax, flatbuffers and what reads the
    weights (safetensors, numpy), and no part of this package.

    Args:
        classes: one string a class, synonyms separated by ", "; or a `Vocabulary`.
        size: (height, width) of the pictures, pixels; None: the square that the attention source
            takes.
        directory: made if it is not there. Nothing half-written stays behind.
        method, readings: as for `segment`.
        platforms: some of "cpu", "cuda", "rocm", "tpu"; None: the one at hand.
        overwrite: takes the place of an earlier export.

    Raises:
        ValueError: unusable classes, size, method, readings or platforms; a model with windows, or
            without the graph that the method needs; a platform that lacks a kernel of the program.
        OSError: a directory that holds something else, or an export without `overwrite`; it cannot
            be written.
        ImportError: flatbuffers is not installed.
    """
    config, directory = model.config, Path(directory).expanduser().absolute()
    words = classes if isinstance(classes, Vocabulary) else vocabulary.parse(classes)
    method = config.method if method is None else method
    readings = config.readings if readings is None else resolve(readings)
    size = (config.source.size,) * 2 if size is None else (int(size[0]), int(size[1]))
    platforms = check(directory, platforms, overwrite)
    if min(size) < 1:
        raise ValueError(
            f"size is {size}; wanted (height, width) of the pictures, such as (512, 512)"
        )
    if config.crop is not None:
        raise ValueError(
            f"the model cuts pictures into windows of {config.crop} pixels, an export takes them "
            "whole; load it without crop and stride"
        )
    of_graph = pipeline.Setting(method, readings).needs_graph
    if of_graph and model.params["attention"] is None:
        raise ValueError(
            f"method {method!r} with the start {readings.start!r} needs a patch graph, and the "
            "model was loaded without one; load it with graph=True"
        )
    given = {
        "clip": {"vision": model.params["clip"]["vision"]},
        "text": pipeline.embed(model, words),
    }
    given |= {"attention": model.params["attention"]} if of_graph else {}
    weights, whole = _by_name(given)
    how: dict[str, Any] = {"method": method, "readings": readings}

    def program(weights: dict[str, Array], pixels: UInt8[Array, "H W 3"]) -> Int[Array, "H W"]:
        params = {"attention": {}, **whole(weights)}
        of_class = params.pop("text"), np.array(words.query_class, np.int32)
        return labels(params, config, pixels, *of_class, num_classes=len(words.classes), **how)

    with files.atomic_folder(directory) as folder:
        for step in progress(("program", "weights"), 2, "export", unit="steps"):
            if step == "program":
                exported, used = _exported(program, weights, size, platforms)
                (folder / FILES[0]).write_bytes(exported.serialize())
            else:
                kept = {name: np.asarray(weights[name]) for name in used}
                checkpoints.write_tensors(folder / FILES[1], kept)
                # safetensors lets nobody else read it.
                (folder / FILES[1]).chmod((folder / FILES[0]).stat().st_mode)
        files.write_json(folder / FILES[2], _content(model, words, size, platforms, kept, **how))
        shutil.copyfile(assets.RUN, folder / FILES[3])


def check(
    directory: str | os.PathLike, platforms: Sequence[str] | None, overwrite: bool = False
) -> tuple[str, ...]:
    """Gives the platforms, after what `save` can refuse without a model: its errors."""
    platforms = tuple(dict.fromkeys(platforms or [jax.export.default_export_platform()]))
    for platform in platforms:
        choose("platform", platform, PLATFORMS)
    extra("flatbuffers", "export")
    directory = Path(directory).expanduser()
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; wanted a folder to be made")
    found = sorted(path.name for path in directory.glob("*"))
    others = [name for name in found if name not in FILES]
    if others:
        raise FileExistsError(
            f"{directory} holds {', '.join(others[:3])}{' ...' * (len(others) > 3)}, which is no "
            "part of an export; choose another folder"
        )
    if found and not overwrite:
        raise FileExistsError(
            f"{directory} holds an export already; overwrite it (--overwrite, overwrite=True), or "
            "choose another folder"
        )
    return platforms


def labels(
    params: Params,
    config: Config,
    pixels: UInt8[Array, "H W 3"],
    text: Float[Array, "Q D"],
    query_class: Int[Array | np.ndarray, "Q"],
    *,
    num_classes: int,
    method: str = "velocity",
    readings: str | Readings = "robust",
) -> Int[Array, "H W"]:
    """Labels every pixel of a picture: `segment` as one pure function, from the bytes on.

    Its stages are kept apart in the compiled program as they are in `segment`, so that the labels
    are the same. Each size of picture has a program of its own.

    Args:
        params, config: of a `Model`.
        pixels: the picture.
        text: of `pipeline.embed`.
        query_class: class of each query, `Vocabulary.query_class`.
        num_classes: C.
        method, readings: see `discrepancy`.

    Returns:
        The class of each pixel, or -1 in all where the scores are not finite.
    """
    readings = resolve(readings)
    of_start, of_method = clip.needs_graph(readings.start), needs_graph(method)
    picture, query_class = _apart((_prepare(config, pixels), jnp.asarray(query_class, jnp.int32)))
    graph = None
    if of_start or of_method:
        graph = _apart(pipeline.graph(params, config, picture.squares))
    given = (picture, text, graph if of_start else None)
    maps = _apart(pipeline.class_maps(params, config, *given, start=readings.start))
    how: dict[str, Any] = {"num_classes": num_classes, "method": method, "readings": readings}
    scores = _apart(pipeline.scores(maps, graph if of_method else None, query_class, **how))
    return jnp.where(jnp.all(jnp.isfinite(scores)), _to_pixels(scores[0], pixels, readings), -1)


def _apart(arrays: T) -> T:
    """Keeps XLA from compiling what is on either side into each other, as if they were programs of
    their own; and from taking numbers for constants that are none there."""
    return jax.lax.optimization_barrier(arrays)


def _prepare(config: Config, pixels: UInt8[Array, "H W 3"]) -> Batch:
    """`pictures.prepare` and `pictures.batch`, of one picture."""
    patch, side = config.clip.vision.patch_size, config.source.size
    height, width = images.resized_size(
        *pixels.shape[:2], short_side=config.short_side, long_side=config.long_side, multiple=patch
    )
    resized = pillow.resize(pixels, (height, width), "bilinear")
    patches = clip.patchify(resized[None], patch)
    missing = bucket(patches.shape[1]) - patches.shape[1]
    arrays: Any = (
        jnp.pad(patches, ((0, 0), (0, missing), (0, 0))),
        jnp.array([[height // patch, width // patch]], jnp.int32),
        pillow.resize(pixels, (side, side), "box")[None],
    )
    return Batch(*arrays)


def _to_pixels(
    scores: Float[Array, "C r r"], pixels: UInt8[Array, "H W 3"], readings: Readings
) -> Int[Array, "H W"]:
    """`upsample.labels` of a picture that is on the device."""
    widths = readings.spatial_sigma, readings.range_sigma
    if readings.upsample == "pamr":
        upsampled = upsample.joint_bilateral(scores, pixels, form="pamr")
        return jnp.argmax(upsampled, axis=0).astype(jnp.int32)
    kernel, (H, W, _) = Kernel(readings.upsample, *widths), pixels.shape
    strips.check_pixels(scores, pixels, kernel)
    group, length, cut = strips.cut((H, W), scores.shape, None, widths[0], kernel.form)
    sizes = np.diff([*(W * int(wanted) for wanted in cut[:, 3]), H * W])
    # A loop whose length it knows, an accelerator need not ask the host about.
    known = int(cut[:, 5].max()), strips.rounded(int(cut[:, 6].max()))
    flat = jnp.pad(pixels.reshape(-1, 3), ((0, length), (0, 0)))
    centres = strips.at_centres(pixels, scores.shape)
    flat, centres, places = _apart((flat, centres, jnp.asarray(cut)))

    def strip(place: Int[Array, "7"]) -> Int[Array, "L"]:
        held = jax.lax.dynamic_slice_in_dim(flat, W * place[2], length)
        loops = place[5:] if jax.default_backend() == "cpu" else known
        of_strip = scores, held, centres, place[:5], loops, kernel, group
        return strips.upsample(*of_strip, argmax=True)[0].astype(jnp.int32)

    parts = jax.lax.map(strip, places)
    own = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    return jnp.concatenate(own).reshape(H, W)


# ------------------------------------------------------------------------------- what is written


def _by_name(tree: Params) -> tuple[dict[str, Array], Callable[[dict[str, Array]], Params]]:
    """The arrays of a tree, each by one name, and the function from such to the tree."""
    flat = checkpoints.flatten(tree)
    first: dict[int, str] = {}  # CLIP's may be the attention source's as well
    named = {path: first.setdefault(id(leaf), path) for path, leaf in flat.items()}

    def whole(weights: dict[str, Array]) -> Params:
        return checkpoints.unflatten({path: weights[name] for path, name in named.items()})

    return {name: flat[name] for name in sorted(first.values())}, whole


def _exported(
    program: Callable, weights: dict[str, Array], size: tuple[int, int], platforms: Sequence[str]
) -> tuple[jax.export.Exported, list[str]]:
    """The program as JAX exports it, and the weights that it looks at, which alone it takes."""
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    pixels = jax.ShapeDtypeStruct((*size, 3), jnp.uint8)
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in _KERNELS]

    def export(names: Sequence[str]) -> jax.export.Exported:
        def of_names(given, pixels):
            others = {n: jnp.zeros(x.shape, x.dtype) for n, x in shapes.items() if n not in given}
            return program({**given, **others}, pixels)

        of_names.__name__ = "labels"
        make = jax.export.export(jax.jit(of_names), platforms=platforms, disabled_checks=checks)
        return make({name: shapes[name] for name in names}, pixels)

    try:
        exported = export(names := sorted(shapes))
        kept = [names[i] for i in exported.module_kept_var_idx if i < len(names)]
        return (exported if kept == names else export(kept)), kept
    except NotImplementedError as error:  # what has no form on a platform
        raise ValueError(
            f"the program made here does not run on all of {', '.join(platforms)} ({error}); "
            "export for this platform alone, in float32, or on a machine of the other platform"
        ) from error


def _content(
    model: Model,
    words: Vocabulary,
    size: tuple[int, int],
    platforms: Sequence[str],
    weights: dict[str, np.ndarray],
    method: str,
    readings: Readings,
) -> dict[str, Any]:
    """What export.json says."""
    config, source = model.config, dataclasses.asdict(model.config.source)
    del source["config"]  # the checkpoint's own
    of_class: list[list[str]] = [[] for _ in words.classes]
    for query, number in zip(words.queries, words.query_class, strict=True):
        of_class[number].append(query)
    return {
        "classes": list(words.classes),
        "queries": of_class,
        "size": list(size),
        "platforms": list(platforms),
        "made_on": jax.export.default_export_platform(),
        "versions": {x.__name__: x.__version__ for x in (dsolo_jax, jax, jaxlib)},
        "method": method,
        "readings": dataclasses.asdict(readings),
        "clip": config.tokenizer,
        "short_side": config.short_side,
        "long_side": config.long_side,
        "grid": config.grid,
        "attention": source,
        "weights": [
            {"name": name, "dtype": str(x.dtype), "shape": list(x.shape)}
            for name, x in weights.items()
        ],
    }

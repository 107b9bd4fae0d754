"""Programs of the route at the sizes of real checkpoints, as they are traced for an accelerator,
without weights and without an accelerator."""

import contextlib
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax import checkpoints, clip, model
from dsolo_jax.attention import stable_diffusion
from dsolo_jax.attention.sources import Source
from dsolo_jax.attention.stable_diffusion import unet, vae
from dsolo_jax.clip import towers
from dsolo_jax.pictures import Batch, bucket
from dsolo_jax.pipeline import ClassMaps
from dsolo_jax.readings import BUNDLES

PLATFORMS = "tpu", "cuda", "cpu"
CLIPS = {"b16": clip.VIT_B16, "l14": clip.VIT_L14}
SIZE, LONG = 512, 448  # of the squares; of the long side in CLIP, pixels, the short one being 336
GRID = SIZE // 8
N = GRID**2
BATCH = 8


def shape(*sides, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sides, dtype)


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Traces as on another backend; JAX's caches, which do not know of it, are emptied around."""
    own = jax.default_backend
    jax.clear_caches()
    try:
        jax.default_backend = lambda: name
        yield
    finally:
        jax.default_backend = own
        jax.clear_caches()


def cast(tree, dtype):
    """Shapes in the dtype of weights, norms in float32 as loading has it."""
    leaves = checkpoints.flatten(tree).items()
    kept = {path: jnp.float32 if "norm" in path else dtype for path, _ in leaves}
    return checkpoints.unflatten({path: shape(*x.shape, dtype=kept[path]) for path, x in leaves})


@functools.cache
def clip_params(name: str, dtype):
    return {"clip": {"vision": cast(towers.parameter_shapes(CLIPS[name])["vision"], dtype)}}


@functools.cache
def graph_params(dtype, config=stable_diffusion.SD2):
    prompt = shape(config.text.max_position_embeddings, config.unet.cross_attention_dim)
    trees = unet.parameter_shapes(config.unet), vae.parameter_shapes(config.vae)
    networks = {name: cast(x, dtype) for name, x in zip(("unet", "vae"), trees, strict=True)}
    return {"attention": {**networks, "prompt": prompt}}


def settings(name: str) -> model.Config:
    """dslo_b16's or dslo_l14's."""
    layers = stable_diffusion.LAYERS
    source = Source("sd2", "stable_diffusion", stable_diffusion.SD2, layers, None, SIZE)
    return model.Config(
        clip=CLIPS[name],
        source=source,
        readings=BUNDLES["robust"],
        grid=GRID,
        short_side=336,
        long_side=2048,
        tokenizer="",
        text_weights="",
    )


def batch(name: str, size: int = BATCH) -> Batch:
    patch = CLIPS[name].vision.patch_size
    n = bucket((336 // patch) * (LONG // patch))
    patches = shape(size, n, 3 * patch**2, dtype=jnp.uint8)
    squares = shape(size, SIZE, SIZE, 3, dtype=jnp.uint8)
    return Batch(patches, shape(size, 2, dtype=jnp.int32), squares)


def class_maps(classes: int, n: int = N, size: int = BATCH) -> ClassMaps:
    return ClassMaps(shape(size, classes, n), shape(size, classes))


def lowered(function, *arrays):
    """The function as JAX exports it, for all platforms at once; and how many numbers the largest
    array of floats has that it writes, its results but not its arguments included."""
    function = jax.jit(function)  # traced once
    found = jax.export.export(function, platforms=PLATFORMS)(*arrays)
    assert found.platforms == PLATFORMS and len(found.mlir_module_serialized) < 2**24
    return found, max(_floats(function.trace(*arrays).jaxpr.jaxpr), default=0)


def _floats(jaxpr) -> Iterator[int]:
    """Of its loops and of functions that it calls, too."""
    for equation in jaxpr.eqns:
        given = jax.tree.leaves(list(equation.params.values()))
        inner = [x for x in (getattr(x, "jaxpr", x) for x in given) if hasattr(x, "eqns")]
        for one in inner:
            yield from _floats(one)
        # What XLA never writes: a broadcast of a number goes into what uses it.
        if not inner and equation.primitive.name not in ("broadcast_in_dim", "iota"):
            for x in equation.outvars:
                if jnp.issubdtype(x.aval.dtype, np.floating):
                    yield int(np.prod(x.aval.shape))


def temporary(function, *arrays) -> int:
    """Bytes that the program compiled for CPU holds beside its arguments and results."""
    return jax.jit(function).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

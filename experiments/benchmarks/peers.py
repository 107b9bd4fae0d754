"""The peers' steps by our functions, beside the same in torch as their repositories write it."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax import clip, solver, transformer
from dsolo_jax.attention.dino.tower import neighbours
from dsolo_jax.attention.stable_diffusion.maps import product_over_heads
from dsolo_jax.attention.stable_diffusion.unet import Looking
from dsolo_jax.background import Decision, Threshold
from dsolo_jax.pixels import to_pixels
from dsolo_jax.readings import resolve
from experiments.benchmarks.timing import program, rows, torch_jobs

_CLASSES, _SIZE = 21, (375, 500)  # of a picture of VOC
_SIDE, _HEADS, _WIDTH = 32, 10, 64  # of the graph, and of two layers of Stable Diffusion 2
_STARTS = "maskclip", "sclip", "clearclip", "naclip", "proxyclip"


def run() -> Iterator[dict]:
    """Times the starts with all of CLIP, B/16 at 336 x 448, and what peers make of class maps."""
    random = np.random.default_rng(0)
    config, params = clip.VIT_B16, clip.init(clip.VIT_B16, jax.random.key(0))
    pixels = random.standard_normal((1, 336, 448, 3), np.float32)
    patches, grid = transformer.patchify(pixels, 16), np.array([[21, 28]], np.int32)
    logits = random.standard_normal((1, _SIDE**2, _SIDE**2), np.float32)
    graph = jax.nn.softmax(3 * logits)
    theirs = torch_jobs("last_layers", config, pixels, _STARTS, np.asarray(graph))
    for start in _STARTS:
        encode = partial(clip.encode_patches, config=config, start=start)
        given = {"graph": graph} if clip.needs_graph(start) else {}
        job, account = program(encode, params, patches=patches, grid=grid, **given)
        jobs = {"ours": job} | ({"torch": theirs[start]} if theirs else {})
        yield from rows("peers", f"{start}, with CLIP", jobs, repeats=5, **account)

    maps = random.standard_normal((_CLASSES, _SIDE, _SIDE), np.float32) / 20
    picture = random.integers(0, 256, (*_SIZE, 3), np.uint8)
    query, key = random.standard_normal((2, 1, _HEADS, _SIDE**2, _WIDTH), np.float32)
    features = random.standard_normal((_SIDE**2, 768), np.float32)
    theirs = torch_jobs("of_class_maps", maps, picture, query[0], key[0], features)
    scores, flat = jnp.asarray(maps), jnp.asarray(maps.reshape(_CLASSES, -1))

    def labels(readings: str, threshold: Threshold) -> np.ndarray:
        decide = Decision(tuple(range(_CLASSES)), _CLASSES, threshold)
        return to_pixels(picture, scores, resolve(readings), decide)().labels

    def cliper(flat, query, key):
        [graph] = product_over_heads([Looking(query, key)])
        return solver.propagate(flat, graph)

    place = 16.0 * np.argwhere(np.ones((_SIDE, _SIDE)))  # pixels

    def lposs(flat, features):
        [graph] = neighbours(features[None], place)
        return solver.label_propagation(flat, graph)

    ours = {
        "naclip": partial(labels, "robust,upsample=pamr", Threshold(0.1)),
        "sclip": partial(labels, "robust,upsample=bilinear", Threshold(0.1, 65.0, area=0.1)),
        "cliper": program(cliper, flat, query, key)[0],
        "lposs": program(lposs, flat, features)[0],
    }
    for name, job in ours.items():
        jobs = {"ours": job} | ({"torch": theirs[name]} if theirs else {})
        yield from rows("peers", f"{name}, from class maps", jobs, repeats=5)

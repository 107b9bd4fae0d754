"""The peers' steps by our functions, beside the same in torch as their repositories write it."""

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from dsolo_jax import clip, images, solver, transformer
from dsolo_jax.attention.dino.tower import neighbours
from dsolo_jax.attention.stable_diffusion.maps import product_over_heads
from dsolo_jax.attention.stable_diffusion.unet import Looking
from dsolo_jax.background import Decision, Threshold
from dsolo_jax.pixels import to_pixels
from dsolo_jax.readings import resolve
from experiments.benchmarks import world
from experiments.benchmarks.networks import clip_b16
from experiments.benchmarks.running import Case, Work
from experiments.benchmarks.timing import Jobs, Program, torch_jobs

_CLASSES, _SIZE = 21, (375, 500)  # of a picture of VOC
_SIDE, _HEADS, _WIDTH = 32, 10, 64  # of the graph, and of two layers of Stable Diffusion 2
_STARTS = "maskclip", "sclip", "clearclip", "naclip", "proxyclip"


def run() -> Iterator[Case]:
    """The starts with all of CLIP, B/16 at 336 x 448, and what peers make of class maps."""
    for start in _STARTS:
        yield Case("peers", f"{start}, with CLIP", partial(_start, start))
    for name, prepare in {
        "naclip": partial(_labels, "naclip", "robust,upsample=pamr", Threshold(0.1)),
        "sclip": partial(
            _labels, "sclip", "robust,upsample=bilinear", Threshold(0.1, 65.0, area=0.1)
        ),
        "cliper": _cliper,
        "lposs": _lposs,
    }.items():
        yield Case("peers", f"{name}, from class maps", prepare)


@functools.cache
def _picture_and_graph() -> tuple[np.ndarray, np.ndarray]:
    config, _ = clip_b16("float32")
    [picture] = world.pictures(1, 336, 448)
    _, graph = world.maps(1, _SIDE)
    pixels = images.normalise(picture, config.image_mean, config.image_std)
    return pixels[None], np.asarray(graph)


@functools.cache
def _of_clip() -> Jobs:
    config, _ = clip_b16("float32")
    pixels, graph = _picture_and_graph()
    return torch_jobs("last_layers", config, pixels, _STARTS, graph)


def _start(start: str) -> Work:
    config, params = clip_b16("float32")
    pixels, graph = _picture_and_graph()
    encode = partial(clip.encode_patches, config=config, start=start)
    given: dict[str, Any] = {"patches": transformer.patchify(pixels, 16)}
    given |= {"grid": np.array([[21, 28]], np.int32)}
    given |= {"graph": graph} if clip.needs_graph(start) else {}
    program = Program(encode, params, **given)
    return Work(program, (program,), theirs=lambda: _torch(_of_clip(), start), pictures=1)


@functools.cache
def _arrays() -> tuple[np.ndarray, ...]:
    """Class maps [C, r, r], a picture, queries and keys of heads [1, K, N, d] and features [N, D].

    No step of these depends on what the numbers are.
    """
    random = np.random.default_rng(0)
    maps = random.standard_normal((_CLASSES, _SIDE, _SIDE), np.float32) / 20
    [picture] = world.pictures(1, *_SIZE)
    query, key = random.standard_normal((2, 1, _HEADS, _SIDE**2, _WIDTH), np.float32)
    return maps, picture, query, key, random.standard_normal((_SIDE**2, 768), np.float32)


@functools.cache
def _of_class_maps() -> Jobs:
    maps, picture, query, key, features = _arrays()
    return torch_jobs("of_class_maps", maps, picture, query[0], key[0], features)


def _torch(jobs: Jobs, name: str) -> Jobs:
    return {"torch": jobs[name]} if jobs else {}


def _labels(name: str, readings: str, threshold: Threshold) -> Work:
    maps, picture, *_ = _arrays()
    decide = Decision(tuple(range(_CLASSES)), _CLASSES, threshold)
    scores, chosen = jnp.asarray(maps), resolve(readings)
    return Work(
        lambda: to_pixels(picture, scores, chosen, decide)().labels,
        theirs=lambda: _torch(_of_class_maps(), name),
        pictures=1,
    )


def _cliper() -> Work:
    maps, _, query, key, _ = _arrays()

    def refine(flat, query, key):
        [graph] = product_over_heads([Looking(query, key)])
        return solver.propagate(flat, graph)

    return _refining("cliper", refine, maps, query, key)


def _lposs() -> Work:
    maps, *_, features = _arrays()
    place = 16.0 * np.argwhere(np.ones((_SIDE, _SIDE)))  # pixels

    def refine(flat, features):
        [graph] = neighbours(features[None], place)
        return solver.label_propagation(flat, graph)

    return _refining("lposs", refine, maps, features)


def _refining(name: str, refine: Callable, maps: np.ndarray, *given: np.ndarray) -> Work:
    program = Program(refine, jnp.asarray(maps.reshape(_CLASSES, -1)), *given)
    return Work(program, (program,), theirs=lambda: _torch(_of_class_maps(), name), pictures=1)

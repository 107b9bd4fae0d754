"""What the benchmarks look at: pictures of the miniature world, and real maps of them."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

import dsolo_jax as dsolo
from dsolo_jax import images, pipeline, solver, vocabulary
from dsolo_jax.datasets import miniature
from dsolo_jax.readings import Readings

_DISTINCT = 32  # scenes; larger batches have them again


@functools.cache
def scenes(number: int) -> tuple[UInt8[np.ndarray, "_ _ 3"], ...]:
    """Draws the first scenes of the world's validation split, at its own size of 112 pixels."""
    drawn = [miniature.draw(0, i, split="validation").image for i in range(min(number, _DISTINCT))]
    return tuple(drawn[i % _DISTINCT] for i in range(number))


def pictures(number: int, height: int, width: int) -> UInt8[np.ndarray, "B H W 3"]:
    """Brings the first scenes to another size."""
    return np.stack([images.resize(scene, (height, width)) for scene in scenes(number)])


def maps(number: int, grid: int) -> tuple[pipeline.ClassMaps, Float[Array, "B N N"]]:
    """Gives the bundled CLIP's maps of the world's 19 classes, and the graph of appearance.

    Random networks' graphs are nearly uniform, and the solver would be done in a step.

    Args:
        grid: side of the solver's, N = grid².
    """
    model = _model(grid)
    drawn = scenes(min(number, _DISTINCT))
    arrays = pipeline.batch([pipeline.prepare(model.config, scene) for scene in drawn])
    text = pipeline.embed(model, vocabulary.parse(miniature.CLASSES))
    start = model.config.readings.start
    graph = jax.jit(partial(pipeline.graph, config=model.config))
    class_maps = jax.jit(partial(pipeline.class_maps, config=model.config, start=start))
    found = class_maps(model.params, pictures=arrays, text=text)
    found = found, graph(model.params, squares=arrays.squares)
    if number <= _DISTINCT:
        return found
    return jax.tree.map(lambda x: x[np.arange(number) % _DISTINCT], found)


@functools.cache
def _model(grid: int) -> dsolo.Model:
    return dsolo.load("miniature", attention_size=8 * grid, grid=grid)


def repeated(maps: pipeline.ClassMaps, classes: int) -> pipeline.ClassMaps:
    """Gives maps of so many classes: the first ones again where there are too few."""
    taken = jnp.arange(classes) % maps.cosines.shape[1]
    return pipeline.ClassMaps(*(x[:, taken] for x in maps))


def steps(cosines: Float[Array, "B C N"], graph: Float[Array, "B N N"], readings: Readings) -> int:
    """Counts the steps of the velocity, of the picture that takes most of them."""
    return max(int(_steps(*one, readings)) for one in zip(cosines, graph, strict=True))


@partial(jax.jit, static_argnames="readings")
def _steps(
    f: Float[Array, "C N"], attention: Float[Array, "N N"], readings: Readings
) -> Int[Array, ""]:
    temperature = readings.temperature * jnp.std(f)
    q = solver.normalise(f, rule=readings.normalise, temperature=temperature)
    transition = solver.doubly_stochastic(attention, readings.ipf_iters)
    tau, most = readings.tau, readings.max_steps
    return solver.max_velocity(q, transition, tau=tau, max_steps=most).rounds


def agreement(attention: str, number: int = 32) -> dict[str, float | int]:
    """Compares the labels of the bundled CLIP with encoders in bfloat16 and in float32.

    Args:
        attention: the source of the graph.

    Returns:
        The share of pixels with equal labels, in all scenes and in the worst of them.
    """
    models = [
        dsolo.load("miniature", attention=attention, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    ]

    def labels(model: dsolo.Model) -> Int[np.ndarray, "B H W"]:
        found = dsolo.segment(model, list(scenes(number)), miniature.CLASSES)
        return np.stack([result.labels for result in found])

    with ThreadPoolExecutor() as pool:  # for their compilation
        full, half = pool.map(labels, models)
    return _equal(full, half)


def batch_agreement(batch: int, number: int = 32) -> dict[str, float | int]:
    """Compares the labels of scenes of five widths that go through the networks in batches, where
    they have different companions and padding, with those of each by itself.

    Returns:
        As `agreement`.
    """
    model, words = dsolo.load("miniature"), vocabulary.parse(miniature.CLASSES)
    setting = pipeline.Setting(model.config.method, model.config.readings)
    drawn = [images.resize(x, (112, 112 + 16 * (i % 5))) for i, x in enumerate(scenes(number))]

    def labels(size: int) -> list[Int[np.ndarray, "H W"]]:
        prepared = (pipeline.prepare(model.config, picture) for picture in drawn)
        found = dict(pipeline.run(model, prepared, words, [setting], batch_size=size))
        return [found[i][0].labels for i in range(number)]

    return _equal(labels(1), labels(batch))


def tile_agreement(tile: int, number: int = 32) -> dict[str, float | int]:
    """Compares the labels of scenes that are taken by tiles with those of the whole scenes.

    Returns:
        As `agreement`.
    """
    model = dsolo.load("miniature")

    def labels(tile: int) -> list[Int[np.ndarray, "H W"]]:
        found = dsolo.segment(model, list(scenes(number)), miniature.CLASSES, tile=tile)
        return [result.labels for result in found]

    return _equal(labels(0), labels(tile))


def sheet_agreement(sheets: int = 5) -> dict[str, float | int]:
    """Compares the labels of sheets, two by three scenes, that are taken by tiles of a scene's size
    every half of it, with those of the scenes by themselves; the whole sheet cannot be known.

    Returns:
        As `agreement`.
    """
    model = dsolo.load("miniature")
    drawn = [np.stack(scenes(6 * sheets)[6 * i : 6 * i + 6]) for i in range(sheets)]

    def sheet(parts: Shaped[np.ndarray, "6 s s *c"]) -> Shaped[np.ndarray, "_ _ *c"]:
        return np.concatenate([np.concatenate(list(row), 1) for row in (parts[:3], parts[3:])])

    def labels(image: Any, tile: int) -> Int[np.ndarray, "H W"]:
        return dsolo.segment(model, image, miniature.CLASSES, tile=tile).labels

    alone = [sheet(np.stack([labels(scene, 0) for scene in six])) for six in drawn]
    return _equal(alone, [labels(sheet(six), 112) for six in drawn])


def _equal(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, float | int]:
    equal = [np.mean(a == b) for a, b in zip(ours, theirs, strict=True)]
    return {"agreement": float(np.mean(equal)), "agreement_worst": float(np.min(equal))}

"""Pictures to labels with B/16 and Stable Diffusion 2: each stage, and all of them."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

import dsolo_jax as dsolo
from dsolo_jax import clip, model, pipeline
from dsolo_jax.attention.stable_diffusion import SD2
from dsolo_jax.checkpoints import cast
from dsolo_jax.pixels import batch_to_pixels
from experiments.benchmarks.networks import SD2_SOURCE, TIMESTEP, encoder_dtype, sd_params
from experiments.benchmarks.timing import beside, program, rows, torch_jobs


def run() -> Iterator[dict]:
    """Times each stage and their sum, seconds a batch, beside torch; on an accelerator in bfloat16
    and in batches.

    Weights, and so the maps that the solver's steps depend on, are random.
    """
    on_cpu, dtype = jax.default_backend() == "cpu", encoder_dtype()
    settings = model.Config(
        clip=clip.VIT_B16,
        source=SD2_SOURCE,
        readings=dsolo.Readings(),
        grid=SD2_SOURCE.grid,
        short_side=336,
        long_side=2048,
        tokenizer="",  # the embeddings are there
        text_weights="",
    )
    params = {
        "clip": cast(clip.init(clip.VIT_B16, jax.random.key(0)), dtype),
        "attention": sd_params(SD2, dtype),
    }
    random = dsolo.Model(settings, params)
    for batch in (1,) if on_cpu else (1, 8, 32):
        pixels = _pixels(batch, SD2_SOURCE.size)
        arrays = pipeline.batch([pipeline.prepare(settings, picture) for picture in pixels])
        make, account = program(
            partial(pipeline.graph, config=settings), params, squares=arrays.squares
        )
        theirs = torch_jobs("graph", SD2_SOURCE, pixels, TIMESTEP, dtype)
        case = f"batch {batch}, {jnp.dtype(dtype).name}"
        [graph] = _rows(f"graph, {case}", make, theirs.get("torch"), account)
        yield graph
        for classes in (21,) if on_cpu else (21, 150):
            case = f"C={classes}, batch {batch}, {jnp.dtype(dtype).name}"
            stages = [graph, *_others(random, make(), pixels, arrays, classes, case)]
            yield from stages[1:]
            seconds = sum(row["seconds"] for row in stages)
            whole = {"stage": "pipeline", "case": f"whole, {case}", "seconds": seconds}
            if all("baseline" in row for row in stages):
                whole |= beside(seconds, "torch", sum(row["baseline_seconds"] for row in stages))
            yield whole | {"pictures_per_second": batch / seconds}


def _pixels(batch: int, size: int) -> UInt8[np.ndarray, "B S S 3"]:
    blocks = np.random.default_rng(1).integers(0, 256, (batch, 16, 16, 3), np.uint8)
    return np.kron(blocks, np.ones((1, size // 16, size // 16, 1), np.uint8))


def _rows(case: str, ours: Callable, torch: Callable | None, account: dict) -> list[dict]:
    jobs = {"ours": ours} | ({"torch": torch} if torch else {})
    return rows("pipeline", case, jobs, repeats=3, **account)


def _others(
    random: dsolo.Model,
    attention: Float[Array, "B N N"],
    pixels: UInt8[np.ndarray, "B S S 3"],
    arrays: pipeline.Batch,
    classes: int,
    case: str,
) -> Iterator[dict]:
    """The stages behind the graph."""
    params, config, readings = random.params, random.config, random.config.readings
    text = np.random.default_rng(2).standard_normal((classes, config.clip.projection_dim))
    text = jnp.asarray(text / np.linalg.norm(text, axis=1, keepdims=True), jnp.float32)
    class_maps = partial(pipeline.class_maps, config=config, start=readings.start)
    maps, of_maps = program(class_maps, params, pictures=arrays, text=text)
    solve = partial(pipeline.scores, num_classes=classes, method="velocity", readings=readings)
    cosines = maps()
    solver, of_solver = program(solve, cosines, attention, query_class=jnp.arange(classes))
    scores = solver()

    def labels() -> list[pipeline.Result]:
        """All are started before the first is waited for."""
        return [fetch() for fetch in batch_to_pixels(list(pixels), scores, readings)]

    theirs = torch_jobs(
        "stages", config.clip, encoder_dtype(), readings, (*cosines, attention), pixels, text,
        tuple(map(int, arrays.grids[0])),
    )  # fmt: skip
    # The FLOPs of the solver are those of a single step.
    ours = {"CLIP": (maps, of_maps), "solver": (solver, of_solver), "pixels": (labels, {})}
    for stage, (job, account) in ours.items():
        yield from _rows(f"{stage}, {case}", job, theirs.get(stage), account)

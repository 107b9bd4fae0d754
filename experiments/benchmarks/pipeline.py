"""Pictures to labels with B/16 and Stable Diffusion 2: each stage, and all of them."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import dsolo_jax as dsolo
from dsolo_jax import clip, model, pipeline, upsample
from dsolo_jax.attention.stable_diffusion import SD2
from dsolo_jax.checkpoints import cast
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
    for classes in (21,) if on_cpu else (21, 150):
        for batch in (1,) if on_cpu else (1, 8, 32):
            case = f"C={classes}, batch {batch}, {jnp.dtype(dtype).name}"
            stages = list(_rows(dsolo.Model(settings, params), classes, batch, case))
            yield from stages
            seconds = sum(row["seconds"] for row in stages)
            whole = {"stage": "pipeline", "case": f"whole, {case}", "seconds": seconds}
            if all("baseline" in row for row in stages):
                whole |= beside(seconds, "torch", sum(row["baseline_seconds"] for row in stages))
            yield whole | {"pictures_per_second": batch / seconds}


def _rows(random: dsolo.Model, classes: int, batch: int, case: str) -> Iterator[dict]:
    params, config, readings = random.params, random.config, random.config.readings
    numbers, size = np.random.default_rng(1), config.source.size
    blocks = numbers.integers(0, 256, (batch, 16, 16, 3), np.uint8)
    pixels = np.kron(blocks, np.ones((1, size // 16, size // 16, 1), np.uint8))
    arrays = pipeline.batch([pipeline.prepare(config, picture) for picture in pixels])
    text = numbers.standard_normal((classes, config.clip.projection_dim), np.float32)
    text = jnp.asarray(text / np.linalg.norm(text, axis=1, keepdims=True))

    graph, of_graph = program(
        partial(pipeline.graph, config=config), params, squares=arrays.squares
    )
    class_maps = partial(pipeline.class_maps, config=config, start=readings.start)
    maps, of_maps = program(class_maps, params, pictures=arrays, text=text)
    solve = partial(pipeline.scores, num_classes=classes, method="velocity", readings=readings)
    attention, cosines = graph(), maps()
    solver, of_solver = program(solve, cosines, attention, query_class=jnp.arange(classes))
    scores = solver()
    ours = {
        "graph": (graph, of_graph),
        "CLIP": (maps, of_maps),
        "solver": (solver, of_solver),  # FLOPs of a single step
        "pixels": (
            lambda: [upsample.labels(*pair)() for pair in zip(scores, pixels, strict=True)],
            {},
        ),
    }
    theirs = torch_jobs(
        "stages", config.clip, config.source, TIMESTEP, encoder_dtype(), readings,
        (*cosines, attention), pixels, text, tuple(map(int, arrays.grids[0])),
    )  # fmt: skip
    for stage, (job, account) in ours.items():
        jobs = {"ours": job} | ({"torch": theirs[stage]} if theirs else {})
        yield from rows("pipeline", f"{stage}, {case}", jobs, repeats=3, **account)

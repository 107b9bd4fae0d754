"""Pictures to labels with B/16 and Stable Diffusion 2: each stage, and all of them."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import dsolo_jax as dsolo
from dsolo_jax import attention, clip, model, pipeline, upsample
from dsolo_jax.attention.stable_diffusion import SD2
from dsolo_jax.checkpoints import cast
from experiments.benchmarks.timing import (
    beside,
    compare,
    product_flops,
    share_of_peak,
    torch_jobs,
)
from experiments.benchmarks.unet import TIMESTEP, encoder_dtype, random_params_at_timestep

_SIZE = 512


def run() -> Iterator[dict]:
    """A row a stage, seconds a batch; on an accelerator in bfloat16 and in batches; beside torch.

    The pictures are read and resized before. The solver's steps, and so its time, depend on the
    maps, which are random here.
    """
    on_cpu = jax.default_backend() == "cpu"
    batches, class_counts, repeats = ((1,), (21,), 1) if on_cpu else ((1, 8, 32), (21, 150), 5)
    random = _model()
    for classes in class_counts:
        for batch in batches:
            yield from _rows(random, classes, batch, repeats)


def _model() -> dsolo.Model:
    """Random weights."""
    dtype, config = encoder_dtype(), clip.VIT_B16
    source = attention.Source("sd2", "stable_diffusion", SD2, ("up.0", "up.1"), None, _SIZE)
    params = {
        "clip": cast(clip.init(config, jax.random.key(0)), dtype),
        "attention": random_params_at_timestep(SD2, dtype),
    }
    settings = model.Config(
        clip=config,
        source=source,
        readings=dsolo.Readings(),
        grid=source.grid,
        short_side=336,
        long_side=2048,
        tokenizer="",  # the embeddings are there
        text_weights="",
    )
    return dsolo.Model(settings, params)


def _rows(random: dsolo.Model, classes: int, batch: int, repeats: int) -> Iterator[dict]:
    params, config, readings = random.params, random.config, random.config.readings
    numbers = np.random.default_rng(1)
    blocks = numbers.integers(0, 256, (batch, 16, 16, 3), np.uint8)
    pixels = np.kron(blocks, np.ones((1, _SIZE // 16, _SIZE // 16, 1), np.uint8))
    arrays = pipeline.batch([pipeline.prepare(config, picture) for picture in pixels])
    text = numbers.standard_normal((classes, config.clip.projection_dim), np.float32)
    text = jnp.asarray(text / np.linalg.norm(text, axis=1, keepdims=True))

    graph = partial(pipeline.graph, config=config)
    maps = partial(pipeline.class_maps, config=config, start=readings.start)
    solve = partial(
        pipeline.scores,
        query_class=jnp.arange(classes),
        num_classes=classes,
        method="velocity",
        readings=readings,
    )
    ours = {
        "graph": (graph, {"params": params, "squares": jnp.asarray(arrays.squares)}),
        "CLIP": (maps, {"params": params, "pictures": arrays, "text": text}),
    }
    found = {name: jax.jit(function)(**given) for name, (function, given) in ours.items()}
    ours["solver"] = solve, {"maps": found["CLIP"], "graph": found["graph"]}
    scores = jax.jit(solve)(**ours["solver"][1])

    jobs = {name: _job(function, given) for name, (function, given) in ours.items()}
    jobs["pixels"] = lambda: [upsample.labels(*pair)() for pair in zip(scores, pixels, strict=True)]
    seconds = compare(jobs, repeats=repeats)
    theirs = _torch(random, found, pixels, text, arrays.grids[0], repeats)
    flops = {
        name: product_flops(lambda given, function=function: function(**given), given)
        for name, (function, given) in ours.items()
    }
    for stage, value in (seconds | {"whole": sum(seconds.values())}).items():
        case = f"C={classes}, batch {batch}, {jnp.dtype(encoder_dtype()).name}"
        row = {"stage": "pipeline", "case": f"{stage}, {case}", "seconds": value}
        if stage in flops:  # the solver's of a single step
            peak = share_of_peak(flops[stage], value)
            row |= {"flops": flops[stage], "share_of_peak": peak}
        if stage in theirs:
            row |= beside(value, "torch", theirs[stage])
        if stage == "whole":
            row["pictures_per_second"] = batch / value
        yield row


def _job(function: Callable, given: dict) -> Callable:
    jitted = jax.jit(function)
    return lambda: jitted(**given)


def _torch(random: dsolo.Model, found: dict, pixels, text, grid, repeats: int) -> dict[str, float]:
    """Seconds of each stage in torch; of none where it is missing or lacks the memory."""
    config = random.config
    names = attention.stable_diffusion.layer_names(SD2)
    layers = tuple(names[layer] for layer in config.source.layers)
    ours = *found["CLIP"], found["graph"]
    try:
        jobs = torch_jobs(
            "stages", config.clip, SD2, layers, TIMESTEP, encoder_dtype(), config.readings,
            ours, pixels, text, tuple(map(int, grid)),
        )  # fmt: skip
        seconds = compare(jobs, repeats=repeats)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        return {}
    return seconds and seconds | {"whole": sum(seconds.values())}

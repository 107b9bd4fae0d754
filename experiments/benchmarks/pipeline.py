"""Pictures to labels with B/16 and Stable Diffusion 2: each stage, and all of them."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import dsolo_jax as dsolo
from dsolo_jax import attention, clip, pipeline, readings, vocabulary
from dsolo_jax.attention.stable_diffusion import SD2
from dsolo_jax.checkpoints import cast
from dsolo_jax.vocabulary import Vocabulary
from experiments.benchmarks.timing import product_flops, share_of_peak
from experiments.benchmarks.unet import encoder_dtype, random_params_at_timestep
from experiments.benchmarks.vae import torch_device
from experiments.stopwatch import Stopwatch

_CLIP, _SD = clip.VIT_B16, SD2
_SIZE = 512
_TIMESTEP = 100


def run() -> Iterator[dict]:
    """A row a stage, seconds a batch; on an accelerator in bfloat16 and in batches; beside torch.

    The pictures are read and resized before. The solver's steps, and so its time, depend on the
    maps, which are random here.
    """
    on_cpu = jax.default_backend() == "cpu"
    batches, class_counts, repeats = ((1,), (21,), 1) if on_cpu else ((1, 8, 32), (21, 150), 5)
    model = _model()
    torch_seconds = _torch_timer(model, repeats)
    for classes in class_counts:
        words = _vocabulary(model, classes)
        for batch in batches:
            yield from _rows(model, words, batch, repeats, torch_seconds)


def _torch_timer(model: dsolo.Model, repeats: int) -> Callable[..., dict[str, float]]:
    """Seconds of each stage in torch, see `torch_pipeline.timer`; of none where it cannot run."""
    device = torch_device()
    if device is None:
        return lambda *_: {}
    from experiments.benchmarks import torch_pipeline

    return torch_pipeline.timer(model, _TIMESTEP, device, encoder_dtype(), repeats)


def _model() -> dsolo.Model:
    dtype = encoder_dtype()
    params = random_params_at_timestep(_SD, dtype)
    source = attention.Source("stable_diffusion", _SD, params, ("up.0", "up.1"), None, _SIZE)
    return dsolo.Model(
        config=_CLIP,
        params=cast(clip.init(_CLIP, jax.random.key(0)), dtype),
        tokenize=None,  # the embeddings are there
        attention="sd2",
        attention_layers=source.layers,
        readings=readings.Readings(),
        source=source,
        grid=source.grid,
    )


def _vocabulary(model: dsolo.Model, classes: int) -> Vocabulary:
    """Names without meaning, with random embeddings."""
    words = vocabulary.parse([str(c) for c in range(classes)])
    text = np.random.default_rng(0).standard_normal((classes, _CLIP.projection_dim), np.float32)
    model.embeddings[words] = jnp.asarray(text / np.linalg.norm(text, axis=1, keepdims=True))
    return words


def _rows(
    model: dsolo.Model,
    words: Vocabulary,
    batch: int,
    repeats: int,
    torch_seconds: Callable[..., dict[str, float]],
) -> list[dict]:
    random = np.random.default_rng(1)
    blocks = random.integers(0, 256, (batch, 16, 16, 3), np.uint8)
    pixels = np.kron(blocks, np.ones((1, _SIZE // 16, _SIZE // 16, 1), np.uint8))
    pictures = [pipeline.prepare(model, picture) for picture in pixels]

    def seconds() -> dict[str, float]:
        watch = Stopwatch()
        pipeline.segment_batch(model, pictures, words, watch=watch)
        return watch.seconds | {"whole": sum(watch.seconds.values())}

    seconds()  # compiles
    runs = [seconds() for _ in range(repeats)]
    graph = pipeline.graph(model, pictures)
    encoded = pipeline.encode(model, pictures, words, model.readings.start, graph)
    flops = _flops(model, pictures, words, encoded)
    theirs = torch_seconds(encoded, pixels, model.embeddings[words], pictures[0].grid)
    rows, name = [], jnp.dtype(encoder_dtype()).name
    for stage in runs[0]:
        median = statistics.median(run[stage] for run in runs)
        row = {
            "stage": "pipeline",
            "case": f"{stage}, C={len(words.classes)}, batch {batch}, {name}",
            "seconds": median,
        }
        if stage in flops:
            row["flops"] = flops[stage]
            row["share_of_peak"] = share_of_peak(flops[stage], median)
        if stage in theirs:
            row |= {
                "baseline": "torch",
                "baseline_seconds": theirs[stage],
                "ratio": median / theirs[stage],
            }
        if stage == "whole":
            row["pictures_per_second"] = batch / median
        rows.append(row)
    return rows


def _flops(
    model: dsolo.Model,
    pictures: list[pipeline.Picture],
    words: Vocabulary,
    encoded: pipeline.Encoded,
) -> dict[str, float]:
    """Of the stages whose time is in products; the solver's is counted for a single step."""

    def graph(params):
        source = dataclasses.replace(model.source, params=params)
        return pipeline.graph(dataclasses.replace(model, source=source), pictures)

    def encode(params):
        other = dataclasses.replace(model, params=params)
        return pipeline.encode(other, pictures, words, model.readings.start, encoded.graph)

    return {
        "graph": product_flops(graph, model.source.params),
        "CLIP": product_flops(encode, model.params),
        "solver": product_flops(
            lambda encoded: pipeline.solve(encoded, words, "velocity", model.readings), encoded
        ),
    }

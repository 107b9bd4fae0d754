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
from experiments.benchmarks.timing import compare, share_of_peak, xla_account
from experiments.benchmarks.unet import (
    capturing,
    encoder_dtype,
    random_params_at_timestep,
    torch_layers,
    torch_prompt,
    torch_unet,
)
from experiments.benchmarks.vae import torch_device, torch_job, torch_vae
from experiments.stopwatch import Stopwatch

_CLIP, _SD = clip.VIT_B16, SD2
_SIZE = 512
_TIMESTEP = 100


def run() -> Iterator[dict]:
    """A row a stage, seconds a batch; on an accelerator in bfloat16 and in batches, beside torch.

    The pictures are read and resized before. The solver's steps, and so its time, depend on the
    maps, which are random here.
    """
    on_cpu = jax.default_backend() == "cpu"
    batches, class_counts, repeats = (
        ((1,), (21,), 1) if on_cpu else ((1, 2, 4, 8, 16, 32), (21, 150), 5)
    )
    model = _model()
    # Of one picture, whose attentions XLA counts in full on an accelerator.
    flops = None if on_cpu else _graph_flops(model)
    torch_seconds = _torch_seconds(batches, repeats)
    for classes in class_counts:
        words = _vocabulary(model, classes)
        for batch in batches:
            yield from _rows(model, words, batch, repeats, flops, torch_seconds.get(batch))


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
    flops: float | None,
    torch_seconds: float | None,
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
    name = jnp.dtype(encoder_dtype()).name
    rows = {
        stage: {
            "stage": "pipeline",
            "case": f"{stage}, C={len(words.classes)}, batch {batch}, {name}",
            "seconds": statistics.median(run[stage] for run in runs),
        }
        for stage in runs[0]
    }
    graph, whole = rows["graph"], rows["whole"]
    if flops is not None:
        graph["flops"] = batch * flops
        graph["share_of_peak"] = share_of_peak(batch * flops, graph["seconds"])
    if torch_seconds is not None:
        graph["baseline"] = "torch sdpa, maps captured"
        graph["baseline_seconds"] = torch_seconds
        graph["ratio"] = graph["seconds"] / torch_seconds
    whole["pictures_per_second"] = batch / whole["seconds"]
    return list(rows.values())


def _graph_flops(model: dsolo.Model) -> float:
    def graph(params, squares):
        return attention.graph(dataclasses.replace(model.source, params=params), squares)

    squares = jnp.zeros((1, _SIZE, _SIZE, 3), jnp.uint8)
    return xla_account(graph, model.source.params, squares)["flops"]


def _torch_seconds(batches: tuple[int, ...], repeats: int) -> dict[int, float]:
    """Of the same graphs in torch, by batch; on GPUs, as far as its memory goes."""
    if torch_device() != "cuda":
        return {}
    import torch

    job = _torch_graph()
    seconds = {}
    for batch in batches:
        try:
            seconds |= compare({batch: torch_job(lambda batch=batch: job(batch))}, repeats=repeats)
        except torch.OutOfMemoryError:
            break
    del job
    torch.cuda.empty_cache()
    return seconds


def _torch_graph() -> Callable:
    import torch

    model = torch_unet(_SD.unet, "cuda", encoder_dtype())
    autoencoder = torch_vae(_SD.vae, "cuda").to(model.dtype)
    layers = torch_layers(_SD.unet)

    def graph(batch: int):
        pixels = torch.zeros((batch, 3, _SIZE, _SIZE), device="cuda", dtype=model.dtype)
        latents = autoencoder.encode(pixels).latent_dist.mode() * _SD.vae.scaling_factor
        with capturing(model, layers) as maps:
            model(latents, _TIMESTEP, torch_prompt(_SD, model, batch))
        return sum(maps) / len(maps)

    return graph

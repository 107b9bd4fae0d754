"""Peak memory above the loaded model, of a large picture and of a large graph; on Linux."""

import dataclasses
import json
import pathlib
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from dsolo_jax.attention import stable_diffusion
from dsolo_jax.attention.stable_diffusion import unet
from dsolo_jax.attention.stable_diffusion.config import SD2, UNetConfig, VAEConfig
from dsolo_jax.transformer import logits
from experiments.benchmarks.unet import random_params_at_timestep, torch_layers

# Pictures of one process, (height, width): twelve million pixels; one million and twenty million.
_RUNS = ([(3000, 4000)], [(1000, 1000), (3650, 5480)])
_CLASSES = 150

# A process of its own, so that its peak is this job's alone. The bundled CLIP at the usual working
# size and grid; a first, small picture has it embed the words, which is no part of the others.
_JOB = f"""
import json, pathlib, re, resource, sys, time
import numpy as np
import dsolo_jax as dsolo

model = dsolo.load("miniature", short_side=336, grid=32)
words = [str(c) for c in range({_CLASSES})]

def picture(height, width):
    blocks = np.random.default_rng(1).integers(0, 256, (-(-height // 50), -(-width // 50), 3))
    return np.kron(blocks.astype(np.uint8), np.ones((50, 50, 1), np.uint8))[:height, :width]

dsolo.segment(model, picture(112, 112), words)
pictures = [picture(*size) for size in json.loads(sys.argv[1])]
status = pathlib.Path("/proc/self/status").read_text()
loaded, start = int(re.search(r"VmRSS:\\s+(\\d+) kB", status)[1]), time.perf_counter()
labels = [dsolo.segment(model, picture, words).labels for picture in pictures]
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([1024 * (peak - loaded), seconds, [list(found.shape) for found in labels]]))
"""


# Stable Diffusion 2's form and heads with three narrow resolutions, so that the graph is nearly all
# there is.
_NARROW = dataclasses.replace(
    SD2,
    unet=UNetConfig(
        block_out_channels=(40, 80, 80),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        num_heads=(5, 10, 10),
        cross_attention_dim=24,
        use_linear_projection=True,
        norm_num_groups=8,
    ),
    vae=VAEConfig(block_out_channels=(16, 16, 32, 32), layers_per_block=2, norm_num_groups=8),
)


def _all_maps(params, config, pixels):
    """The naive way: every map of every head, then their mean."""
    latents = stable_diffusion.encode(params, config, pixels)
    _, lookings = unet.denoise(params["unet"], config.unet, latents)
    chosen = [lookings[layer] for layer in torch_layers(config.unet)]
    maps = [jax.nn.softmax(logits(*looking), axis=-1) for looking in chosen]
    return jnp.stack(maps).mean(axis=(0, 2))


# Side of the picture: the naive way would not fit at the larger one.
_GRAPHS = {
    "graph": (1024, lambda *args: stable_diffusion.self_attention(*args, timestep=None)),
    "all maps, then the mean": (768, _all_maps),
}


def measure_graph(name: str) -> None:
    """Prints bytes above the parameters and the compiled graph, seconds, XLA's bytes, and N."""
    (size, function), config = _GRAPHS[name], _NARROW
    params = random_params_at_timestep(config, jnp.float32)
    pixels = jax.random.uniform(jax.random.key(0), (1, size, size, 3), minval=-1)
    jitted = jax.jit(lambda params, pixels: function(params, config, pixels))
    compiled = jitted.lower(params, pixels).compile()
    analysis = compiled.memory_analysis()
    xla_bytes = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    status = pathlib.Path("/proc/self/status").read_text()
    loaded = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])
    start = time.perf_counter()
    attention = jax.block_until_ready(compiled(params, pixels))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([1024 * (peak - loaded), seconds, xla_bytes, attention.shape[-1]]))


def run() -> Iterator[dict]:
    """Bytes above the loaded model: upper bounds, for the peak may be that of loading.

    The picture's include compilation. Those of the graphs also as multiples of a float32 [N, N],
    and beside them XLA's own, temporary and output: on CPU that leaves out what the fused products
    allocate while they run.
    """
    for sizes in _RUNS:
        peak_bytes, seconds, shapes = _output(_JOB, json.dumps(sizes))
        pictures = ", then ".join(f"{width} x {height}" for height, width in shapes)
        yield {
            "stage": "memory",
            "case": f"segment {pictures}, {_CLASSES} classes",
            "seconds": seconds,
            "temporary_bytes": peak_bytes,
        }
    for name in _GRAPHS:
        job = f"from experiments.benchmarks import memory; memory.measure_graph({name!r})"
        used, seconds, xla_bytes, n = _output(job)
        yield {
            "stage": "memory",
            "case": f"{name}, N={n}",
            "seconds": seconds,
            "temporary_bytes": used,
            "squares": used / (4 * n**2),
            "xla_squares": xla_bytes / (4 * n**2),
        }


def _output(job: str, *arguments: str) -> list:
    command = [sys.executable, "-c", job, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])

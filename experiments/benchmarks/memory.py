"""Peak memory above the loaded model, of large pictures and of a large graph; on Linux."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np

import dsolo_jax as dsolo
from dsolo_jax.attention import stable_diffusion
from dsolo_jax.attention.stable_diffusion import SD2
from experiments.benchmarks.networks import sd_params
from experiments.benchmarks.running import Case
from experiments.benchmarks.timing import Program
from experiments.profiling import peak_bytes, resident_bytes

# Stable Diffusion 2's form and heads with three narrow resolutions, so that the graph is nearly all
# there is.
_NARROW = dataclasses.replace(
    SD2,
    unet=dataclasses.replace(
        SD2.unet,
        block_out_channels=(40, 80, 80),
        down_block_types=SD2.unet.down_block_types[:2] + SD2.unet.down_block_types[-1:],
        up_block_types=SD2.unet.up_block_types[:3],
        num_heads=(5, 10, 10),
        cross_attention_dim=24,
        norm_num_groups=8,
    ),
    vae=dataclasses.replace(SD2.vae, block_out_channels=(16, 16, 32, 32), norm_num_groups=8),
)


def segment(*sizes: tuple[int, int]) -> None:
    """Labels pictures (height, width) one after the other, by the bundled CLIP at the usual sizes.

    A first, small one has it embed the words, which is no part of the others.
    """
    model = dsolo.load("miniature", short_side=336, grid=32)
    words = [str(c) for c in range(150)]
    random = np.random.default_rng(1)
    blocks = [random.integers(0, 256, (-(-h // 50), -(-w // 50), 3), np.uint8) for h, w in sizes]
    pictures = [
        np.kron(small, np.ones((50, 50, 1), np.uint8))[:h, :w]
        for small, (h, w) in zip(blocks, sizes, strict=True)
    ]
    dsolo.segment(model, pictures[0][:112, :112], words)
    _print_peak(lambda: [dsolo.segment(model, picture, words) for picture in pictures])


def graph(side: int) -> None:
    """Asks the narrow Stable Diffusion for the graph of a picture of that side, pixels."""
    params = sd_params(_NARROW, "float32")
    pixels = jax.random.uniform(jax.random.key(0), (1, side, side, 3), minval=-1)
    function = partial(stable_diffusion.self_attention, config=_NARROW)
    job = Program(function, params, pixels=pixels)
    job.compile()
    _print_peak(lambda: jax.block_until_ready(job()))


def _print_peak(job: Callable) -> None:
    """Prints the bytes above what is resident now, and the seconds."""
    loaded, start = resident_bytes(), time.perf_counter()
    job()
    seconds = time.perf_counter() - start
    print(json.dumps([peak_bytes() - loaded, seconds]))


# What runs in a process of its own, so that its peak is this job's alone; patches of a graph.
_JOBS = {
    "segment 4000 x 3000, 150 classes": ("segment((3000, 4000))", None),
    "segment 1000 x 1000, then 5480 x 3650": ("segment((1000, 1000), (3650, 5480))", None),
    "segment 12000 x 9000 by tiles, 150 classes": ("segment((9000, 12000))", None),
    "graph, N=16384": ("graph(1024)", 16384),
}


def run() -> Iterator[Case]:
    """Bytes above the loaded model: upper bounds, for the peak may be that of loading.

    The pictures' include compilation. Those of the graph also as multiples of a float32 [N, N].
    """
    for case, job in _JOBS.items():
        yield Case("memory", case, measure=partial(_measure, *job))


def _measure(job: str, patches: int | None) -> dict[str, float]:
    code = f"from experiments.benchmarks import memory; memory.{job}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    used, seconds = json.loads(done.stdout.splitlines()[-1])
    row = {"seconds": seconds, "resident_bytes": used}
    return row | ({"squares": used / (4 * patches**2)} if patches else {})

"""Joint bilateral upsampling of scores to labels, against torch loops of the usual kind."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from dsolo_jax import upsample
from dsolo_jax.upsample.weights import WINDOWS
from experiments.benchmarks import world
from experiments.benchmarks.running import Case, Work
from experiments.benchmarks.timing import torch_jobs

# form, classes, side of the grid, H, W
_CASES = (
    ("bilinear", 21, 64, 375, 500),
    ("kopf", 21, 64, 375, 500),
    ("dense", 21, 64, 375, 500),
    ("kopf", 150, 64, 375, 500),
    ("dense", 150, 64, 375, 500),
    ("kopf", 12, 14, 112, 112),
    ("kopf", 150, 64, 3000, 4000),  # too much for torch's loop
)


def run() -> Iterator[Case]:
    """`upsample.labels`, from scores on the device and a picture to labels on the host."""
    for form, classes, side, H, W in _CASES:
        case = f"{form}, {classes} classes, {side} x {side} to {W} x {H}"
        yield Case("upsample", case, partial(_labels, form, classes, side, H, W))


def _labels(form: str, classes: int, side: int, H: int, W: int) -> Work:
    scores = np.random.default_rng(0).standard_normal((classes, side, side), np.float32)
    [pixels] = world.pictures(1, H, W)
    on_device = jnp.asarray(scores)
    return Work(
        lambda: upsample.labels(on_device, pixels, form=form)(),
        theirs=partial(torch_jobs, "upsample", scores, pixels, form) if max(H, W) < 1000 else dict,
        pictures=1,
        **work(1, classes, side, (H, W), form),
    )


def work(
    number: int, classes: int, side: int, size: tuple[int, int], form: str, spatial_sigma: float = 1
) -> dict[str, Any]:
    """Gives what Work says of upsampling: a product of each pixel with its window of T x T scores
    of every class, 2 C T² FLOPs; scores and picture in, a byte a label out."""
    window, pixels = 2 * WINDOWS[form][0](spatial_sigma) + 1, number * math.prod(size)
    least = 4 * number * classes * side**2 + 3 * pixels + pixels
    return {"flops": {"float32": 2 * classes * window**2 * pixels}, "least_bytes": least}

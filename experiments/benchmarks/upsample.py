"""Joint bilateral upsampling of scores to labels, against torch loops of the usual kind."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax import upsample
from experiments.benchmarks.timing import rows, torch_jobs

# form, classes, side of the grid, H, W, repeats
_CASES = (
    ("bilinear", 21, 64, 375, 500, 7),
    ("kopf", 21, 64, 375, 500, 7),
    ("dense", 21, 64, 375, 500, 3),
    ("kopf", 150, 64, 375, 500, 3),
    ("dense", 150, 64, 375, 500, 1),
    ("kopf", 12, 14, 112, 112, 7),
    ("kopf", 150, 64, 3000, 4000, 1),  # too much for torch's loop
)


def run() -> Iterator[dict]:
    """Times `upsample.labels`, from scores on the device and a picture to labels on the host."""
    for form, classes, side, H, W, repeats in _CASES:
        random = np.random.default_rng(0)
        scores = jnp.asarray(random.standard_normal((classes, side, side), np.float32))
        blobs = jnp.asarray(random.integers(0, 256, (12, 16, 3)), jnp.float32)
        pixels = np.asarray(jax.image.resize(blobs, (H, W, 3), "linear").astype(jnp.uint8))
        jobs = {
            "ours": lambda scores=scores, pixels=pixels, form=form: upsample.labels(
                scores, pixels, form=form
            )()
        }
        if max(H, W) < 1000:
            jobs |= torch_jobs("upsample", scores, pixels, form)
        case = f"{form}, {classes} classes, {side} x {side} to {W} x {H}"
        yield from rows("upsample", case, jobs, repeats=repeats)

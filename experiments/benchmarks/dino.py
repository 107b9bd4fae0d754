"""DINO's last attention map: ours, and transformers in torch."""

from collections.abc import Iterator

import jax
import numpy as np

from dsolo_jax.attention import dino
from dsolo_jax.attention.dino.tower import parameter_shapes
from experiments.benchmarks.timing import random_params, rows, torch_jobs, xla_account

# name, config, side of the square picture
_CASES = (
    ("DINOv2 B/14", dino.DINOV2_B14, 518),
    ("DINO B/16", dino.DINO_B16, 512),
)


def run() -> Iterator[dict]:
    """One row a model: seconds a picture, and XLA's account of ours."""
    for name, config, side in _CASES:
        pixels = np.random.default_rng(0).standard_normal((1, side, side, 3), np.float32)
        params = random_params(parameter_shapes(config))

        def attention(params, pixels, config=config):
            return dino.self_attention(params, config, pixels)

        jitted = jax.jit(attention)
        jobs = {"ours": lambda given=(params, pixels), jitted=jitted: jitted(*given)}
        account = xla_account(jitted, params, pixels)
        jobs |= torch_jobs("dino", config, pixels)
        yield from rows("dino", f"{name} {side}x{side}", jobs, **account)

"""CLIP's image tower, B/16: ours, and transformers in torch."""

from collections.abc import Iterator

import jax
import numpy as np

from dsolo_jax import clip
from experiments.benchmarks.timing import rows, torch_jobs, xla_account

_SIZES = ((336, 336), (336, 448))


def run() -> Iterator[dict]:
    """One row a size and baseline: seconds a picture, and XLA's account of ours."""
    config = clip.VIT_B16
    params = clip.init(config, jax.random.key(0))
    encode = jax.jit(lambda params, pixels: clip.encode_image(params, config, pixels))
    for height, width in _SIZES:
        pixels = np.random.default_rng(0).standard_normal((1, height, width, 3), np.float32)
        jobs = {"ours": lambda pixels=pixels: encode(params, pixels)}
        account = xla_account(encode, params, pixels)
        jobs |= torch_jobs("clip", config, pixels)
        yield from rows("clip", f"ViT-B/16 {height}x{width}", jobs, **account)

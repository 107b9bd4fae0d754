"""Stable Diffusion 2's image encoder: ours, and diffusers in torch."""

import jax
import numpy as np

from dsolo_jax.attention import stable_diffusion
from dsolo_jax.attention.stable_diffusion import SD2, vae
from experiments.benchmarks.timing import random_params, rows, torch_jobs, xla_account

_SIDE = 512


def run() -> list[dict]:
    """One row a baseline: seconds a picture in float32, and XLA's account of ours."""
    params = {"vae": random_params(vae.parameter_shapes(SD2.vae))}
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, _SIDE, _SIDE, 3)).astype(np.float32)
    encode = jax.jit(lambda params, pixels: stable_diffusion.encode(params, SD2, pixels))
    account = xla_account(encode, params, pixels)
    jobs = {"ours": lambda: encode(params, pixels)} | torch_jobs("vae", SD2, pixels)
    case = f"Stable Diffusion 2 {_SIDE}x{_SIDE}, float32"
    return rows("vae", case, jobs, repeats=3, **account)

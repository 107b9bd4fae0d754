"""The forms of Stable Diffusion's 3 x 3 convolution, and torch's."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax.attention.stable_diffusion import convolution
from experiments.benchmarks.timing import rows, torch_jobs

# Positions to the side, channels in, channels out: of the VAE at 512 pixels, then of the UNet.
_CASES = (
    (512, 128, 128),
    (256, 256, 256),
    (128, 512, 512),
    (64, 512, 512),
    (64, 320, 320),
    (32, 640, 640),
    (16, 1280, 1280),
    (8, 1280, 1280),
)


def run() -> Iterator[dict]:
    """A row a case and other form: ours is the one that `convolve` takes."""
    forms = {"ours": convolution.convolve, "XLA": _xla, "gathered": convolution.gathered}
    for side, inputs, outputs in _CASES:
        random = np.random.default_rng(0)
        x = random.standard_normal((1, side, side, inputs), np.float32)
        kernel = random.standard_normal((3, 3, inputs, outputs), np.float32)
        given = jnp.asarray(x), jnp.asarray(kernel)
        more = {} if side % 16 else {"Winograd": convolution.winograd}
        jobs = {name: partial(jax.jit(form), *given) for name, form in (forms | more).items()}
        case = f"{side}x{side}, {inputs} to {outputs} channels"
        jobs |= torch_jobs("convolution", x, kernel)
        yield from rows("convolution", case, jobs, repeats=3)


def _xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
